import dataclasses
import math

import numpy as np
import pytest

from configs import koalarization
from pipeline import image, tensors
from pipeline.errors import UserError
from pipeline.filters import Filters
from pipeline.rejects import RejectedImage

OFF = Filters(0, 0, False, 0.0, 0.0)
DEFAULT = Filters(**koalarization.get_config().dataset.filters)


def outcome(filters, rgb):
    """The reason for which a picture is refused, or None."""
    values = tensors.from_image(rgb, image.ResizeMode.STRETCH)
    try:
        filters.check_size(rgb.shape[1], rgb.shape[0])
        filters.check_color(values["l_224"], values["ab_224"])
    except RejectedImage as error:
        return error.reason.value
    return None


def plain(*rgb):
    return np.full((40, 50, 3), rgb, np.uint8)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (plain(200, 30, 30), None),
        (plain(128, 128, 128), "grayscale"),
        (plain(0, 0, 0), "grayscale"),  # no color comes before no light
        (plain(128, 128, 130), "too_little_color"),  # a chroma of 1.1
        (plain(128, 128, 134), None),  # 3.4
        (plain(30, 15, 15), "too_dark"),  # L = 7.0
        (plain(50, 20, 20), None),  # L = 11.1
        (plain(200, 30, 30)[:31], "too_small"),
        (plain(200, 30, 30)[:, :31], "too_small"),
        (plain(200, 30, 30)[:32, :32], None),
    ],
)
def test_each_filter_and_none(picture, reason):
    assert outcome(DEFAULT, picture) == reason
    assert outcome(OFF, picture) is None


def test_a_single_spot_of_color_does_not_help():
    picture = np.full((224, 224, 3), 120, np.uint8)
    picture[:10, :10] = (255, 0, 0)
    assert outcome(DEFAULT, picture) == "grayscale"


def test_pixel_limit():
    with pytest.raises(RejectedImage, match="too_large: 8000x7000 pixels, the limit is 50000000"):
        DEFAULT.check_size(8000, 7000)
    DEFAULT.check_size(8000, 6250)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
@pytest.mark.parametrize("field", ["min_side", "max_pixels", "min_chroma", "min_lightness"])
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=rf"dataset.filters.{field} is .*; choose a number from 0, which turns it off"):
        dataclasses.replace(DEFAULT, **{field: value})
