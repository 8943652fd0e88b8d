import numpy as np
import pytest
import skimage.color
import skimage.data

from pipeline import tensors
from pipeline.image import ResizeMode
from tests.helpers import exactly_resized


@pytest.mark.parametrize("mode", list(ResizeMode))
def test_shapes_dtypes_and_ranges(mode):
    values = tensors.from_image(skimage.data.rocket(), mode)
    assert {name: array.shape for name, array in values.items()} == tensors.SHAPES
    for array in values.values():
        assert array.dtype == np.float32
        assert array.min() >= -1
        assert array.max() <= 1


def test_l_299_repeats_one_channel():
    l_299 = tensors.from_image(skimage.data.rocket(), ResizeMode.STRETCH)["l_299"]
    np.testing.assert_array_equal(l_299[..., 0], l_299[..., 1])
    np.testing.assert_array_equal(l_299[..., 0], l_299[..., 2])


def test_equals_scikit_image():
    rgb = skimage.data.chelsea()
    values = tensors.from_image(rgb, ResizeMode.STRETCH)
    small = np.rint(exactly_resized(rgb, 224, 224)).astype(np.uint8)
    lab = skimage.color.rgb2lab(small)
    difference = np.abs(values["l_224"][..., 0] - (lab[..., 0] / 50 - 1))
    assert (difference < 1e-4).mean() > 0.999  # the rest are ties of the rounding to 8 bits
    difference = np.abs(values["ab_224"] - lab[..., 1:] / 128)
    assert (difference < 1e-4).mean() > 0.999
