"""Failures of TensorFlow's file systems as errors of users."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from pipeline.errors import UserError
from pipeline.files import said

# What TensorFlow says of files that are not what was written; all else says nothing of them.
_DAMAGE = (
    tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.OutOfRangeError, tf.errors.InvalidArgumentError,
    FileNotFoundError,
)  # fmt: skip


@contextlib.contextmanager
def writing(name: str) -> Iterator[None]:
    """Turns what TensorFlow's file systems say of a failure within the block into one line.

    Raises:
        UserError: `name`, which the block writes, cannot be written.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{name} cannot be written: {said(error)}; make room there, or name another") from error


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Says of a store that does not answer that it says nothing of what it holds; what says so of a file passes.

    Raises:
        UserError: `name`, which the block reads, cannot be read.
    """
    try:
        yield
    except (tf.errors.OpError, OSError, MemoryError) as error:
        # The reader of checkpoints has errors of no class but the one of all.
        if isinstance(error, _DAMAGE) or type(error) is tf.errors.OpError:
            raise
        raise UserError(f"{name} cannot be read: {said(error)[:200]}; start again") from error
