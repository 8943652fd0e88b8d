"""A trained model applied to pictures of any size."""

import abc
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from pipeline import color, image, tensors
from pipeline.errors import UsageError, UserError
from pipeline.image import ResizeMode
from trainer import trained
from trainer.models.base import ColorModel
from trainer.trained import Trained

# Pictures that are colorized together, and how many pixels these may have in all, unless one alone has more: whoever
# colorizes many has up to three batches in memory.
BATCH = 8
PIXELS = 32 << 20
# Converted at a time: Lab takes 50 times the memory of the picture, and of so many pixels it stays in the cache.
_STRIP_PIXELS = 1 << 14
_TILE = 1024  # rows and columns that the network is shown at a time, besides those around them
_MOST_SATURATION = 10
_STRIDE = 8  # a network takes multiples of it


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a model is shown of a picture.

    Attributes:
        rgb: the picture: uint8 [height, width, 3].
        l_299: float32 [299, 299, 3] in [-1, 1].
        l_224: float32 [224, 224, 1] in [-1, 1]; None where the network is to be shown the picture in its own size.
    """

    rgb: np.ndarray
    l_299: np.ndarray
    l_224: np.ndarray | None


class Colorizer(abc.ABC):
    """Colorizes pictures in three steps, of which only the second is for one thread, and for many pictures at a time.

    Args:
        model: a trained one.
        resize_mode: how pictures became square in its dataset.
        saturation: what the predicted a and b are multiplied by.
    """

    def __init__(self, model: ColorModel, resize_mode: ResizeMode, saturation: float = 1.0):
        self._model = model
        self._resize_mode = whole(resize_mode)
        self._saturation = saturation

    @abc.abstractmethod
    def prepare(self, rgb: np.ndarray) -> Prepared:
        """Computes what the model is shown of a picture, uint8 [height, width, 3]; only its lightness is used."""

    @abc.abstractmethod
    def predict(self, batch: Sequence[Prepared]) -> list[np.ndarray]:
        """Predicts the color of one picture or more: floating [h, w, 2], the normalized a and b, each for `join`."""

    def join(self, rgb: np.ndarray, ab: np.ndarray) -> np.ndarray:
        """Gives a picture another color.

        Args:
            rgb: uint8 [height, width, 3], of which the lightness is kept.
            ab: floating [h, w, 2], normalized: of the whole picture, in any size.

        Returns:
            uint8 [height, width, 3].
        """
        height, width = rgb.shape[:2]
        result = np.empty_like(rgb)
        rows = max(1, _STRIP_PIXELS // width)
        for top, strip in zip(range(0, height, rows), _strips(ab, height, width, rows), strict=True):
            own = slice(top, top + rows)
            lightness = color.rgb_to_l(rgb[own])[..., None]
            result[own] = color.lab_to_rgb(
                np.concatenate([lightness, color.denormalize_ab(self._saturation * strip)], axis=-1)
            )
        return result

    def colorize(self, pictures: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Colorizes pictures as one batch.

        Args:
            pictures: one or more, uint8 [height, width, 3], of any sizes; only their lightness is used.

        Yields:
            uint8 [height, width, 3] of the same sizes, in order.
        """
        predicted = self.predict([self.prepare(picture) for picture in pictures])
        yield from map(self.join, pictures, predicted)

    @tf.function(reduce_retracing=True)
    def _ab(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return self._model.ab(self._model.outputs(batch, training=False))


class FixedSizeColorizer(Colorizer):
    """Shows the network pictures of the size of those that it was trained on."""

    def prepare(self, rgb: np.ndarray) -> Prepared:
        """The picture as it would stand in the dataset."""
        inputs = tensors.from_image(rgb, self._resize_mode)
        return Prepared(rgb, inputs["l_299"], inputs["l_224"])

    def predict(self, batch: Sequence[Prepared]) -> list[np.ndarray]:
        """All pictures in one call: float32, without what a picture was padded with."""
        inputs = {name: tf.stack([getattr(each, name) for each in batch]) for name in ("l_224", "l_299")}
        return [self.unpad(ab, *each.rgb.shape[:2]) for ab, each in zip(self._ab(inputs).numpy(), batch, strict=True)]

    def unpad(self, ab: np.ndarray, height: int, width: int) -> np.ndarray:
        """What the network predicted, [224, 224, 2], without what a picture of this size was padded with."""
        return ab[image.window(height, width, tensors.ENCODER_SIZE, self._resize_mode)]


class NativeSizeColorizer(Colorizer):
    """Shows a network that is fully convolutional pictures in their own size, the extractor as it was trained.

    Large pictures go in tiles that overlap by as much as a pixel's color depends on, so that no seam can be seen.
    """

    def prepare(self, rgb: np.ndarray) -> Prepared:
        """What the extractor is shown; the rest is done tile by tile."""
        l_299 = color.rgb_to_normalized_l(image.fit(rgb, tensors.EXTRACTOR_SIZE, self._resize_mode))[..., None]
        return Prepared(rgb, np.broadcast_to(l_299, tensors.SHAPES["l_299"]), None)

    def predict(self, batch: Sequence[Prepared]) -> list[np.ndarray]:
        """Picture by picture, for their sizes differ: float16, since the whole is as large as the picture."""
        return [self._predict(each) for each in batch]

    def _predict(self, prepared: Prepared) -> np.ndarray:
        height, width = prepared.rgb.shape[:2]
        ab = np.empty((height, width, 2), np.float16)
        for top, left in itertools.product(range(0, height, _TILE), range(0, width, _TILE)):
            rows, columns = self._around(top, height), self._around(left, width)
            lightness = color.rgb_to_normalized_l(prepared.rgb[rows, columns])
            lightness = np.pad(lightness, [(0, -side % _STRIDE) for side in lightness.shape], mode="edge")
            inputs = {"l_224": lightness[None, ..., None], "l_299": prepared.l_299[None]}
            predicted = self._ab({name: tf.constant(values) for name, values in inputs.items()}).numpy()[0]
            bottom, right = min(top + _TILE, height), min(left + _TILE, width)
            ab[top:bottom, left:right] = predicted[
                top - rows.start : bottom - rows.start, left - columns.start : right - columns.start
            ]
        return ab

    def _around(self, start: int, size: int) -> slice:
        """A tile's rows or columns, and those on both sides that its colors depend on."""
        assert self._model.margin is not None
        return slice(max(0, start - self._model.margin), min(size, start + _TILE + self._model.margin))


def whole(mode: ResizeMode) -> ResizeMode:
    """How a picture is shown to a model, by how pictures became square in its dataset.

    One trained on squares cut from pictures is shown the whole of one: what was cut off needs color too.
    """
    return ResizeMode.STRETCH if mode is ResizeMode.CROP else mode


def define_flags(values: flags.FlagValues) -> None:
    """Adds the options of all programs that colorize."""
    flags.DEFINE_float(
        "saturation", 1.0, "What colors are multiplied by: 1.3 makes timid ones bolder.", flag_values=values
    )
    flags.DEFINE_boolean(
        "native_size", False, "Shows the network pictures in their own size in place of 224x224: finer borders of "
        "colors, at a cost that grows with the picture.", flag_values=values,
    )  # fmt: skip


def check_flags(values: flags.FlagValues) -> None:
    """Looks at the options that `define_flags` added.

    Raises:
        UsageError: one out of range.
    """
    if not 0 < values.saturation <= _MOST_SATURATION:
        raise UsageError(f"--saturation={values.saturation:g}; choose above 0, at most {_MOST_SATURATION}")


def load(work_dir: str, saturation: float = 1.0, native_size: bool = False) -> Colorizer:
    """Loads the last checkpoint of a run.

    Args:
        work_dir: of the run.
        saturation: what the predicted a and b are multiplied by.
        native_size: show the network pictures in their own size.

    Raises:
        UserError: there is no run, no checkpoint, or one that cannot be read; or its network takes one size only.
    """
    return create(trained.load(work_dir), saturation, native_size)


def create(run: Trained, saturation: float, native_size: bool) -> Colorizer:
    """Makes a colorizer of a run's model; the arguments are those of `load`.

    Raises:
        UserError: its network takes one size only.
    """
    if native_size and run.model.margin is None:
        name = run.config.model.name
        raise UserError(f"--native_size: the network of model '{name}' takes one size only; leave it out")
    return (NativeSizeColorizer if native_size else FixedSizeColorizer)(run.model, run.dataset.resize_mode, saturation)


def _strips(ab: np.ndarray, height: int, width: int, rows: int) -> Iterator[np.ndarray]:
    """Resamples a and b some rows at a time: an axis that shrinks takes the mean over the area, others go linearly.

    Args:
        ab: floating [h, w, 2].
        height: rows of all strips together.
        width: columns of the strips.
        rows: of a strip; the last one may have fewer.

    Yields:
        float32 [rows, width, 2].
    """
    if ab.shape[:2] != (height, width):
        ab = image.resize(np.ascontiguousarray(ab, np.float32), min(ab.shape[0], height), width)
    for top in range(0, height, rows):
        count = min(rows, height - top)
        if ab.shape[0] == height:
            yield ab[top : top + count].astype(np.float32)
            continue
        # Centers of pixels meet as in OpenCV's linear interpolation, which cannot give some rows of a result.
        place = np.clip((np.arange(top, top + count) + 0.5) * (ab.shape[0] / height) - 0.5, 0, ab.shape[0] - 1)
        above = place.astype(int)
        below = np.minimum(above + 1, ab.shape[0] - 1)
        part = (place - above).astype(np.float32)[:, None, None]
        yield ab[above] * (1 - part) + ab[below] * part
