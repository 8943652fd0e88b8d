"""The frozen Inception-ResNet-v2 whose class scores tell the decoder what the picture shows.

Source: Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning" (2016).
"""

import functools
import hashlib
import logging
import os
import threading
import warnings

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from pipeline import files
from pipeline.errors import UserError, one_line
from trainer.files import reading
from trainer.models import slim
from trainer.models.initial import draw_weights

_LOGGER = logging.getLogger(__name__)
IMAGENET = "imagenet"


def find_weights(config: ConfigDict) -> str | None:
    """What the `model` fields of a configuration name as weights; None for random ones, "none" on a command line."""
    return None if config.feature_weights in (None, "none", "None") else config.feature_weights


def find_file(config: ConfigDict) -> str | None:
    """The path that the `model` fields of a configuration name as weights; None for random ones, and for Keras's."""
    weights = find_weights(config)
    return None if weights == IMAGENET else weights


def check_weights(weights: str) -> None:
    """Looks for the file, or TF-Slim's checkpoint, of weights.

    Raises:
        UserError: there is none.
    """
    with reading(f"feature weights '{weights}'"):
        found = files.exists(weights) if "://" in weights else os.path.isfile(weights)
        if not found and not slim.is_checkpoint(weights):
            raise UserError(
                f"model.feature_weights is '{weights}', which is no file; name a weights file, or '{IMAGENET}'"
            )


class Extractor:
    """The extractor that a configuration names.

    Attributes:
        classes: length of a feature vector.
        model: the frozen network.
    """

    def __init__(self, config: ConfigDict, seed: int):
        """Builds it.

        Args:
            config: the `model` fields of a configuration.
            seed: of the weights, where they are random.

        Raises:
            UserError: the fields are no good, or the weights cannot be had.
        """
        if config.feature_classes < 1:
            raise UserError(
                f"model.feature_classes is {config.feature_classes}; choose 1000, or 1001 with a background"
            )
        weights = find_weights(config)
        self.classes: int = config.feature_classes
        self._random = weights is None
        self.model = create(weights, self.classes)
        if self._random:
            draw_weights(self.model, seed)
        self._lock = threading.Lock()

    def warn_if_random(self) -> None:
        """Says that the weights are random, if they are: for whoever begins a run or a job, once."""
        if self._random:
            _LOGGER.warning(
                "WARNING: the feature extractor has RANDOM weights: it tells the decoder nothing of what a picture "
                "shows. For a real run train with --config.model.feature_weights=imagenet, or a weights file."
            )

    def __call__(self, l_299: tf.Tensor) -> tf.Tensor:
        """The scores of pictures: float32 [B, 299, 299, 3] in [-1, 1] to [B, classes], without a gradient."""
        # In Keras's operations, which take what a Keras model is made of as well.
        return keras.ops.stop_gradient(keras.ops.cast(self.model(l_299, training=False), "float32"))

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on every weight, and on nothing else."""
        digest = hashlib.blake2b(digest_size=8)
        for weight in self.model.get_weights():
            digest.update(repr((weight.shape, weight.dtype.str)).encode())
            digest.update(np.ascontiguousarray(weight).data)
        return digest.hexdigest()

    def features(self, l_299: np.ndarray) -> np.ndarray:
        """Of pictures and of their mirror images: float32 [B, 299, 299, 3] in [-1, 1] to [B, 2, classes].

        Threads take turns: one call keeps all cores busy, and several would need as many times the memory.
        """
        with self._lock:
            return self._both_views(tf.constant(l_299)).numpy()

    @tf.function(input_signature=[tf.TensorSpec((None, 299, 299, 3), tf.float32)])
    def _both_views(self, l_299: tf.Tensor) -> tf.Tensor:
        return tf.stack([self(l_299), self(l_299[:, :, ::-1])], axis=1)


def create(weights: str | None, classes: int) -> keras.Model:
    """Builds the extractor.

    Args:
        weights: "imagenet" (downloaded by Keras), the path of a Keras weights file or of TF-Slim's checkpoint, or None
            for random weights.
        classes: outputs: 1000, or 1001 for weights trained with a background class.

    Returns:
        A frozen model from float32 [B, 299, 299, 3] in [-1, 1] to the scores before the softmax, float32 [B, classes].

    Raises:
        UserError: the weights cannot be had or do not fit.
    """
    if weights in (None, IMAGENET):
        return _build(weights, classes, f"feature weights '{weights}'")
    check_weights(weights)
    with reading(f"feature weights '{weights}'"):
        if slim.is_checkpoint(weights):
            model = create(None, classes)
            slim.load(model, weights)
            return model
        advice = f" with {classes} classes, or set model.feature_classes to those that it has"
        with files.local_file(weights) as path:
            return _build(path, classes, f"feature weights '{weights}'", advice)


def _build(weights: str | None, classes: int, name: str, advice: str = "") -> keras.Model:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns of layers that a file has no weights for
            model = keras.applications.InceptionResNetV2(weights=weights, classes=classes, classifier_activation=None)
    except Exception as error:  # a download that fails, a file that is not HDF5, shapes that differ: each its own
        raise UserError(
            f"{name} cannot be loaded: {one_line(error).split('. ')[0]}; name the path of a Keras weights file for "
            f"Inception-ResNet-v2{advice}"
        ) from error
    model.trainable = False
    return model
