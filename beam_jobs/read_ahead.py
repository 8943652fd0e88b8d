"""Reads pictures' bytes before they are asked for, since storage answers late and decoding takes time of its own."""

import collections
import contextlib
import errno
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from apache_beam.utils import retry

from beam_jobs import storage
from beam_jobs.sources import ImageRef
from pipeline import gs
from pipeline.errors import UserError, one_line

BUDGET_BYTES = 32 << 20  # of pictures that are read but not yet decoded, in each worker thread
_READERS = 4  # a read from remote storage takes some 30 ms, and a worker decodes some 100 pictures a second
_GROUP = 8
# Of a disk, a network or a process: a picture that was not read then may be a good one.
_MACHINE_FAILURES = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)
_LONGEST_QUEUE = 8  # of groups
_RETRIES = 4  # after 1, 2, 4 and 8 seconds, of a read from remote storage


def read_ahead(refs: Iterable[ImageRef], budget: int = BUDGET_BYTES) -> Iterator[tuple[ImageRef, bytes | OSError]]:
    """Reads the bytes behind references, in their order.

    Args:
        refs: pictures.
        budget: bytes that may be held ready or under way; a single picture may be larger.

    Yields:
        Each reference with its bytes, or with the reason why they cannot be had.
    """
    queue: collections.deque[tuple[list[ImageRef], Future[list[bytes | OSError]]]] = collections.deque()
    held = 0
    with contextlib.closing(_Files()) as files, ThreadPoolExecutor(_READERS, "read-ahead") as readers:
        try:
            for group in _groups(refs, budget // (2 * _READERS)):
                size = _size(group)
                while queue and (held + size > budget or len(queue) == _LONGEST_QUEUE):
                    first, future = queue.popleft()
                    yield from zip(first, future.result(), strict=True)
                    held -= _size(first)
                queue.append((group, readers.submit(files.read_all, group)))
                held += size
            while queue:
                first, future = queue.popleft()
                yield from zip(first, future.result(), strict=True)
        finally:
            readers.shutdown(wait=True, cancel_futures=True)


def _groups(refs: Iterable[ImageRef], budget: int) -> Iterator[list[ImageRef]]:
    """Pictures that a thread reads in one go: waking it for each would take a worker's time."""
    group: list[ImageRef] = []
    for ref in refs:
        if group and (len(group) == _GROUP or _size(group) + ref.length > budget):
            yield group
            group = []
        group.append(ref)
    if group:
        yield group


def _size(group: list[ImageRef]) -> int:
    return sum(ref.length for ref in group)


def _may_pass(error: BaseException) -> bool:
    """Whether a remote read that failed may succeed if it is tried again."""
    return isinstance(error, Exception) and not isinstance(error, FileNotFoundError)


class _Files:
    """Open files, one in each thread: many references share an archive."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._opened: set[BinaryIO] = set()

    def read_all(self, refs: list[ImageRef]) -> list[bytes | OSError]:
        """As `read`, of several pictures."""
        return [self.read(ref) for ref in refs]

    def read(self, ref: ImageRef) -> bytes | OSError:
        """The bytes of a picture, or the reason why they cannot be had.

        Raises:
            UserError: remote storage failed again and again, which says nothing of the picture.
        """
        path = os.fsdecode(ref.path)
        try:
            data = self._read_remote(path, ref) if "://" in path else self._read(path, ref)
        except OSError as error:
            if error.errno in _MACHINE_FAILURES:
                raise UserError(f"{path} cannot be read: {one_line(error)}; start the job again") from error
            return error
        if len(data) < ref.length:
            return OSError(f"{len(data)} of {ref.length} bytes at {ref.offset} of {path}")
        return data

    def _read_remote(self, path: str, ref: ImageRef) -> bytes:
        read = retry.with_exponential_backoff(_RETRIES, retry_filter=_may_pass, initial_delay_secs=1.0)(self._read)
        try:
            return read(path, ref)
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system has its own
            raise UserError(
                f"{path} cannot be read, {_RETRIES + 1} times in a row: {one_line(error)}; start the job again"
            ) from error

    def _read(self, path: str, ref: ImageRef) -> bytes:
        if gs.is_path(path):
            return storage.read_range(path, ref.offset, ref.length)
        try:
            file = self._open(path)
            file.seek(ref.offset)
            return file.read(ref.length)
        except Exception:
            self._forget()  # it may be in any state
            raise

    def _open(self, path: str) -> BinaryIO:
        own = self._own
        if getattr(own, "path", None) != path:
            self._forget()
            own.file = storage.open_binary(path)
            self._opened.add(own.file)
            own.path = path
        return own.file

    def _forget(self) -> None:
        """Closes the file of this thread."""
        own = self._own
        own.path = None
        if file := getattr(own, "file", None):
            self._opened.discard(file)
            own.file = None
            with contextlib.suppress(OSError):
                file.close()

    def close(self) -> None:
        """Closes what is open."""
        while self._opened:
            self._opened.pop().close()
