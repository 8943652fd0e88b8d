"""The optimizer: Adam on gradients that are summed over replicas, with loss scaling where half precision needs it."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

FLOAT16 = "mixed_float16"
PRECISIONS = ("float32", "mixed_bfloat16", FLOAT16)


class SummedAdam(keras.optimizers.Adam):
    """Adam for gradients that are summed over replicas already.

    Keras sums them itself, but clips before it does: the norm of a replica's gradient is not that of the batch's.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: list) -> list:
        return grads_and_vars


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Models that are built within the block compute in a precision, one of `PRECISIONS`; float32 is Keras's own."""
    before = keras.config.dtype_policy()
    if name != "float32":
        keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def create(rate: keras.optimizers.schedules.LearningRateSchedule, precision: str) -> keras.Optimizer:
    """Builds the optimizer; call it within the scope of the distribution strategy.

    Args:
        rate: learning rate over the steps that were taken.
        precision: one of `PRECISIONS`; with float16 the loss is scaled up, so that small gradients do not vanish, and a
            step whose gradients overflow is left out.
    """
    optimizer = SummedAdam(rate)
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == FLOAT16 else optimizer


def apply(
    optimizer: keras.Optimizer, gradients: list[tf.Tensor], variables: list[keras.Variable], clip_norm: float
) -> tf.Tensor:
    """Sums gradients over replicas, limits their norm, and takes a step; call it in a replica context.

    Args:
        optimizer: from `create`.
        gradients: of this replica, of the loss as `optimizer.scale_loss` has it.
        variables: which they are of.
        clip_norm: the largest norm of all gradients together; 0 for any.

    Returns:
        The norm before it was limited, scalar; not finite, if the step was left out.
    """
    context = tf.distribute.get_replica_context()
    summed = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    norm = tf.linalg.global_norm(summed) / optimizer.scale_loss(1.0)
    if clip_norm > 0:
        summed = [gradient * tf.minimum(1.0, clip_norm / norm) for gradient in summed]
    optimizer.apply(summed, variables)
    return norm
