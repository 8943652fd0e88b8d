"""Sequences of which motion and colors are known, and how much the colors of a model flicker on them."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipeline import color, image
from trainer.colorizer import Colorizer
from trainer.smoothing import Smoother

_HEIGHT, _WIDTH = 360, 640
_DOWN, _RIGHT = 1, 3  # pixels by which the camera moves from frame to frame
_FRAMES = 16  # of each photograph
_GRAIN = 6.0  # levels of gray, the standard deviation of what is new in each frame of a film
_BATCH = 8


class Flicker(NamedTuple):
    """Mean distances of a and b, in Lab units.

    Attributes:
        flicker: of a frame and the one before it, moved as the camera is.
        error: of a frame and the truth.
        after_cut: the same, in the first frame after a cut.
    """

    flicker: float
    error: float
    after_cut: float


class _Scene(NamedTuple):
    """A camera's way over a photograph.

    Attributes:
        frames: uint8 [360, 640, 3], with grain.
        truth: float32 [360, 640, 2] of each, normalized.
    """

    frames: list[np.ndarray]
    truth: list[np.ndarray]


def pan(photograph: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """What a camera sees that moves over a photograph, uint8 [height, width, 3]: so many frames of 640x360."""
    whole = _cover(photograph, count)
    for number in range(count):
        yield whole[_window(number)]


def _cover(photograph: np.ndarray, count: int) -> np.ndarray:
    """A photograph in the least size in which there is room for so many frames."""
    height, width = photograph.shape[:2]
    scale = max((_HEIGHT + count * _DOWN) / height, (_WIDTH + count * _RIGHT) / width)
    return image.resize(photograph, math.ceil(scale * height), math.ceil(scale * width))


def _window(number: int) -> tuple[slice, slice]:
    top, left = number * _DOWN, number * _RIGHT
    return slice(top, top + _HEIGHT), slice(left, left + _WIDTH)


def measure(
    own: Colorizer, photographs: Sequence[np.ndarray], strengths: Sequence[float]
) -> Iterator[tuple[Flicker, Flicker]]:
    """Measures what smoothing does to the colors of a film that pans over one photograph after the other.

    Args:
        own: a trained model.
        photographs: uint8 [height, width, 3], two or more.
        strengths: of smoothing.

    Yields:
        For each strength the figures of the model's colors, and those of the true ones, both smoothed.
    """
    generator = np.random.default_rng(1)
    scenes = [_scene(photograph, generator) for photograph in photographs]
    predicted = [list(_predict(own, scene.frames)) for scene in scenes]
    true = [[image.resize(ab, *predicted[0][0].shape[:2]) for ab in scene.truth] for scene in scenes]
    for strength in strengths:
        yield _smooth(strength, scenes, predicted), _smooth(strength, scenes, true)


def _scene(photograph: np.ndarray, generator: np.random.Generator) -> _Scene:
    _, ab = color.rgb_to_normalized(_cover(photograph, _FRAMES))
    frames = []
    for frame in pan(photograph, _FRAMES):
        grain = generator.normal(0, _GRAIN, (_HEIGHT, _WIDTH, 1))
        frames.append(np.clip(np.rint(frame + grain), 0, 255).astype(np.uint8))
    return _Scene(frames, [ab[_window(number)] for number in range(_FRAMES)])


def _predict(own: Colorizer, frames: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for start in range(0, len(frames), _BATCH):
        yield from own.predict([own.prepare(frame) for frame in frames[start : start + _BATCH]])


def _smooth(strength: float, scenes: Sequence[_Scene], colors: Sequence[Sequence[np.ndarray]]) -> Flicker:
    """Smooths all scenes as one film."""
    smoother = Smoother(strength)
    flicker, errors = [], []
    for scene, predicted in zip(scenes, colors, strict=True):
        shown = [
            image.resize(smoother.smooth(frame, ab), _HEIGHT, _WIDTH)
            for frame, ab in zip(scene.frames, predicted, strict=True)
        ]
        errors.append([_distance(*pair) for pair in zip(shown, scene.truth, strict=True)])
        flicker += [_distance(now[:-_DOWN, :-_RIGHT], last[_DOWN:, _RIGHT:]) for last, now in itertools.pairwise(shown)]
    return Flicker(float(np.mean(flicker)), float(np.mean(errors)), float(np.mean([each[0] for each in errors[1:]])))


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """The mean over pixels, in Lab units, of normalized a and b."""
    return float(np.linalg.norm(color.denormalize_ab(one - other), axis=-1).mean())
