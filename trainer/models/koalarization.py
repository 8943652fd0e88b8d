"""The network of the paper: encoder, feature extractor, fusion, decoder.

Source: Baldassarre, Morín and Rodés-Guirao, "Deep Koalarization: Image Colorization using CNNs and
Inception-ResNet-v2" (2017), section 3.2 and table 1.
"""

import keras
import tensorflow as tf
from keras import layers
from ml_collections import ConfigDict

from pipeline.errors import UserError
from pipeline.reader import Batch
from trainer.models.base import ColorModel
from trainer.models.extractor import Extractor

# Filters and stride of each 3x3 convolution.
_ENCODER = ((64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 1), (256, 1))
_FUSION = 256
_WIDEST = 16
_UP = None  # in place of filters: a doubling of rows and columns
_DECODER = (128, _UP, 64, 64, _UP, 32)


class Koalarization(ColorModel):
    """Regresses a and b from L and the extractor's scores with a mean squared error."""

    takes_features = True
    margin = 64  # 57 for the layers below

    def __init__(self, config: ConfigDict, seed: int, features: bool):
        if not 0 < config.width_multiplier <= _WIDEST:
            raise UserError(f"model.width_multiplier is {config.width_multiplier}; choose above 0, at most {_WIDEST}")
        self.extractor = None if features else Extractor(config, seed)
        if self.extractor is not None:
            self.extractor.warn_if_random()
        self.network = build_network(config.feature_classes, config.width_multiplier)

    def outputs(self, batch: Batch, training: bool) -> tf.Tensor:
        """float32 [B, 224, 224, 2]: the predicted a and b in [-1, 1]."""
        if "features" in batch:
            features = batch["features"]  # (B, classes)
        else:
            assert self.extractor is not None
            features = self.extractor(batch["l_299"])
        return self.network([batch["l_224"], features], training=training)

    def loss(self, outputs: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Mean squared error over pixels and channels (equation 1): float32 [B]."""
        return tf.reduce_mean(tf.square(outputs - batch["ab_224"]), axis=[1, 2, 3])

    def ab(self, outputs: tf.Tensor) -> tf.Tensor:
        """The outputs are the prediction."""
        return outputs


def build_network(feature_classes: int, width_multiplier: float) -> keras.Model:
    """The trained part: 6,573,794 parameters with 1,000 features at full width.

    Args:
        feature_classes: length of the feature vector.
        width_multiplier: of the filters of every layer but the last.

    Returns:
        A model from float32 [B, H, W, 1] and [B, feature_classes] to [B, H, W, 2] in [-1, 1]; H and W are multiples
        of 8.
    """

    def convolution(x: keras.KerasTensor, filters: int, kernel: int = 3, stride: int = 1) -> keras.KerasTensor:
        filters = max(1, round(filters * width_multiplier))
        return layers.Conv2D(filters, kernel, strides=stride, padding="same", activation="relu")(x)

    lightness = keras.Input((None, None, 1), name="l")
    features = keras.Input((feature_classes,), name="features")
    x = lightness  # (B, H, W, 1)
    for filters, stride in _ENCODER:
        x = convolution(x, filters, stride=stride)
    x = Fusion(name="fusion")([x, features])  # (B, H / 8, W / 8, 256 + classes)
    x = convolution(x, _FUSION, kernel=1)
    for step in _DECODER:
        x = layers.UpSampling2D()(x) if step is _UP else convolution(x, step)
    whole = keras.config.dtype_policy().variable_dtype  # half precision would round colors
    x = layers.Conv2D(2, 3, padding="same", activation="tanh", dtype=whole)(x)  # (B, H / 2, W / 2, 2)
    return keras.Model([lightness, features], layers.UpSampling2D(dtype=whole)(x), name="koalarization")


@keras.saving.register_keras_serializable("koalarization")
class Fusion(layers.Layer):
    """Repeats a feature vector at every place of a feature map and appends it to the channels (section 3.2.3)."""

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """[B, H, W, C] and [B, F] to [B, H, W, C + F]."""
        feature_map, features = inputs
        spread = features[:, None, None, :] + keras.ops.zeros_like(feature_map[..., :1])  # whatever its size is
        return keras.ops.concatenate([feature_map, spread], axis=-1)

    def compute_output_shape(self, input_shape: list[tuple[int | None, ...]]) -> tuple[int | None, ...]:
        """Channels of both inputs together."""
        feature_map, features = input_shape
        return (*feature_map[:-1], feature_map[-1] + features[-1])  # type: ignore[operator]
