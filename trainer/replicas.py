"""Which devices a run uses."""

import logging
import os

import tensorflow as tf

from pipeline.errors import UserError

_LOGGER = logging.getLogger(__name__)
_NVIDIA_DEVICE = "/dev/nvidia0"


def split_cpu(count: int) -> None:
    """Divides the CPU into logical devices, so that many replicas run where there is no GPU.

    Call it before TensorFlow has used a device.

    Raises:
        UserError: fewer than one, or a machine with GPUs.
    """
    if count < 1:
        raise UserError(f"--virtual_replicas={count}; choose a number from 1")
    if gpus := tf.config.list_physical_devices("GPU"):
        raise UserError(f"--virtual_replicas={count} splits the CPU, but there are {len(gpus)} GPUs; leave it out")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)


def create_strategy(batch_size: int) -> tf.distribute.Strategy:
    """Takes all GPUs, or else all logical CPUs; says what it took.

    Args:
        batch_size: examples of a step over all replicas.

    Returns:
        `MirroredStrategy` over several devices, `OneDeviceStrategy` for one.

    Raises:
        UserError: the batch cannot be shared equally by the replicas, or there is a GPU that TensorFlow cannot use.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if not gpus and os.path.exists(_NVIDIA_DEVICE) and "CUDA_VISIBLE_DEVICES" not in os.environ:
        raise UserError(
            f"this machine has an NVIDIA device ({_NVIDIA_DEVICE}) but TensorFlow finds no GPU: install its CUDA "
            "libraries with 'make gpu', or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    devices = gpus or tf.config.list_logical_devices("CPU")
    names = [device.name for device in devices]
    if batch_size < 1 or batch_size % len(names):
        raise UserError(
            f"batch_size is {batch_size}, which {len(names)} replicas cannot share equally; set --config.batch_size to "
            f"a multiple of {len(names)}"
        )
    one = len(names) == 1
    strategy = tf.distribute.OneDeviceStrategy(names[0]) if one else tf.distribute.MirroredStrategy(names)
    _LOGGER.info(
        "%s on %s: %d %s, batch of %d, %d per replica",
        type(strategy).__name__, ", ".join(names), len(names), "replica" if one else "replicas", batch_size,
        batch_size // len(names),
    )  # fmt: skip
    return strategy
