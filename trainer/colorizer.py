"""A trained model applied to pictures of any size."""

from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow as tf

from pipeline import color, image, tensors
from pipeline.errors import UserError
from pipeline.image import ResizeMode
from trainer import models, workdir
from trainer.checkpoints import Checkpoints
from trainer.models.base import ColorModel

_STRIP_ROWS = 64  # converted at a time: Lab takes up to 50 times the memory of the picture


class Colorizer:
    """Predicts color at the network's size and joins it to each picture's own lightness."""

    def __init__(self, model: ColorModel, resize_mode: ResizeMode):
        self._model = model
        # A model trained on squares cut from pictures is shown the whole of one: what was cut off needs color too.
        self._resize_mode = ResizeMode.STRETCH if resize_mode is ResizeMode.CROP else resize_mode

    @classmethod
    def load(cls, work_dir: str) -> "Colorizer":
        """Loads the last checkpoint of a run.

        Raises:
            UserError: there is no run, no checkpoint, or one that cannot be read.
        """
        config, dataset = workdir.load(work_dir)
        checkpoints = Checkpoints(work_dir)
        if not checkpoints.steps():
            raise UserError(f"--workdir={work_dir} holds no checkpoint yet; one is written after each epoch")
        model = models.create(config.model, config.seed)
        checkpoints.restore(model.network)
        return cls(model, dataset.resize_mode)

    def colorize(self, pictures: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Colorizes pictures as one batch.

        Args:
            pictures: uint8 [height, width, 3], of any sizes; only their lightness is used.

        Yields:
            uint8 [height, width, 3] of the same sizes, in order.
        """
        if not pictures:
            return
        inputs = [tensors.from_image(picture, self._resize_mode) for picture in pictures]
        batch = {name: tf.stack([values[name] for values in inputs]) for name in ("l_224", "l_299")}
        predicted = self._predict(batch).numpy()
        for picture, ab in zip(pictures, predicted, strict=True):
            yield self._join(picture, ab)

    @tf.function(reduce_retracing=True)
    def _predict(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return self._model.ab(self._model.outputs(batch, training=False))

    def _join(self, picture: np.ndarray, ab: np.ndarray) -> np.ndarray:
        """The picture's lightness [H, W] and the predicted ab [224, 224, 2] in [-1, 1] to RGB [H, W, 3]."""
        height, width = picture.shape[:2]
        ab = ab[image.window(height, width, tensors.ENCODER_SIZE, self._resize_mode)]
        ab = cv2.resize(np.ascontiguousarray(ab), (width, height), interpolation=cv2.INTER_LINEAR)
        result = np.empty_like(picture)
        for top in range(0, height, _STRIP_ROWS):
            rows = slice(top, top + _STRIP_ROWS)
            lightness = color.rgb_to_l(picture[rows])[..., None]
            result[rows] = color.lab_to_rgb(np.concatenate([lightness, color.denormalize_ab(ab[rows])], axis=-1))
        return result
