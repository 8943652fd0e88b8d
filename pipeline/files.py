"""Files, local or remote, where Beam is not at hand; remote ones through TensorFlow, which local ones do not need."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.errors import UserError, one_line


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file for reading; a remote one through TensorFlow.

    Raises:
        OSError: it cannot be opened.
    """
    if "://" not in path:
        return open(path, "rb")
    import tensorflow as tf  # a worker has none, and local files need none

    with _os_errors():
        if not tf.io.gfile.exists(path):
            raise FileNotFoundError(f"{path} does not exist")
        file = tf.io.gfile.GFile(path, "rb")
        file.read(0)  # opens it
        return file


def names(directory: str) -> list[str]:
    """The names of what stands in a directory.

    Raises:
        OSError: it cannot be listed.
    """
    if "://" not in directory:
        return os.listdir(directory)
    import tensorflow as tf

    with _os_errors():
        return tf.io.gfile.listdir(directory)


def write(path: str, content: bytes) -> None:
    """Writes a file; whoever finds its name finds the whole of it, and a failure leaves nothing behind.

    Raises:
        UserError: it cannot be written.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        _write(temporary, path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {one_line(error)}; make room there, or name another") from error


def _write(temporary: str, path: str, content: bytes) -> None:
    if "://" not in path:
        try:
            with open(temporary, "wb") as local:
                local.write(content)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise
        return
    import tensorflow as tf

    try:
        with _os_errors():
            with tf.io.gfile.GFile(temporary, "wb") as remote:
                remote.write(content)
            tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Gives TensorFlow's errors of files the class of everyone else's."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
