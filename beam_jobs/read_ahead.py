"""Reads pictures' bytes before they are asked for, since storage answers late and decoding takes time of its own."""

import collections
import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from beam_jobs import storage
from beam_jobs.sources import ImageRef

BUDGET_BYTES = 32 << 20  # of pictures that are read but not yet decoded, in each worker thread
_READERS = 4  # a read from remote storage takes some 30 ms, and a worker decodes some 100 pictures a second
_LONGEST_QUEUE = 64


def read_ahead(refs: Iterable[ImageRef], budget: int = BUDGET_BYTES) -> Iterator[tuple[ImageRef, bytes | OSError]]:
    """Reads the bytes behind references, in their order.

    Args:
        refs: pictures.
        budget: bytes that may be held ready or under way; a single picture may be larger.

    Yields:
        Each reference with its bytes, or with the reason why they cannot be had.
    """
    queue: collections.deque[tuple[ImageRef, Future[bytes | OSError]]] = collections.deque()
    held = 0
    with contextlib.closing(_Files()) as files, ThreadPoolExecutor(_READERS, "read-ahead") as readers:
        try:
            for ref in refs:
                while queue and (held + ref.length > budget or len(queue) == _LONGEST_QUEUE):
                    first, future = queue.popleft()
                    held -= first.length
                    yield first, future.result()
                queue.append((ref, readers.submit(files.read, ref)))
                held += ref.length
            while queue:
                first, future = queue.popleft()
                yield first, future.result()
        finally:
            readers.shutdown(wait=True, cancel_futures=True)


class _Files:
    """Open files, one in each thread: many references share an archive."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._opened: set[BinaryIO] = set()

    def read(self, ref: ImageRef) -> bytes | OSError:
        """The bytes of a picture, or the reason why they cannot be had."""
        try:
            file = self._open(os.fsdecode(ref.path))
            file.seek(ref.offset)
            data = file.read(ref.length)
        except OSError as error:
            return error
        if len(data) < ref.length:
            return OSError(f"{len(data)} of {ref.length} bytes at {ref.offset} of {os.fsdecode(ref.path)}")
        return data

    def _open(self, path: str) -> BinaryIO:
        own = self._own
        if getattr(own, "path", None) != path:
            own.path = None
            if before := getattr(own, "file", None):
                self._opened.discard(before)
                before.close()
            own.file = storage.open_binary(path)
            self._opened.add(own.file)
            own.path = path
        return own.file

    def close(self) -> None:
        """Closes what is open."""
        while self._opened:
            self._opened.pop().close()
