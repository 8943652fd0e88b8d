"""How often the pictures of a dataset show which color: its mean, and how rare each color is."""

import dataclasses
from typing import Annotated

import cv2
import numpy as np
from msgspec import Meta

from pipeline import color

BIN = 10.0  # Lab units on a side, as in Zhang, Isola and Efros, "Colorful Image Colorization" (2016), section 2.1
_LAST = 11  # bins are centered on -110, -100, ... 110: all of sRGB
SIDE = 2 * _LAST + 1
_Count = Annotated[int, Meta(ge=0)]
_SMOOTHING = 5.0  # Lab units
_EVERY = 4  # rows and columns of a picture: a sixteenth of its pixels says as much


@dataclasses.dataclass(frozen=True)
class ColorCounts:
    """Counts of some pictures' pixels.

    Attributes:
        pixels: how many were counted.
        sums: of their a and of their b, in Lab units.
        bins: pixels by a and b, row after row: entry `SIDE * i + j` has a nearest to 10 (i - 11), b to 10 (j - 11).
    """

    pixels: _Count
    sums: tuple[float, float]
    bins: Annotated[tuple[_Count, ...], Meta(min_length=SIDE**2, max_length=SIDE**2)]

    @property
    def mean(self) -> tuple[float, float]:
        """Mean a and b in Lab units; gray, where nothing was counted."""
        a, b = (each / max(1, self.pixels) for each in self.sums)
        return a, b

    def __add__(self, other: "ColorCounts") -> "ColorCounts":
        a, b = (sum(each) for each in zip(self.sums, other.sums, strict=True))
        bins = tuple(sum(each) for each in zip(self.bins, other.bins, strict=True))
        return ColorCounts(self.pixels + other.pixels, (a, b), bins)


NONE = ColorCounts(0, (0.0, 0.0), (0,) * SIDE**2)


class Counter:
    """Counts the pixels of one picture after the other."""

    def __init__(self) -> None:
        self._pixels = 0
        self._sums = np.zeros(2)
        self._bins = np.zeros(SIDE**2, np.int64)

    def add(self, ab: np.ndarray) -> None:
        """Counts a picture: float32 [height, width, 2], normalized."""
        some = color.denormalize_ab(ab[::_EVERY, ::_EVERY].reshape(-1, 2))
        self._pixels += len(some)
        self._sums += some.sum(axis=0, dtype=np.float64)
        self._bins += np.bincount(bins(some), minlength=SIDE**2)

    def result(self) -> ColorCounts:
        """What was counted until now."""
        a, b = self._sums.tolist()
        return ColorCounts(self._pixels, (a, b), tuple(self._bins.tolist()))


def weights(counts: ColorCounts) -> np.ndarray:
    """How much a pixel counts where all colors are to count the same, however rare they are.

    The inverse of how probable its color is, smoothed by a Gaussian of 5 Lab units; 1 for a mean pixel. A color that is
    rarer than one pixel of those that were counted counts as one of these.

    Source: Zhang, Isola and Efros, "Colorful Image Colorization" (2016), equation 4 with lambda = 0, as in section 3.1.

    Returns:
        float64 [SIDE ** 2], by bin.
    """
    if not counts.pixels:
        return np.ones(SIDE**2)
    probable = np.reshape(counts.bins, (SIDE, SIDE)) / counts.pixels
    smooth = cv2.GaussianBlur(probable, (0, 0), _SMOOTHING / BIN, borderType=cv2.BORDER_CONSTANT).ravel()
    inverse = 1 / np.maximum(smooth, 1 / counts.pixels)
    return inverse / (inverse @ probable.ravel())


def bins(ab: np.ndarray) -> np.ndarray:
    """Where colors are counted: [..., 2] in Lab units to int64 [...], indices of `ColorCounts.bins`."""
    places = np.clip(np.rint(ab / BIN), -_LAST, _LAST).astype(np.int64) + _LAST
    return SIDE * places[..., 0] + places[..., 1]
