"""How good predicted pictures are, for people who watch a run."""

import tensorflow as tf

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
