"""The frozen Inception-ResNet-v2 whose class scores tell the decoder what the picture shows.

Source: Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning" (2016).
"""

import logging
import os
import warnings

import keras

from pipeline.errors import UserError, one_line

_LOGGER = logging.getLogger(__name__)
IMAGENET = "imagenet"


def create(weights: str | None, classes: int) -> keras.Model:
    """Builds the extractor.

    Args:
        weights: "imagenet" (downloaded by Keras), the path of a Keras weights file, or None for random weights.
        classes: outputs: 1000, or 1001 for weights trained with a background class.

    Returns:
        A frozen model from float32 [B, 299, 299, 3] in [-1, 1] to the scores before the softmax, float32 [B, classes].

    Raises:
        UserError: the weights cannot be had or do not fit.
    """
    if weights is None:
        _LOGGER.warning(
            "WARNING: the feature extractor has RANDOM weights: it tells the decoder nothing of what a picture shows. "
            "Set --config.model.feature_weights=imagenet, or to a weights file, for a real run."
        )
    elif weights != IMAGENET and not os.path.isfile(weights):
        raise UserError(f"model.feature_weights is '{weights}', which is no file; name a weights file, or '{IMAGENET}'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns of layers that a file has no weights for
            model = keras.applications.InceptionResNetV2(weights=weights, classes=classes, classifier_activation=None)
    except Exception as error:  # a download that fails, a file that is not HDF5, shapes that differ: each its own
        advice = "name the path of a Keras weights file for Inception-ResNet-v2"
        if weights != IMAGENET:
            advice += f" with {classes} classes, or set model.feature_classes to those that it has"
        reason = one_line(error).split(". ")[0]
        raise UserError(f"feature weights '{weights}' cannot be loaded: {reason}; {advice}") from error
    model.trainable = False
    return model
