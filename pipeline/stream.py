"""Fills batches ahead of whoever takes them: readers, a thread each, copy rows to where they belong in NumPy arrays.

Threads suffice, for what takes time leaves Python's lock to others: reading files, checksums, and copying.
"""

import itertools
import math
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Row = Mapping[str, np.ndarray | np.generic | float]
_ALIGNMENT = 64  # bytes: TensorFlow takes such memory as it is, and copies any other


class Field(NamedTuple):
    """What a row has of one array: its shape, and the name of its dtype."""

    shape: tuple[int, ...]
    dtype: str


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
        self._deterministic = deterministic
        self._memory = {name: _Memory((size, *field.shape), field.dtype) for name, field in fields.items()}
        self._filling: dict[int, _Batch] = {}
        self._taken = 0
        self._places = itertools.count()
        self._running = len(readers)
        self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        for number, reader in enumerate(readers):
            places = itertools.count(number, len(readers)) if deterministic else self._places
            threading.Thread(target=self._run, args=(reader, places), name=f"reader {number}", daemon=True).start()

    def take(self) -> dict[str, np.ndarray]:
        """The next batch; its memory is used again once nobody refers to it.

        Raises:
            Exception: what a reader raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self._is_full(self._taken) or not self._running)
            if self._failure is not None:
                raise self._failure
            if not self._is_full(self._taken):
                raise EOFError(f"the readers ended before batch {self._taken} was full")
            batch = self._filling.pop(self._taken)
            self._taken += 1
            self._changed.notify_all()
        return batch.arrays

    def close(self) -> None:
        """Ends the readers, whatever they have read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_full(self, number: int) -> bool:
        return number in self._filling and self._filling[number].missing == 0

    def _run(self, reader: Iterator[Row], places: Iterator[int]) -> None:
        try:
            self._fill(reader, places)
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _fill(self, reader: Iterator[Row], places: Iterator[int]) -> None:
        for values in reader:
            number, row = divmod(next(places), self._size)
            batch = self._wait_for_room(number)
            if batch is None:
                return
            for name, value in values.items():
                batch.arrays[name][row] = value
            with self._changed:
                batch.missing -= 1
                if not batch.missing:
                    self._changed.notify_all()

    def _wait_for_room(self, number: int) -> "_Batch | None":
        """A batch that may be filled now; None where nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number < self._taken + self._ahead)
            if self._closed:
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
    """Arrays of one shape and dtype; those that nobody refers to are handed out again.

    Fresh memory costs more than what is copied into it: the system clears every page of it first.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._free: list[np.ndarray] = []

    def array(self) -> np.ndarray:
        """An array with any content."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._allocate()
        # NumPy's views refer to the array that has the memory; through a memoryview, to this one, which can be watched.
        flat = np.frombuffer(memory.data, self._dtype)
        weakref.finalize(flat, self._free.append, memory).atexit = False
        return flat.reshape(self._shape)

    def _allocate(self) -> np.ndarray:
        size = math.prod(self._shape) * self._dtype.itemsize
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return memory[start : start + size]
