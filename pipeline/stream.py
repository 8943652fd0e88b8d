"""Fills batches ahead of whoever takes them: readers, a thread each, copy rows to where they belong in NumPy arrays.

Threads suffice: reading local files, checksums and copying, which take the time, leave Python's lock to others.
"""

import atexit
import functools
import itertools
import math
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Row = Mapping[str, np.ndarray | np.generic | float]
_PATIENCE_SECONDS = 5
_ALIGNMENT = 64  # bytes: TensorFlow takes such memory as it is, and copies any other


class Field(NamedTuple):
    """What a row has of one array, or a batch of all its rows: a shape, and the name of a dtype."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Stream:
    """Batches of rows, in an order that the readers decide together.

    Args:
        readers: iterators of rows. Their rows take turns: the first of each, then the second of each, and so on. A row
            is used up before the next is asked for.
        fields: of a row, by name.
        size: rows of a batch; the readers have a multiple of it.
        ahead: how many batches to fill at most that nobody has taken.
        deterministic: let the readers take turns; else a row goes to the first place that is free once it is there, so
            that a slow reader holds nobody up.
    """

    def __init__(
        self,
        readers: Sequence[Iterator[Row]],
        fields: Mapping[str, Field],
        size: int,
        ahead: int,
        deterministic: bool = True,
    ):
        self._size = size
        self._ahead = ahead
        self._memory = {name: _Memory(Field((size, *field.shape), field.dtype)) for name, field in fields.items()}
        self._filling: dict[int, _Batch] = {}
        self._taken = 0
        self._end: float = math.inf  # the first batch that a reader's failure leaves a hole in
        self._failure: BaseException | None = None
        self._closed = False
        self._running = len(readers)
        self._changed = threading.Condition()
        anywhere = itertools.count()
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(reader, itertools.count(number, len(readers)) if deterministic else anywhere),
                name=f"reader {number}",
                daemon=True,
            )
            for number, reader in enumerate(readers)
        ]
        # Before the interpreter goes: it ends threads that it finds within TensorFlow by an abort of the process.
        atexit.register(self.close)
        for thread in self._threads:
            thread.start()

    def take(self) -> dict[str, np.ndarray]:
        """The next batch; its memory is used again once nobody refers to it.

        Raises:
            Exception: what a reader raised, once all batches before it are taken.
            EOFError: the readers have no more rows.
            RuntimeError: the stream is closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_full(self._taken) or self._closed or self._taken >= self._end or not self._running
            )
            if self._closed:
                raise RuntimeError("the stream is closed")
            if not self._is_full(self._taken):
                raise self._failure or EOFError(f"the readers ended before batch {self._taken} was full")
            batch = self._filling.pop(self._taken)
            self._taken += 1
            self._changed.notify_all()
        return batch.arrays

    def close(self) -> None:
        """Ends the readers, whatever they have read, and waits for them, unless they are long in coming."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        atexit.unregister(self.close)

    def _is_full(self, number: int) -> bool:
        return number in self._filling and self._filling[number].missing == 0

    def _run(self, reader: Iterator[Row], places: Iterator[int]) -> None:
        place = None  # of the row that is at hand: one is drawn for it, and not before it is there
        try:
            for values in reader:
                place = next(places)
                if not self._put(values, place):
                    return
                place = None
        except BaseException as error:
            with self._changed:
                number = (next(places) if place is None else place) // self._size
                if number < self._end:
                    self._end, self._failure = number, error
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _put(self, values: Row, place: int) -> bool:
        """Copies a row to its place; whether anybody wants more."""
        number, row = divmod(place, self._size)
        batch = self._wait_for_room(number)
        if batch is None:
            return False
        for name, array in batch.arrays.items():
            array[row] = values[name]
        with self._changed:
            batch.missing -= 1
            if not batch.missing:
                self._changed.notify_all()
        return True

    def _wait_for_room(self, number: int) -> "_Batch | None":
        """A batch that may be filled now; None where nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number >= self._end or number < self._taken + self._ahead)
            if self._closed or number >= self._end:
                return None
            if number not in self._filling:
                self._filling[number] = _Batch({name: own.array() for name, own in self._memory.items()}, self._size)
            return self._filling[number]


class _Batch:
    """Arrays of which some rows are missing."""

    def __init__(self, arrays: dict[str, np.ndarray], missing: int):
        self.arrays = arrays
        self.missing = missing


class _Memory:
    """Arrays of one kind; those that nobody refers to are handed out again.

    Fresh memory costs more than what is copied into it: the system clears every page of it first.
    """

    def __init__(self, kind: Field):
        self._kind = kind
        self._free: list[np.ndarray] = []
        self._lent: dict[int, weakref.ref] = {}

    def array(self) -> np.ndarray:
        """An array with any content."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._allocate()
        # NumPy's views refer to the array that has the memory; through a memoryview, to this one, which can be watched.
        flat = np.frombuffer(memory.data, self._kind.dtype)
        self._lent[id(memory)] = weakref.ref(flat, functools.partial(self._take_back, memory))
        return flat.reshape(self._kind.shape)

    def _take_back(self, memory: np.ndarray, _: weakref.ref) -> None:
        del self._lent[id(memory)]
        self._free.append(memory)

    def _allocate(self) -> np.ndarray:
        memory = np.empty(self._kind.nbytes + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return memory[start : start + self._kind.nbytes]
