"""How good a model is on pictures, beside two baselines that know nothing of a picture, with intervals."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from pipeline import color, color_counts, color_tf, tensors
from pipeline.color_counts import ColorCounts
from pipeline.example import Example
from trainer import metrics
from trainer.models.base import ColorModel

MODEL, GRAY, MEAN_COLOR = "model", "gray", "mean color"
METHODS = (MODEL, GRAY, MEAN_COLOR)
# How much more the model has than each baseline on the same pictures: pictures differ by more than methods do, so that
# intervals of two methods overlap where that of their difference leaves no doubt.
DIFFERENCES = tuple(f"{MODEL} - {baseline}" for baseline in METHODS[1:])
_BATCH = 16
_RESAMPLES = 2000
_CONFIDENCE = 0.95
_SEED = 1
_TENSORS = ("l_224", "l_299", "ab_224")
# Of a picture; the last two are sums of which only the ratio over many pictures says something.
_COLUMNS = ("mse", "psnr", "ssim", "colorfulness", "ab_error", "balanced_error", "weight")


@dataclasses.dataclass(frozen=True)
class Measured:
    """One picture, and what was measured of it.

    Attributes:
        key: its name.
        source: the kind of collection that it is of.
        label: its class, or "".
        colorfulness: of the truth.
        values: float64 [methods, columns], as `METHODS` and `_COLUMNS`.
        pictures: uint8 [224, 3 * 224, 3]: gray, predicted, true.
    """

    key: str
    source: str
    label: str
    colorfulness: float
    values: np.ndarray
    pictures: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """What was measured of each method: float64 [methods]."""
        return self.values[:, _COLUMNS.index(name)]

    def without_pictures(self) -> "Measured":
        """What there is memory for, of any number of pictures."""
        return dataclasses.replace(self, pictures=self.pictures[:0].copy())

    def to_dict(self) -> dict[str, object]:
        """As JSON: the truth's colorfulness, and what was measured of each method."""
        measured = {
            method: dict(zip(_COLUMNS, row, strict=True))
            for method, row in zip(METHODS, self.values.tolist(), strict=True)
        }
        return {
            "key": self.key,
            "source": self.source,
            "label": self.label,
            "colorfulness": self.colorfulness,
        } | measured


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure, and between which two it lies."""

    value: float
    low: float
    high: float


def protocol(resize_mode: str, count: int) -> dict[str, object]:
    """What the figures mean; they can be compared with others of the same."""
    return {
        "pictures": count,
        "size": f"{tensors.ENCODER_SIZE}x{tensors.ENCODER_SIZE} pixels, resize mode {resize_mode}",
        "mse": "mean squared error of a / 128 and b / 128",
        "psnr": "dB, over red, green and blue from 0 to 255, with the lightness of the truth; at most 100",
        "ssim": "of the same, mean over channels, Gaussian window of 11 pixels and a standard deviation of 1.5",
        "colorfulness": "M3 of Hasler and Suesstrunk, 2003",
        "auc": "percent under the cumulative curve of the distance of a and b, in Lab units, up to 150",
        "balanced_auc": "the same with pixels weighted by how rare their color is in the train split: bins of 10 Lab "
        "units, smoothed by 5",
        "interval": f"{_CONFIDENCE:.0%}, {_RESAMPLES} bootstrap samples of pictures, seed {_SEED}",
    }


class Evaluator:
    """Measures pictures.

    Args:
        model: a trained one.
        colors: of the pictures that it was trained on.
    """

    def __init__(self, model: ColorModel, colors: ColorCounts):
        self._model = model
        self._weights = color_counts.weights(colors)
        self._mean = color.normalize_ab(np.array(colors.mean, np.float32))

    def measure(self, examples: Iterable[Example]) -> Iterator[Measured]:
        """Measures each of some pictures, a batch at a time."""
        batch: list[Example] = []
        for example in examples:
            batch.append(example)
            if len(batch) == _BATCH:
                yield from self._measure(batch)
                batch = []
        if batch:
            yield from self._measure(batch)

    def _measure(self, examples: Sequence[Example]) -> Iterator[Measured]:
        batch = {name: np.stack([each.tensors[name] for each in examples]) for name in _TENSORS}
        weights = self._weights[color_counts.bins(color.denormalize_ab(batch["ab_224"]))].astype(np.float32)
        values, colorfulness, pictures = (
            each.numpy() for each in self._compute({name: tf.constant(each) for name, each in batch.items()}, weights)
        )
        for example, *own in zip(examples, colorfulness.tolist(), values.astype(np.float64), pictures, strict=True):
            yield Measured(example.key, example.source, example.label, *own)

    @tf.function(reduce_retracing=True)
    def _compute(self, batch: dict[str, tf.Tensor], weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Float32 [N, methods, columns], [N], and uint8 [N, 224, 3 * 224, 3]."""
        lightness, true_ab = batch["l_224"], batch["ab_224"]
        predicted = self._model.ab(self._model.outputs(batch, training=False))
        gray = tf.zeros_like(true_ab)
        truth = color_tf.normalized_to_rgb(lightness, true_ab)
        shown, rows = [], []
        for ab in (predicted, gray, gray + self._mean):
            rgb = color_tf.normalized_to_rgb(lightness, ab)
            error = metrics.ab_error(ab, true_ab)
            columns = [
                metrics.squared_error(ab, true_ab), metrics.psnr(rgb, truth), metrics.ssim(rgb, truth),
                metrics.colorfulness(rgb), tf.reduce_mean(error, axis=[1, 2]),
                tf.reduce_sum(weights * error, axis=[1, 2]), tf.reduce_sum(weights, axis=[1, 2]),
            ]  # fmt: skip
            rows.append(tf.stack(columns, axis=-1))  # (N, columns)
            shown.append(rgb)
        return (
            tf.stack(rows, axis=1),
            metrics.colorfulness(truth),
            tf.concat([shown[METHODS.index(GRAY)], shown[METHODS.index(MODEL)], truth], axis=2),
        )


def summarize(values: np.ndarray) -> dict[str, dict[str, Interval]]:
    """Figures over all pictures, of `METHODS` and `DIFFERENCES`, by metric.

    Args:
        values: float64 [pictures, methods, columns], of `Measured`.
    """
    found = _figures(values.mean(axis=0))  # of the whole, by metric: (methods and differences,)
    generator = np.random.default_rng(_SEED)
    samples = [
        _figures(values[generator.integers(len(values), size=len(values))].mean(axis=0)) for _ in range(_RESAMPLES)
    ]
    tails = [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2]
    bounds = {name: np.quantile([sample[name] for sample in samples], tails, axis=0) for name in found}
    return {
        method: {
            name: Interval(float(found[name][row]), float(bounds[name][0, row]), float(bounds[name][1, row]))
            for name in found
        }
        for row, method in enumerate(METHODS + DIFFERENCES)
    }


def _figures(means: np.ndarray) -> dict[str, np.ndarray]:
    """Means of the columns, [methods, columns], to figures, each [methods and differences]."""
    columns = dict(zip(_COLUMNS, means.T, strict=True))
    balanced = columns.pop("balanced_error") / columns.pop("weight")
    plain = columns.pop("ab_error")
    areas = {"auc": plain, "balanced_auc": balanced}
    figures = columns | {name: 100 * (1 - error / metrics.LARGEST_AB_ERROR) for name, error in areas.items()}
    return {name: np.append(values, values[0] - values[1:]) for name, values in figures.items()}
