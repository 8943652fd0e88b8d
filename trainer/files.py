"""Files of a run, local or remote: small ones are written aside, then renamed."""

import contextlib
import uuid
from collections.abc import Iterator

import tensorflow as tf

from pipeline.errors import UserError, one_line


@contextlib.contextmanager
def writing(name: str) -> Iterator[None]:
    """Turns what TensorFlow's file systems say of a failure within the block into one line.

    Raises:
        UserError: `name`, which the block writes, cannot be written.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{name} cannot be written: {one_line(error)}; make room there, or name another") from error


def write(path: str, content: bytes) -> None:
    """Writes a file; whoever finds its name finds the whole of it, and a failure leaves nothing behind.

    Raises:
        UserError: it cannot be written.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with writing(path), tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(content)
        with writing(path):
            tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise
