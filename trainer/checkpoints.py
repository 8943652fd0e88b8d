"""The state of a run: written aside, read back, then renamed; and read from the newest checkpoint that is whole."""

import dataclasses
import logging
import re
import uuid

import keras
import msgspec
import tensorflow as tf

from pipeline import files as pipeline_files
from pipeline.errors import UserError, one_line
from trainer import files

_LOGGER = logging.getLogger(__name__)
_FOLDER = "checkpoints"
_NAME = re.compile(r"^step-(\d{8})/?$")
_WRITING = "writing-"
_PREFIX = "state"
_METRICS = "metrics.json"
# A store that does not answer says nothing of what it holds.
_UNREACHABLE = (
    tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError,
    tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError,
)  # fmt: skip


class _Damaged(UserError):
    """A checkpoint that is not what was written, or of another model."""


class Checkpoints:
    """The checkpoints of a working directory."""

    def __init__(self, workdir: str):
        self._folder = tf.io.gfile.join(workdir, _FOLDER)

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in ascending order."""
        names = tf.io.gfile.listdir(self._folder) if tf.io.gfile.isdir(self._folder) else []
        return sorted(int(match[1]) for name in names if (match := _NAME.match(name)))

    def validation_loss(self, step: int) -> float | None:
        """The validation loss that was recorded for a step; None, if none was."""
        try:
            with tf.io.gfile.GFile(self._path(step, _METRICS), "rb") as file:
                return msgspec.json.decode(file.read(), type=_Metrics).validation_loss
        except (tf.errors.OpError, msgspec.MsgspecError):  # of no step, or of a damaged one
            return None

    def best(self) -> int | None:
        """The step of the lowest validation loss, the newest of equal ones; None, if none was recorded."""
        losses = {step: loss for step in self.steps() if (loss := self.validation_loss(step)) is not None}
        return min(reversed(losses), key=losses.__getitem__, default=None)

    def record(self, step: int, validation_loss: float) -> None:
        """Says what the checkpoint of a step is worth.

        Raises:
            UserError: it cannot be written.
        """
        pipeline_files.write(self._path(step, _METRICS), msgspec.json.encode(_Metrics(validation_loss)))

    def save(self, step: int, network: keras.Model, optimizer: keras.Optimizer, keep: int) -> None:
        """Writes a checkpoint and deletes all but the `keep` newest and the best.

        Raises:
            UserError: it cannot be written; those before are as they were.
        """
        with files.writing(f"checkpoint {self._path(step)}"):
            self._save(step, network, optimizer)
            for later in (each for each in self.steps() if each > step):  # damaged, or the run had gone on from it
                tf.io.gfile.rmtree(self._path(later))
            kept = {*self.steps()[-max(1, keep) :], self.best()}
            for old in set(self.steps()) - kept:
                tf.io.gfile.rmtree(self._path(old))

    def _save(self, step: int, network: keras.Model, optimizer: keras.Optimizer) -> None:
        for abandoned in tf.io.gfile.glob(tf.io.gfile.join(self._folder, f"{_WRITING}*")):
            tf.io.gfile.rmtree(abandoned)  # by a process that was killed: a run is written by one
        temporary = tf.io.gfile.join(self._folder, f"{_WRITING}{uuid.uuid4().hex}")
        tf.io.gfile.makedirs(temporary)
        prefix = tf.io.gfile.join(temporary, _PREFIX)
        tf.train.Checkpoint(network=network, optimizer=optimizer, step=tf.Variable(step, dtype=tf.int64)).write(prefix)
        _read_all(prefix)
        if tf.io.gfile.exists(self._path(step)):  # a damaged one, which was passed over
            tf.io.gfile.rmtree(self._path(step))
        tf.io.gfile.rename(temporary, self._path(step))

    def restore(self, network: keras.Model, optimizer: keras.Optimizer | None = None) -> int | None:
        """Loads the newest whole checkpoint into a network and, to go on training, into its built optimizer.

        Those that are damaged are passed over, and the log says so.

        Returns:
            The step; None, if there is no checkpoint.

        Raises:
            UserError: there are some, but each is damaged or of another model, or they cannot be reached.
        """
        failure: _Damaged | None = None
        for step in reversed(self.steps()):
            try:
                self._restore(step, network, optimizer)
            except _Damaged as error:
                failure = failure or error
                continue
            if failure is not None:
                _LOGGER.warning("WARNING: %s; the one of step %d is taken in its place", failure, step)
            return step
        if failure is not None:
            raise UserError(f"{failure}, and there is none before it that is whole; name another --workdir")
        return None

    def _restore(self, step: int, network: keras.Model, optimizer: keras.Optimizer | None) -> None:
        path = self._path(step)
        state = {"network": network, "step": (found := tf.Variable(0, dtype=tf.int64))}
        if optimizer is not None:
            state["optimizer"] = optimizer
        try:
            status = tf.train.Checkpoint(**state).read(tf.io.gfile.join(path, _PREFIX))
            status.assert_existing_objects_matched().expect_partial()
            if int(found.numpy()) != step:
                raise ValueError(f"it holds step {int(found.numpy())}")
        except _UNREACHABLE as error:
            raise UserError(f"checkpoint {path} cannot be read: {one_line(error)[:200]}; start again") from error
        except Exception as error:  # TensorFlow has no error of its own for a damaged checkpoint
            raise _Damaged(f"checkpoint {path} is damaged or of another model: {one_line(error)[:200]}") from error

    def _path(self, step: int, *names: str) -> str:
        return tf.io.gfile.join(self._folder, f"step-{step:08d}", *names)


@dataclasses.dataclass(frozen=True)
class _Metrics:
    """What is known of a checkpoint's worth."""

    validation_loss: float


def _read_all(prefix: str) -> None:
    """Reads what was written, tensor by tensor; TensorFlow compares the checksum of each.

    Raises:
        DataLossError: one differs.
    """
    reader = tf.compat.v1.train.NewCheckpointReader(prefix)
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)
