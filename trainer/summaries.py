"""What TensorBoard shows of a run."""

import tensorflow as tf

from pipeline import color_tf
from trainer import files

_FOLDER = "tensorboard"


class Summaries:
    """Writes the events of a run. The tags are all here.

    | tag                 | kind   | when                |
    |---------------------|--------|---------------------|
    | `loss`              | scalar | every step          |
    | `learning_rate`     | scalar | every step          |
    | `gradient_norm`     | scalar | every step          |
    | `images_per_second` | scalar | every few steps     |
    | `waiting_for_data`  | scalar | every few steps     |
    | `validation_loss`   | scalar | every epoch         |
    | `panel`             | images | every epoch         |
    | `config`            | text   | when a run starts   |
    """

    def __init__(self, workdir: str, is_chief: bool):
        self._folder = tf.io.gfile.join(workdir, _FOLDER)
        if not is_chief:  # one process writes for all
            self._writer = tf.summary.create_noop_writer()
            return
        with files.writing(self._folder):
            self._writer = tf.summary.create_file_writer(self._folder)

    def config(self, text: str, step: int) -> None:
        """Shows the resolved configuration, JSON."""
        with self._writer.as_default():
            tf.summary.text("config", f"```json\n{text}\n```", step)

    def training(self, step: int, loss: float, learning_rate: float, gradient_norm: float) -> None:
        """Records one training step; the norm is that of the whole batch's gradient, before it is limited."""
        with self._writer.as_default():
            tf.summary.scalar("loss", loss, step)
            tf.summary.scalar("learning_rate", learning_rate, step)
            tf.summary.scalar("gradient_norm", gradient_norm, step)

    def speed(self, step: int, images_per_second: float, waiting_for_data: float) -> None:
        """Records how fast the last steps were, and which part of their time, from 0 to 1, they waited for data."""
        with self._writer.as_default():
            tf.summary.scalar("images_per_second", images_per_second, step)
            tf.summary.scalar("waiting_for_data", waiting_for_data, step)

    def validation(self, step: int, loss: float) -> None:
        """Records the loss over the validation split."""
        with self._writer.as_default():
            tf.summary.scalar("validation_loss", loss, step)

    def panel(self, step: int, pictures: tf.Tensor) -> None:
        """Shows pictures: uint8 [N, height, width, 3]."""
        with self._writer.as_default():
            tf.summary.image("panel", pictures, step, max_outputs=pictures.shape[0])

    def flush(self) -> None:
        """Makes all that was recorded visible to TensorBoard.

        Raises:
            UserError: the events cannot be written.
        """
        with files.writing(self._folder):
            self._writer.flush()


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
