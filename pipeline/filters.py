"""Which pictures teach color: the rest are kept out of a dataset, each for a reason that has a name.

The report found that dark and colorless pictures spoil training. The defaults in `configs/koalarization.py` come from
617 ImageNet pictures, one of each class: 15 have a mean chroma below 0.02 and none between that and 1; 4 more lie below
2, and 3 have a mean lightness below 10.
"""

import dataclasses
import math

import numpy as np

from pipeline import color
from pipeline.errors import UserError
from pipeline.rejects import Reason, RejectedImage

_GRAYSCALE_CHROMA = 0.5  # in the gap that the pictures leave


@dataclasses.dataclass(frozen=True)
class Filters:
    """What a picture must have; a limit of 0 lets everything through.

    Attributes:
        min_side: pixels of the shorter side.
        max_pixels: width times height; looked at before the first pixel is decoded.
        reject_grayscale: whether to refuse pictures without any color.
        min_chroma: mean distance of a, b from gray, in Lab units.
        min_lightness: mean L, from 0 to 100.

    Raises:
        UserError: a value out of range.
    """

    min_side: int
    max_pixels: int
    reject_grayscale: bool
    min_chroma: float
    min_lightness: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < math.inf:
                raise UserError(f"dataset.filters.{name} is {value}; choose a number from 0, which turns it off")

    def check_size(self, width: int, height: int) -> None:
        """Looks at the size, in pixels, that the header of a picture states.

        Raises:
            RejectedImage: too small or too large.
        """
        if min(width, height) < self.min_side:
            raise RejectedImage(Reason.TOO_SMALL, f"{width}x{height} pixels, the least is {self.min_side} on a side")
        if 0 < self.max_pixels < width * height:
            raise RejectedImage(Reason.TOO_LARGE, f"{width}x{height} pixels, the limit is {self.max_pixels}")

    def check_color(self, lightness: np.ndarray, ab: np.ndarray) -> None:
        """Looks at what a picture shows.

        Args:
            lightness: float32 [h, w, 1] in [-1, 1], as `l_224`.
            ab: float32 [h, w, 2] in [-1, 1], as `ab_224`.

        Raises:
            RejectedImage: grayscale, too dark, or with too little color.
        """
        chroma = float(color.denormalize_ab(np.abs(ab.view(np.complex64)).mean()))  # of a + bi
        if self.reject_grayscale and chroma < _GRAYSCALE_CHROMA:
            raise RejectedImage(Reason.GRAYSCALE, f"mean chroma {chroma:.2f}, no color below {_GRAYSCALE_CHROMA}")
        mean_lightness = float(color.denormalize_l(lightness.mean()))
        if mean_lightness < self.min_lightness:
            raise RejectedImage(Reason.TOO_DARK, f"mean L {mean_lightness:.2f}, the least is {self.min_lightness}")
        if chroma < self.min_chroma:
            raise RejectedImage(Reason.TOO_LITTLE_COLOR, f"mean chroma {chroma:.2f}, the least is {self.min_chroma}")
