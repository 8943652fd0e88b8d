"""TF-Slim's checkpoint of Inception-ResNet-v2, whose weights the original authors used, in Keras's model.

The checkpoint is `inception_resnet_v2_2016_08_30.ckpt`; its names and shapes are those of
`tensorflow/models/research/slim/nets/inception_resnet_v2.py`. It has 1,001 classes, of which the first is a background.
"""

import re
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from pipeline.errors import UserError, one_line

_SCOPE = "InceptionResnetV2/"
# What the network does not need: a second head for training, and the trainer's own count of steps.
_UNUSED = re.compile(rf"{_SCOPE}AuxLogits/|global_step$")
_BLOCKS = {  # kinds of residual blocks: the scope of all, how many, and the convolutions of one
    "block35": ("Repeat", 10, ("0/Conv2d_1x1", "1/Conv2d_0a_1x1", "1/Conv2d_0b_3x3", "2/Conv2d_0a_1x1",
                               "2/Conv2d_0b_3x3", "2/Conv2d_0c_3x3")),
    "block17": ("Repeat_1", 20, ("0/Conv2d_1x1", "1/Conv2d_0a_1x1", "1/Conv2d_0b_1x7", "1/Conv2d_0c_7x1")),
    "block8": ("Repeat_2", 9, ("0/Conv2d_1x1", "1/Conv2d_0a_1x1", "1/Conv2d_0b_1x3", "1/Conv2d_0c_3x1")),
}  # fmt: skip
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_MIXED_5B = ("0/Conv2d_1x1", "1/Conv2d_0a_1x1", "1/Conv2d_0b_5x5", "2/Conv2d_0a_1x1", "2/Conv2d_0b_3x3",
             "2/Conv2d_0c_3x3", "3/Conv2d_0b_1x1")  # fmt: skip
_MIXED_6A = ("0/Conv2d_1a_3x3", "1/Conv2d_0a_1x1", "1/Conv2d_0b_3x3", "1/Conv2d_1a_3x3")
_MIXED_7A = ("0/Conv2d_0a_1x1", "0/Conv2d_1a_3x3", "1/Conv2d_0a_1x1", "1/Conv2d_1a_3x3", "2/Conv2d_0a_1x1",
             "2/Conv2d_0b_3x3", "2/Conv2d_1a_3x3")  # fmt: skip


def is_checkpoint(path: str) -> bool:
    """Whether a path is that of a TensorFlow checkpoint, in the old form or the new, and not of a Keras file."""
    return not path.endswith((".h5", ".keras")) and bool(tf.io.gfile.glob([path, f"{path}.index"]))


def load(model: keras.Model, path: str) -> None:
    """Gives a model the weights of a checkpoint.

    Args:
        model: `keras.applications.InceptionResNetV2` with its top.
        path: of the checkpoint; without `.index` in the new form.

    Raises:
        UserError: it cannot be read, or a variable is missing, left over, or of another shape.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        shapes = reader.get_variable_to_shape_map()
    except Exception as error:  # of whatever form the file is
        raise UserError(f"{path} is not a TensorFlow checkpoint: {one_line(error)}") from error
    variables = dict(_variables(model))
    _check(path, shapes, {name: tuple(variable.shape) for name, variable in variables.items()})
    for name, variable in variables.items():
        variable.assign(np.asarray(reader.get_tensor(name)))


def _check(path: str, found: dict[str, list[int]], expected: dict[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise UserError(f"{path} has no variable '{name}': it is not a checkpoint of TF-Slim's Inception-ResNet-v2")
        if name not in expected:
            if _UNUSED.match(name):
                continue
            raise UserError(f"{path} has a variable '{name}' that TF-Slim's Inception-ResNet-v2 does not have")
        if tuple(found[name]) != expected[name]:
            advice = f"; set model.feature_classes to {found[name][-1]}" if name.startswith(f"{_SCOPE}Logits/") else ""
            raise UserError(
                f"{path}: '{name}' is of shape {list(found[name])}, the network has {list(expected[name])}{advice}"
            )


def _variables(model: keras.Model) -> Iterator[tuple[str, keras.Variable]]:
    """The name in the checkpoint of every variable of the model."""
    convolutions, norms = (_in_order(model, prefix) for prefix in ("conv2d", "batch_normalization"))
    unnamed = zip(_scopes(), convolutions, norms, strict=True)
    last = ("Conv2d_7b_1x1", model.get_layer("conv_7b"), model.get_layer("conv_7b_bn"))
    for scope, convolution, norm in (*unnamed, last):
        yield f"{_SCOPE}{scope}/weights", convolution.kernel
        yield f"{_SCOPE}{scope}/BatchNorm/beta", norm.beta
        yield f"{_SCOPE}{scope}/BatchNorm/moving_mean", norm.moving_mean
        yield f"{_SCOPE}{scope}/BatchNorm/moving_variance", norm.moving_variance
    projections = {f"{block}/Conv2d_1x1": f"{layer}_conv" for block, layer in _blocks()}
    for scope, layer in {**projections, "Logits/Logits": "predictions"}.items():
        yield f"{_SCOPE}{scope}/weights", model.get_layer(layer).kernel
        yield f"{_SCOPE}{scope}/biases", model.get_layer(layer).bias


def _in_order(model: keras.Model, prefix: str) -> list[keras.Layer]:
    """The layers of a kind that Keras named itself, in the order in which they were made: that of their numbers."""
    numbered = {}
    for layer in model.layers:
        if match := re.fullmatch(rf"{prefix}(?:_(\d+))?", layer.name):
            numbered[int(match[1] or 0)] = layer
    return [numbered[number] for number in sorted(numbered)]


def _scopes() -> Iterator[str]:
    """The scopes of the convolutions with a normalization, in the order in which Keras makes them, but for the last."""
    yield from _STEM
    yield from (f"Mixed_5b/Branch_{name}" for name in _MIXED_5B)
    yield from _block_scopes("block35")
    yield from (f"Mixed_6a/Branch_{name}" for name in _MIXED_6A)
    yield from _block_scopes("block17")
    yield from (f"Mixed_7a/Branch_{name}" for name in _MIXED_7A)
    yield from _block_scopes("block8")


def _block_scopes(kind: str) -> Iterator[str]:
    for block, layer in _blocks():
        if layer.startswith(kind):
            yield from (f"{block}/Branch_{name}" for name in _BLOCKS[kind][2])


def _blocks() -> Iterator[tuple[str, str]]:
    """The scope of every residual block, and its name in Keras."""
    for kind, (scope, count, _) in _BLOCKS.items():
        yield from ((f"{scope}/{kind}_{number}", f"{kind}_{number}") for number in range(1, count + 1))
    yield "Block8", "block8_10"
