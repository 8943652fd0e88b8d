"""Failures of TensorFlow's writers as errors of users."""

import contextlib
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
