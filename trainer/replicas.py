"""Which devices a run uses: one, all of a machine, or all of many machines."""

import contextlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterator

import tensorflow as tf

from pipeline.errors import TryAgain, UserError, one_line

_LOGGER = logging.getLogger(__name__)
_NVIDIA_DEVICE = "/dev/nvidia0"
_TF_CONFIG = "TF_CONFIG"
_PEER = re.compile(r"/job:(\w+)/(?:replica:0/)?task:(\d+)")
_WHY = re.compile(r"aborted by: (.*?)\s*(?:Additional GRPC|The tasks have crashed|The error could|$)", re.DOTALL)
_PEER_ERRORS = (
    tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError, tf.errors.CancelledError,
    tf.errors.InternalError,
)  # fmt: skip
STRATEGIES = {
    "one_device": "OneDeviceStrategy",
    "mirrored": "MirroredStrategy",
    "multi_worker": "MultiWorkerMirroredStrategy",
}


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


def create_strategy(batch_size: int, name: str = "auto") -> tf.distribute.Strategy:
    """Takes the devices that a strategy is for; says which.

    Call it before TensorFlow has used a device: workers find each other first.

    Args:
        batch_size: examples of a step over all replicas.
        name: one of `STRATEGIES`, or "auto": all workers of the environment's TF_CONFIG, or else all GPUs of this
            machine, or else its CPU.

    Returns:
        `OneDeviceStrategy`, `MirroredStrategy` or `MultiWorkerMirroredStrategy`.

    Raises:
        UserError: another name, a TF_CONFIG that cannot be used, a batch that the replicas cannot share equally, or a
            GPU that TensorFlow cannot use.
    """
    workers = _workers()
    check_strategy(name, len(workers))
    _check_gpus()
    if name == "auto":
        name = "multi_worker" if len(workers) > 1 else "mirrored" if len(_devices()) > 1 else "one_device"
    if name == "multi_worker":
        _LOGGER.info("%s of batches of %d waits for all workers: %s", STRATEGIES[name], batch_size, ", ".join(workers))
    strategy = _create(name)
    replicas = strategy.num_replicas_in_sync
    check_batch(batch_size, replicas)
    devices = [tf.DeviceSpec.from_string(each) for each in strategy.extended.worker_devices]
    own = ", ".join(f"/device:{each.device_type}:{each.device_index}" for each in devices)
    where = f"{hosts(strategy)} workers" if name == "multi_worker" else own
    _LOGGER.info(
        "%s on %s: %d %s, batch of %d, %d per replica",
        STRATEGIES[name], where, replicas, "replica" if replicas == 1 else "replicas", batch_size,
        batch_size // replicas,
    )  # fmt: skip
    return strategy


def check_strategy(name: str, workers: int) -> None:
    """Looks whether a strategy is one for so many workers of TF_CONFIG, of which there may be none.

    Raises:
        UserError: it is none, or not for them.
    """
    if name not in ("auto", *STRATEGIES):
        raise UserError(f"strategy is '{name}'; choose one of auto, {', '.join(STRATEGIES)}")
    if name == "multi_worker" and not workers:
        raise UserError(f"strategy is 'multi_worker', but {_TF_CONFIG} names no cluster; set it, or choose 'auto'")
    if name in ("one_device", "mirrored") and workers > 1:
        raise UserError(
            f"strategy is '{name}', but {_TF_CONFIG} names {workers} workers, which would write one --workdir; "
            "choose 'auto', or unset it"
        )


def check_batch(batch_size: int, count: int) -> None:
    """Looks whether replicas can share batches.

    Raises:
        UserError: not equally.
    """
    if batch_size < 1 or batch_size % count:
        raise UserError(
            f"batch_size is {batch_size}, which {count} replicas cannot share equally; set --config.batch_size to a "
            f"multiple of {count}"
        )


def hosts(strategy: tf.distribute.Strategy) -> int:
    """How many processes, each of a machine of its own, take part in a strategy."""
    return len(_workers()) if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) else 1


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes the run's files."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    resolver = strategy.cluster_resolver
    chiefs = resolver.cluster_spec().as_dict().get("chief", [])
    return resolver.task_type == "chief" or (not chiefs and resolver.task_id == 0)


@contextlib.contextmanager
def naming_losses(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Says of a failure within the block which other worker of a cluster is gone.

    TensorFlow's workers listen to each other's heartbeat, and give up what waits for one that has been silent for some
    ten seconds.

    Raises:
        TryAgain: one is.
    """
    try:
        yield
    except _PEER_ERRORS as error:
        found, why = _PEER.search(str(error)), _WHY.search(str(error))
        if hosts(strategy) == 1 or not (found or why):  # a device, or a store, has failed
            raise
        peer = f"{found[1]} {found[2]}" if found else "a worker"
        raise TryAgain(
            f"{peer} of the cluster is gone ({' '.join(why[1].split()) if why else one_line(error)[:300]}); start the "
            "same command on all workers again: the run goes on from its last checkpoint"
        ) from error


def from_chief(strategy: tf.distribute.Strategy, number: int) -> int:
    """The number that the chief brings, on all hosts."""
    return _sum(strategy, number if is_chief(strategy) else 0)


def agree(strategy: tf.distribute.Strategy, number: int) -> bool:
    """Whether all hosts bring the same number; none goes on before all have come here."""
    return _sum(strategy, number != from_chief(strategy, number)) == 0


def _sum(strategy: tf.distribute.Strategy, number: int) -> int:
    """The sum over hosts, of each of whose replicas it is the same."""
    total = strategy.reduce("SUM", strategy.run(lambda: tf.constant(number, tf.int64)), axis=None)
    return int(total) * hosts(strategy) // strategy.num_replicas_in_sync


def _create(name: str) -> tf.distribute.Strategy:
    if name == "multi_worker":
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except _PEER_ERRORS as error:
            # TensorFlow waits an hour for who does not come; one that came and is gone again will be back.
            came = isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError))
            kind = TryAgain if came else UserError  # an internal error may be a device's
            raise kind(
                f"the workers of {_TF_CONFIG} do not find each other ({one_line(error)[:200]}); start the command on "
                "all of them, and open their ports"
            ) from error
    devices = [device.name for device in _devices()]
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)


def _devices() -> list[tf.config.LogicalDevice]:
    """All GPUs, or else all CPUs."""
    return tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")


def _check_gpus() -> None:
    """Training on the CPU unasked would take a hundred times as long.

    Raises:
        UserError: there is a GPU that TensorFlow cannot use.
    """
    there = os.path.exists(_NVIDIA_DEVICE) and "CUDA_VISIBLE_DEVICES" not in os.environ
    if there and not tf.config.list_physical_devices("GPU"):
        raise UserError(
            f"this machine has an NVIDIA device ({_NVIDIA_DEVICE}) but TensorFlow finds no GPU: install its CUDA "
            "libraries with 'make gpu', or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def _workers() -> list[str]:
    """The addresses of the workers that TF_CONFIG names; none without one.

    Raises:
        UserError: it cannot be used.
    """
    if not (text := os.environ.get(_TF_CONFIG)):
        return []
    try:
        config = json.loads(text)
        addresses = {role: list(map(str, own)) for role, own in config["cluster"].items()}
        workers = {role: len(own) for role, own in addresses.items()}
        role, index = config["task"]["type"], config["task"]["index"]
        if not workers.keys() <= {"chief", "worker"} or not 0 <= index < workers[role]:
            raise ValueError(f"task {role} {index} of {workers}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{_TF_CONFIG} is {text[:200]!r} ({error}); give it a cluster of 'worker' addresses and this task's type "
            "and index, as in README.md"
        ) from error
    return list(itertools.chain(*addresses.values()))
