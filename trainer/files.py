"""Small files of a run, local or remote: written aside, then renamed."""

import contextlib
import uuid

import tensorflow as tf


def write(path: str, content: bytes) -> None:
    """Writes a file; whoever finds its name finds the whole of it, and a failure leaves nothing behind.

    Raises:
        tf.errors.OpError: it cannot be written.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(content)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise
