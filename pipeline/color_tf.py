"""sRGB and L*a*b* inside TensorFlow graphs, of plain operations only; the only module that knows tensorflow-io.

tensorflow-io is built for an older TensorFlow, so its compiled plugins do not load and it warns of that; its color ops
are plain TensorFlow and exact. It has no build for Python 3.13, where the steps of `pipeline.color` take their place.
"""

import sys
import warnings

import numpy as np
import tensorflow as tf

from pipeline import color

if sys.version_info < (3, 13):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_io as tfio
else:
    tfio = None


def lab_to_rgb(lab: tf.Tensor) -> tf.Tensor:
    """Converts L*a*b* to sRGB; colors outside of sRGB are clipped channel by channel.

    Args:
        lab: float32 [..., height, width, 3]: L in [0, 100], a and b in [-128, 128].

    Returns:
        uint8 of the same shape.
    """
    if tfio is None:
        return _lab_to_rgb(lab)
    rgb = tfio.experimental.color.lab_to_rgb(lab)  # float32, out of [0, 1] where the color is out of sRGB
    return tf.cast(tf.round(tf.clip_by_value(rgb, 0.0, 1.0) * 255.0), tf.uint8)


def _lab_to_rgb(lab: tf.Tensor) -> tf.Tensor:
    """The same without tensorflow-io."""
    f = tf.tensordot(lab, tf.constant(color.LAB_TO_F[:, :3].T, tf.float32), 1) + color.LAB_TO_F[:, 3]
    f = tf.maximum(f, [-np.inf, -np.inf, 0.0])
    xyz = tf.where(f > color.LEAST_F, f * f * f, (f - color.OFFSET) / color.SLOPE)
    linear = tf.tensordot(xyz, tf.constant(color.RELATIVE_XYZ_TO_RGB.T, tf.float32), 1)
    least = tf.constant(color.LEAST_OF_LEVEL[1:-1], tf.float32)
    level = tf.searchsorted(least, tf.reshape(linear, [-1]), side="right")
    return tf.ensure_shape(tf.cast(tf.reshape(level, tf.shape(lab)), tf.uint8), lab.shape)


def rgb_to_l(rgb: tf.Tensor) -> tf.Tensor:
    """The lightness of sRGB.

    Args:
        rgb: uint8 [..., 3].

    Returns:
        float32 [..., 1]: L in [0, 100].
    """
    linear = tf.gather(color.LINEAR_OF_LEVEL, tf.cast(rgb, tf.int32))
    luminance = tf.tensordot(linear, color.RGB_TO_RELATIVE_XYZ[1:2].T, 1)
    f = tf.where(luminance > color.EPSILON, luminance ** (1 / 3), color.SLOPE * luminance + color.OFFSET)
    return 116.0 * f - 16.0


def normalized_to_rgb(l_normalized: tf.Tensor, ab_normalized: tf.Tensor) -> tf.Tensor:
    """Joins the tensors of a model to a picture.

    Args:
        l_normalized: float32 [..., height, width, 1] in [-1, 1].
        ab_normalized: float32 [..., height, width, 2] in [-1, 1].

    Returns:
        uint8 [..., height, width, 3], RGB.
    """
    lab = [color.denormalize_l(l_normalized), color.denormalize_ab(ab_normalized)]
    return lab_to_rgb(tf.concat(lab, axis=-1))
