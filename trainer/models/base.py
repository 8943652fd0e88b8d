"""What the training loop and the colorizer know of a model."""

import abc

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

    @abc.abstractmethod
    def __init__(self, config: ConfigDict, seed: int):
        """Builds the model from the `model` fields of a configuration.

        Args:
            config: these fields.
            seed: of weights that are drawn, other than those of `network`: `models.create` draws these.
        """

    @property
    def extractor_fingerprint(self) -> str | None:
        """The fingerprint of the extractor whose stored features can stand for `l_299`; None: nothing can."""
        return None

    @abc.abstractmethod
    def outputs(self, batch: Batch, training: bool) -> tf.Tensor:
        """What the network makes of `l_224`, and of `l_299` or in its place `features`; the form is the model's own."""

    @abc.abstractmethod
    def loss(self, outputs: tf.Tensor, batch: Batch) -> tf.Tensor:
        """The loss of each example: float32 [B]."""

    @abc.abstractmethod
    def ab(self, outputs: tf.Tensor) -> tf.Tensor:
        """The predicted color: float32 [B, 224, 224, 2] in [-1, 1]."""
