"""Hands the batches of a stream to tf.data, which calls for them from threads of its own."""

import atexit
import threading
import time
from collections.abc import Callable

import numpy as np

from pipeline.errors import UserError
from pipeline.stream import Stream

_STILL_SECONDS = 0.3


class Source:
    """Hands the batches of a stream to tf.data, one after the other, to one iterator at a time; the next begins anew.

    TensorFlow never lets go of a Python function that it was given, and so of this: streams are closed at their end.

    Args:
        open_stream: makes one.
        count: batches that it has.
        failures: where users' errors are kept, of which tf.data makes errors of its own.
    """

    def __init__(self, open_stream: Callable[[], Stream], count: int, failures: list[UserError]):
        self._open_stream = open_stream
        self._count = count
        self._failures = failures
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._next = 0
        self._calls = 0

    def take(self, number: np.ndarray) -> list[np.ndarray]:
        """The arrays of a batch.

        Args:
            number: int64 scalar, one more than before, or 0 to begin anew.
        """
        with self._lock:
            self._calls += 1
            if number == 0:
                self.close()
                self._stream, self._next = self._open_stream(), 0
                atexit.register(self._leave)
            stream = self._stream
            if stream is None:
                raise RuntimeError(f"batch {number} is asked for, but the stream is closed")
            if number != self._next:
                raise RuntimeError(f"batch {number} is asked for where {self._next} is due: two iterate at once")
            try:
                arrays = stream.take()
            except UserError as error:
                self._failures.append(error)
                raise
            self._next += 1
            if self._next == self._count:
                self.close()
            return list(arrays.values())

    def close(self) -> None:
        """Ends the stream that is open; whoever waits for a batch of it does so no more."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
            atexit.unregister(self._leave)

    def _leave(self) -> None:
        """Ends the stream, and comes back once nobody asks for batches any more.

        The interpreter, when it goes, ends threads that call it, without a word to TensorFlow, which waits for them.
        What tf.data prefetches has an end, and a stream that is closed has no batches: soon all is still.
        """
        self.close()
        calls = -1
        while calls != self._calls:
            calls = self._calls
            time.sleep(_STILL_SECONDS)
