"""What the training loop and the colorizer know of a model."""

import abc
from typing import ClassVar

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from pipeline.reader import Batch


class ColorModel(abc.ABC):
    """A model that predicts a and b from L.

    Attributes:
        network: the part that is trained, and all that a checkpoint holds of the model.
    """

    network: keras.Model
    takes_features: ClassVar[bool]  # whether features of `extractor.Extractor` can stand for `l_299` in a batch
    # For a network that takes `l_224` in any size whose sides are multiples of 8: how many pixels away L can change a
    # pixel's color, in multiples of 8. None for one that takes 224 alone.
    margin: ClassVar[int | None]

    @abc.abstractmethod
    def __init__(self, config: ConfigDict, seed: int, features: bool):
        """Builds the model from the `model` fields of a configuration.

        Args:
            config: these fields.
            seed: of weights that are drawn, other than those of `network`: `models.create` draws these.
            features: every batch will have stored features, so that nothing has to be there to compute them.
        """

    @abc.abstractmethod
    def outputs(self, batch: Batch, training: bool) -> tf.Tensor:
        """What the network makes of `l_224`, and of `l_299` or in its place `features`; the form is the model's own."""

    @abc.abstractmethod
    def loss(self, outputs: tf.Tensor, batch: Batch) -> tf.Tensor:
        """The loss of each example: float32 [B]."""

    @abc.abstractmethod
    def ab(self, outputs: tf.Tensor) -> tf.Tensor:
        """The predicted color: float32 [B, 224, 224, 2] in [-1, 1]."""
