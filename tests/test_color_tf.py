import numpy as np
import pytest
import skimage.data
import tensorflow as tf

from pipeline import color, color_tf


@pytest.fixture(params=["tensorflow-io", "own"])
def conversion(request, monkeypatch):
    """Both ways that there are: that of Python 3.13, which has no tensorflow-io, is tried on every Python."""
    if request.param == "own":
        monkeypatch.setattr(color_tf, "tfio", None)
    elif color_tf.tfio is None:
        pytest.skip("tensorflow-io has no build for this Python")
    return color_tf.lab_to_rgb


def test_equals_numpy_eagerly_and_in_graphs(conversion):
    rgb = skimage.data.coffee()[:64, :64]
    lab = color.rgb_to_lab(rgb)
    np.testing.assert_array_equal(conversion(tf.constant(lab)), rgb)
    np.testing.assert_array_equal(tf.function(conversion)(tf.constant(lab)), rgb)
    mapped = tf.data.Dataset.from_tensors(lab).map(conversion)
    np.testing.assert_array_equal(next(iter(mapped)), rgb)
    assert mapped.element_spec.shape == (64, 64, 3)


@pytest.mark.filterwarnings("ignore:.*negative Z values")
def test_clips_as_numpy_does(conversion):
    generator = np.random.default_rng(0)
    lab = np.stack([generator.uniform(0, 100, (9, 9)), *generator.uniform(-128, 128, (2, 9, 9))], axis=-1)
    difference = conversion(tf.constant(lab, tf.float32)).numpy().astype(int) - color.lab_to_rgb(lab)
    assert np.abs(difference).max() <= 1  # float32 against float64, at the edge between two levels


def test_joins_normalized_tensors(conversion):
    gray = color_tf.normalized_to_rgb(tf.zeros([2, 4, 4, 1]), tf.zeros([2, 4, 4, 2]))
    np.testing.assert_array_equal(gray, np.full((2, 4, 4, 3), 119, np.uint8))  # L = 50


def test_lightness_equals_numpys():
    """Of all grays, and of other colors."""
    rgb = np.concatenate([np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1), skimage.data.coffee()[100]])
    found = tf.function(color_tf.rgb_to_l)(tf.constant(rgb))
    np.testing.assert_allclose(found[..., 0], color.rgb_to_l(rgb), atol=2e-5)
