"""L*a*b* to sRGB inside TensorFlow graphs; the only module that knows tensorflow-io.

tensorflow-io is built for an older TensorFlow, so its compiled plugins do not load and it warns of that; its color ops
are plain TensorFlow and exact. It has no build for Python 3.13, where the NumPy conversion takes their place.
"""

import sys
import warnings

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
        rgb = tf.numpy_function(color.lab_to_rgb, [lab], tf.uint8, stateful=False)
        return tf.ensure_shape(rgb, lab.shape)
    rgb = tfio.experimental.color.lab_to_rgb(lab)  # float32, out of [0, 1] where the color is out of sRGB
    return tf.cast(tf.round(tf.clip_by_value(rgb, 0.0, 1.0) * 255.0), tf.uint8)


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
