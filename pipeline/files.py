"""Opens the files of a dataset for reading, where neither Beam nor the training loop is at hand."""

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO


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
        return tf.io.gfile.GFile(path, "rb")


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


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Gives TensorFlow's errors of files the class of everyone else's."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
