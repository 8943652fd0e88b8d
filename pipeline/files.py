"""Files, local or remote, where Beam is not at hand; remote ones through TensorFlow, which local ones do not need."""

import contextlib
import functools
import io
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from pipeline.errors import UserError, one_line

LOCAL_BUFFER_BYTES = 8 << 10  # more is read past it, straight to where it belongs
GCS_BLOCK_MIB = 1  # what TensorFlow is told to ask Cloud Storage for at a time, and to keep of each open file
_ASKED_BYTES = 512 << 10  # what TensorFlow asks a file system for, and keeps of it
REMOTE_BUFFER_BYTES = 2 * _ASKED_BYTES + (GCS_BLOCK_MIB << 20)  # of an open file, in all


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file for reading; a remote one through TensorFlow.

    Raises:
        OSError: it cannot be opened.
    """
    if "://" not in path:
        return open(path, "rb", buffering=LOCAL_BUFFER_BYTES)
    return io.BufferedReader(_RemoteFile(path), _ASKED_BYTES)


class _RemoteFile(io.RawIOBase):
    """A remote file as one of Python's."""

    def __init__(self, path: str):
        import tensorflow as tf  # a worker has none, and local files need none

        self._path = path
        self._file = tf.io.gfile.GFile(path, "rb")
        with _os_errors(path):
            self._file.read(0)  # opens it

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _os_errors(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _os_errors(self._path):
            self._file.seek(offset, whence)
            return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def names(directory: str) -> list[str]:
    """The names of what stands in a directory.

    Raises:
        OSError: it cannot be listed.
    """
    if "://" not in directory:
        return os.listdir(directory)
    import tensorflow as tf

    with _os_errors(directory):
        tf.io.gfile.stat(directory)  # what lists takes a store that does not answer for one without the directory
        return tf.io.gfile.listdir(directory)


def make_parents(path: str) -> None:
    """Makes the folder of a file; remote ones need none.

    Raises:
        UserError: it cannot be made.
    """
    if "://" in path:
        return
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder of {path} cannot be made: {one_line(error)}; name another") from error


def write(path: str, content: bytes) -> None:
    """Writes a file; whoever finds its name finds the whole of it, and a failure leaves nothing behind.

    Raises:
        UserError: it cannot be written.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    create, rename, remove = _operations(path)
    try:
        with _os_errors(path):
            with create(temporary, "wb") as file:
                file.write(content)
            rename(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError), _os_errors(path):
            remove(temporary)
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be written: {one_line(error)}; make room there, or name another") from error
        raise


def _operations(path: str) -> tuple[Callable[..., Any], Callable[[str, str], None], Callable[[str], None]]:
    """What opens, renames over another, and removes a file of the kind of a path."""
    if "://" not in path:
        return open, os.replace, os.remove
    import tensorflow as tf

    return tf.io.gfile.GFile, functools.partial(tf.io.gfile.rename, overwrite=True), tf.io.gfile.remove


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """Gives TensorFlow's errors of a remote file the class of everyone else's."""
    if "://" not in path:
        yield
        return
    import tensorflow as tf

    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
