"""The state of a run: written aside, read back, then renamed; and read from the newest checkpoint that is whole.

Those of a remote run are written and read here, and copied as files: TensorFlow would ask for each of some hundred
tensors by itself, and its renaming of remote folders does not survive a request that fails.
"""

import dataclasses
import logging
import os
import re

import keras
import msgspec
import tensorflow as tf

from pipeline import files as pipeline_files
from pipeline.errors import UserError, one_line
from trainer import files

_LOGGER = logging.getLogger(__name__)
_FOLDER = "checkpoints"
_NAME = re.compile(r"^step-(\d{8})/?$")
_PREFIX = "state"
_METRICS = "metrics.json"
_INDEX = f"{_PREFIX}.index"


class _Damaged(UserError):
    """A checkpoint that is not what was written, or of another model."""


class _Incomplete(_Damaged):
    """A checkpoint whose files were not all put in their place: a remote folder is renamed file by file."""


class Checkpoints:
    """The checkpoints of a working directory."""

    def __init__(self, workdir: str):
        self._folder = tf.io.gfile.join(workdir, _FOLDER)
        self._passed_over: list[int] = []

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in ascending order.

        Raises:
            UserError: the store does not say.
        """
        return [step for step, is_complete in self._found(self._names()).items() if is_complete]

    def _found(self, names: list[str]) -> dict[int, bool]:
        """The steps that have a folder, in ascending order, and whether it holds the file that comes there last."""
        steps = sorted(int(match[1]) for name in names if (match := _NAME.match(name)))
        with files.reading(self._folder):
            return {step: tf.io.gfile.exists(self._path(step, _INDEX)) for step in steps}

    def _names(self) -> list[str]:
        try:
            with files.reading(self._folder):
                return pipeline_files.names(self._folder)
        except FileNotFoundError:
            return []

    def validation_loss(self, step: int) -> float | None:
        """The validation loss that was recorded for a step; None, if none was.

        Raises:
            UserError: the store does not say.
        """
        path = self._path(step, _METRICS)
        try:
            with files.reading(path), tf.io.gfile.GFile(path, "rb") as file:
                return msgspec.json.decode(file.read(), type=_Metrics).validation_loss
        except (tf.errors.NotFoundError, msgspec.MsgspecError):  # of no step, or of a damaged one
            return None

    def best(self) -> int | None:
        """The step of the lowest validation loss, the newest of equal ones; None, if none was recorded."""
        return self._best(self.steps())

    def _best(self, steps: list[int]) -> int | None:
        losses = {step: loss for step in steps if (loss := self.validation_loss(step)) is not None}
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
            UserError: it cannot be written, or another run has gone further in this directory; those before are as
                they were.
        """
        names = self._names()
        found = self._found(names)
        others = [each for each, is_complete in found.items() if is_complete and each not in self._passed_over]
        if later := [each for each in others if each > step]:
            raise UserError(
                f"{self._path(later[-1])} is of a later step than {step}, which this run has reached: another process "
                "trains in the same --workdir; stop one of them"
            )
        with files.writing(f"checkpoint {self._path(step)}"):
            self._delete_abandoned(names)
            self._save(step, network, optimizer, damaged=step in found)
            for damaged in (found.keys() & self._passed_over) - {step}:
                self._delete(damaged)
            self._passed_over.clear()
            steps = sorted({step, *others})
            for old in set(steps) - {*steps[-max(1, keep) :], self._best(steps)}:
                self._delete(old)

    def _delete_abandoned(self, names: list[str]) -> None:
        """What a process left that was killed: a run is written by one."""
        for name in filter(pipeline_files.TEMPORARY.search, names):
            pipeline_files.remove_folder(os.path.join(self._folder, name))

    def _save(self, step: int, network: keras.Model, optimizer: keras.Optimizer, damaged: bool) -> None:
        with pipeline_files.folder_aside(self._path(step), last=_INDEX) as folder:
            prefix = os.path.join(folder, _PREFIX)
            state = tf.train.Checkpoint(network=network, optimizer=optimizer, step=tf.Variable(step, dtype=tf.int64))
            state.write(prefix)
            _read_all(prefix)
            if damaged:
                self._delete(step)

    def _delete(self, step: int) -> None:
        pipeline_files.remove_folder(self._path(step), first=_INDEX)

    def restore(self, network: keras.Model, optimizer: keras.Optimizer | None = None) -> int | None:
        """Loads the newest whole checkpoint into a network and, to go on training, into its built optimizer.

        Those that are damaged are passed over, and the log says so; `save` deletes them.

        Returns:
            The step; None, if there is no checkpoint, or none but such as were never complete.

        Raises:
            UserError: there are some, but each is damaged or of another model, or they cannot be read.
        """
        failures: list[_Damaged] = []
        for step, is_complete in reversed(self._found(self._names()).items()):
            try:
                if not is_complete:
                    raise _Incomplete(f"checkpoint {self._path(step)} is incomplete")
                self._restore(step, network, optimizer)
            except _Damaged as error:
                failures.append(error)
                self._passed_over.append(step)
                continue
            if failures:
                _LOGGER.warning("WARNING: %s; the one of step %d is taken in its place", failures[0], step)
            return step
        if all(isinstance(failure, _Incomplete) for failure in failures):
            for failure in failures:
                _LOGGER.warning("WARNING: %s, and there is none before it", failure)
            return None
        raise UserError(f"{failures[0]}, and there is none before it that is whole; name another --workdir")

    def _restore(self, step: int, network: keras.Model, optimizer: keras.Optimizer | None) -> None:
        path = self._path(step)
        state = {"network": network, "step": (found := tf.Variable(0, dtype=tf.int64))}
        if optimizer is not None:
            state["optimizer"] = optimizer
        try:
            with files.reading(f"checkpoint {path}"), pipeline_files.local_folder(path) as folder:
                with open(os.path.join(folder, _INDEX), "rb") as file:
                    file.read()  # whether the disk answers: the reader of checkpoints does not tell
                status = tf.train.Checkpoint(**state).read(os.path.join(folder, _PREFIX))
                status.assert_existing_objects_matched().expect_partial()
            if int(found.numpy()) != step:
                raise ValueError(f"it holds step {int(found.numpy())}")
        except UserError:
            raise
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
