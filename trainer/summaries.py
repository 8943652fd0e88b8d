"""What TensorBoard shows of a run."""

import dataclasses
import os
import resource
import tempfile

import tensorflow as tf
from ml_collections import ConfigDict
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from pipeline import color_tf
from pipeline.config import fields
from trainer import files

FOLDER = "tensorboard"
_LARGEST_BYTES = 4 << 20  # of a file of events that is copied


@dataclasses.dataclass(frozen=True)
class Validation:
    """Means over the examples of the validation split."""

    loss: float
    psnr: float  # dB
    colorfulness: float  # of the predictions
    true_colorfulness: float


class Summaries:
    """Writes the events of a run. The tags are all here.

    | tag                            | kind    | when              |                                              |
    |--------------------------------|---------|-------------------|----------------------------------------------|
    | `loss`                         | scalar  | every step        |                                              |
    | `learning_rate`                | scalar  | every step        |                                              |
    | `gradient_norm`                | scalar  | every step        | of the whole batch, before it is limited     |
    | `images_per_second`            | scalar  | every few steps   |                                              |
    | `waiting_for_data`             | scalar  | every few steps   | part of the time, at most, from 0 to 1       |
    | `memory_mib`                   | scalar  | every few steps   | the peak, of a GPU or else of the process    |
    | `validation/loss`              | scalar  | every epoch       |                                              |
    | `validation/psnr`              | scalar  | every epoch       | dB                                           |
    | `validation/colorfulness`      | scalar  | every epoch       | of predictions; see `trainer.metrics`        |
    | `validation/true_colorfulness` | scalar  | every epoch       |                                              |
    | `panel`                        | images  | every epoch       | gray, predicted, true                        |
    | `config`                       | text    | when a run starts |                                              |
    | hyperparameters                | hparams | when a run starts | to compare runs by their last scalars        |

    Events of a remote directory are written to a local one, and copied when they are flushed; there is a new file once
    one is long, so that a flush has little to copy.

    A step may still be at work while the next batch is waited for: `waiting_for_data` is the most that can be lost.

    Args:
        workdir: of the run.
        is_chief: whether this process is the one that writes.
    """

    def __init__(self, workdir: str, is_chief: bool):
        self.folder = tf.io.gfile.join(workdir, FOLDER)
        self._copy: tempfile.TemporaryDirectory | None = None
        if not is_chief:
            self._writer = tf.summary.create_noop_writer()
            return
        if "://" in workdir:
            self._copy = tempfile.TemporaryDirectory()
            self._remote, self.folder = self.folder, self._copy.name
        with files.writing(self.folder):
            self._writer = tf.summary.create_file_writer(self.folder)

    def config(self, config: ConfigDict, text: str) -> None:
        """Shows the resolved configuration: as hyperparameters, and as JSON."""
        of_run = {name: value for name, value in fields(config).items() if not name.startswith("dataset.")}
        texts = {name: str(value) for name, value in of_run.items() if isinstance(value, tuple | list)}
        shown = {name: value for name, value in (of_run | texts).items() if isinstance(value, bool | int | float | str)}
        with self._writer.as_default():
            tf.summary.text("config", f"```json\n{text}\n```", 0)
            hparams.hparams(shown)

    def training(self, step: int, loss: float, learning_rate: float, gradient_norm: float) -> None:
        """Records one training step."""
        self._scalars(step, {"loss": loss, "learning_rate": learning_rate, "gradient_norm": gradient_norm})

    def speed(self, step: int, images_per_second: float, waiting_for_data: float) -> None:
        """Records how fast the last steps were, which part of their time was spent waiting, and the memory."""
        values = {"images_per_second": images_per_second, "waiting_for_data": waiting_for_data}
        self._scalars(step, {**values, "memory_mib": _peak_memory()})

    def validation(self, step: int, values: Validation) -> None:
        """Records what the validation split says of a step."""
        self._scalars(step, {f"validation/{name}": value for name, value in dataclasses.asdict(values).items()})

    def panel(self, step: int, pictures: tf.Tensor) -> None:
        """Shows pictures: uint8 [N, height, width, 3]."""
        with self._writer.as_default():
            tf.summary.image("panel", pictures, step, max_outputs=pictures.shape[0])

    def flush(self) -> None:
        """Makes all that was recorded visible to TensorBoard.

        Raises:
            UserError: the events cannot be written.
        """
        with files.writing(self.folder if self._copy is None else self._remote):
            self._writer.flush()
            if self._copy is not None:
                _synchronize(self.folder, self._remote)
                self._begin_another_file()

    def _begin_another_file(self) -> None:
        """Leaves a file that is long and copied."""
        written = [entry for entry in os.scandir(self.folder) if entry.is_file()]
        if sum(entry.stat().st_size for entry in written) > _LARGEST_BYTES:
            self._writer.close()
            for entry in written:
                os.remove(entry.path)
            self._writer = tf.summary.create_file_writer(self.folder)

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        """All in one record: TensorFlow's own way takes longer for each than a small step should wait."""
        summary = Summary()
        for tag, value in values.items():
            summary.MergeFrom(scalar_pb(tag, value))
        with self._writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)


def side_by_side(lightness: tf.Tensor, predicted_ab: tf.Tensor, true_ab: tf.Tensor) -> tf.Tensor:
    """Draws gray, predicted and true color of each example in a row.

    Args:
        lightness: float32 [N, H, W, 1] in [-1, 1].
        predicted_ab: float32 [N, H, W, 2] in [-1, 1].
        true_ab: float32 [N, H, W, 2] in [-1, 1].

    Returns:
        uint8 [N, H, 3 W, 3].
    """
    colors = (tf.zeros_like(true_ab), predicted_ab, true_ab)
    return tf.concat([color_tf.normalized_to_rgb(lightness, ab) for ab in colors], axis=2)


def _peak_memory() -> float:
    """MiB: the most that any GPU has held, or else this process."""
    if gpus := tf.config.list_logical_devices("GPU"):
        names = [gpu.name.removeprefix("/device:") for gpu in gpus]
        return max(tf.config.experimental.get_memory_info(name)["peak"] for name in names) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _synchronize(source: str, target: str) -> None:
    """Copies the files that are longer in one folder than in another."""
    for folder, _, names in os.walk(source):
        own = tf.io.gfile.join(target, os.path.relpath(folder, source)) if folder != source else target
        tf.io.gfile.makedirs(own)
        for name in names:
            path, copy = os.path.join(folder, name), tf.io.gfile.join(own, name)
            if not tf.io.gfile.exists(copy) or tf.io.gfile.stat(copy).length != os.path.getsize(path):
                tf.io.gfile.copy(path, copy, overwrite=True)
