"""How good predicted pictures are: one number for each of a batch."""

import tensorflow as tf

from pipeline import color

LARGEST_AB_ERROR = 150.0  # Lab units, where the curve of Zhang, Isola and Efros ends
_LARGEST_PSNR = 100.0  # dB, of equal pictures, whose ratio is infinite


def psnr(predicted: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """Peak signal-to-noise ratio of pictures, uint8 [N, H, W, 3], over all their channels: float32 [N] in dB."""
    return tf.minimum(tf.image.psnr(predicted, truth, max_val=255), _LARGEST_PSNR)


def colorfulness(pictures: tf.Tensor) -> tf.Tensor:
    """How colorful people find pictures: uint8 [N, H, W, 3] to float32 [N]; 0 is gray, above 82 highly colorful.

    Source: Hasler and Süsstrunk, "Measuring Colorfulness in Natural Images" (2003), section 7, the metric M3.
    """
    red, green, blue = tf.unstack(tf.cast(pictures, tf.float32), axis=-1)  # (N, H, W)
    opponents = tf.stack([red - green, (red + green) / 2 - blue], axis=-1)  # (N, H, W, 2)
    mean, variance = tf.nn.moments(opponents, axes=[1, 2])  # (N, 2)
    return tf.sqrt(tf.reduce_sum(variance, axis=-1)) + 0.3 * tf.norm(mean, axis=-1)


def squared_error(predicted: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """Mean squared error of normalized a and b, float32 [N, H, W, 2]: float32 [N]."""
    return tf.reduce_mean(tf.square(predicted - truth), axis=[1, 2, 3])


def ssim(predicted: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """Structural similarity of pictures, uint8 [N, H, W, 3], mean over their channels: float32 [N], 1 for equal ones.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004), with their
    Gaussian window of 11 pixels and a standard deviation of 1.5.
    """
    return tf.image.ssim(predicted, truth, max_val=255)


def ab_error(predicted: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """Distance in Lab units between normalized colors, float32 [N, H, W, 2], at most 150: float32 [N, H, W].

    The area under the cumulative curve of errors up to 150, as a part of the whole, is 1 minus a 150th of the mean of
    this: each pixel adds what is left of the axis beyond its error.

    Source: Zhang, Isola and Efros, "Colorful Image Colorization" (2016), section 3.1.
    """
    return tf.minimum(tf.norm(color.denormalize_ab(predicted - truth), axis=-1), LARGEST_AB_ERROR)
