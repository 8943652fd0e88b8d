"""The devices of a process that uses a model, and does not train it."""

import contextlib

import tensorflow as tf


def configure(deterministic: bool) -> None:
    """Prepares this process for a model, once, before it is built.

    Args:
        deterministic: the same bytes from every run on this kind of device.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # it is in use already
            tf.config.experimental.set_memory_growth(gpu, True)  # other processes share it
    if deterministic:
        tf.config.experimental.enable_op_determinism()
