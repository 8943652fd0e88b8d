"""A trained model with all that surrounds it in graphs, for programs without this one: what `colorizer` does."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline import color, color_tf, tensors
from pipeline.image import ResizeMode
from trainer import image_tf
from trainer.colorizer import whole
from trainer.models.base import ColorModel
from trainer.pictures import COMPRESSION

_STRIP_PIXELS = 1 << 18  # converted at a time: Lab takes 50 times the memory of the picture
_STEPS = 100  # of a table, for each unit of L, of which a gray level takes a quarter or more
_LEVEL_OF_L = (
    np.abs(
        np.arange(100 * _STEPS + 1)[:, None] / _STEPS
        - color.rgb_to_l(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))
    )
    .argmin(axis=1)
    .astype(np.uint8)
)
_PICTURES = tf.TensorSpec([None, None, None, 1], tf.float32)


class Server(tf.Module):
    """A model as graphs from picture to picture.

    Args:
        model: a trained one.
        resize_mode: how pictures became square in its dataset.
    """

    def __init__(self, model: ColorModel, resize_mode: ResizeMode):
        super().__init__()
        self._model = model
        self._resize_mode = whole(resize_mode)
        self._weights = list(self._ab.get_concrete_function().graph.variables)  # those of a module are saved with it

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def colorize(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Colorizes pictures of any sizes, one after the other.

        Args:
            image_bytes: string [N], of which `image_tf.decode` takes each.

        Returns:
            `png_bytes`: string [N]: PNGs of the same sizes, with the pictures' transparency.
        """
        return {"png_bytes": _one_by_one(self._colorize, image_bytes, tf.TensorSpec([], tf.string))}

    @tf.function(input_signature=[_PICTURES])
    def colorize_lightness(self, lightness: tf.Tensor) -> dict[str, tf.Tensor]:
        """Gives color to lightness, which the result keeps; the network is shown the levels of gray next to it.

        Args:
            lightness: float32 [N, height, width, 1]: L in [0, 100].

        Returns:
            `rgb`: uint8 [N, height, width, 3].
        """

        def join(one: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            return self._join(*one, to_l=tf.identity)

        predicted = self._predict(_gray(lightness))
        return {"rgb": _one_by_one(join, (lightness, predicted), tf.TensorSpec([None, None, 3], tf.uint8))}

    @tf.function(input_signature=[_PICTURES], autograph=False)
    def colorize_at_once(self, lightness: tf.Tensor) -> dict[str, tf.Tensor]:
        """As `colorize_lightness`, without a loop, which not every format can express: takes the memory of it all."""
        shape = tf.shape(lightness)
        wide, rows = self._spread(self._predict(_gray(lightness)), shape[1], shape[2])
        return {"rgb": _join_rows(lightness, wide, rows)}

    def _colorize(self, data: tf.Tensor) -> tf.Tensor:
        rgb, alpha = image_tf.decode(data)
        (ab,) = tf.unstack(self._predict(image_tf.on_white(rgb, alpha)[None]), num=1)
        result = self._join(rgb, ab, color_tf.rgb_to_l)
        return tf.io.encode_png(tf.concat([result, alpha], axis=-1), compression=COMPRESSION)

    def _predict(self, pictures: tf.Tensor) -> tf.Tensor:
        """uint8 [N, height, width, 1 or 3] to the normalized a and b, float32 [N, 224, 224, 2]."""

        def shown(size: int) -> tf.Tensor:
            fitted = image_tf.fit(pictures, size, self._resize_mode)
            rgb = tf.repeat(fitted, 3 // fitted.shape[-1], axis=-1)
            return color.normalize_l(color_tf.rgb_to_l(rgb))

        return self._ab(shown(tensors.ENCODER_SIZE), tf.repeat(shown(tensors.EXTRACTOR_SIZE), 3, axis=-1))

    @tf.function(input_signature=[tf.TensorSpec([None, *tensors.SHAPES[name]]) for name in ("l_224", "l_299")])
    def _ab(self, l_224: tf.Tensor, l_299: tf.Tensor) -> tf.Tensor:
        return self._model.ab(self._model.outputs({"l_224": l_224, "l_299": l_299}, training=False))

    def _join(self, picture: tf.Tensor, ab: tf.Tensor, to_l: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """Gives a picture color, some rows at a time.

        Args:
            picture: [height, width, channels].
            ab: float32 [224, 224, 2], normalized.
            to_l: from rows of the picture to L, float32 [..., 1].

        Returns:
            uint8 [height, width, 3].
        """
        height, width, _ = tf.unstack(tf.shape(picture))
        wide, rows = self._spread(ab[None], height, width)
        step = tf.maximum(1, _STRIP_PIXELS // width)
        strips = tf.TensorArray(tf.uint8, -(-height // step), infer_shape=False, element_shape=[None, None, 3])
        for number in tf.range(-(-height // step)):
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)  # for the sake of memory
            own = slice(number * step, (number + 1) * step)
            strips = strips.write(number, _join_rows(to_l(picture[own])[None], wide, rows[own])[0])
        return strips.concat()

    def _spread(self, ab: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Resamples a and b to the columns of a picture, without what it was padded with.

        Returns:
            Float32 [N, h, width, 2], and how much each of its rows counts in each one of the picture: [height, h].
        """
        (top, rows), (left, columns) = image_tf.window(height, width, tensors.ENCODER_SIZE, self._resize_mode)
        inner = ab[:, top : top + rows, left : left + columns]
        return image_tf.columns_resized(inner, width), image_tf.weights(rows, height)


def _join_rows(lightness: tf.Tensor, wide: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Rows of L, float32 [N, r, width, 1], with what `_spread` gave, but of these rows, to uint8 [N, r, width, 3]."""
    count, inner, width, _ = tf.unstack(tf.shape(wide))
    ab = tf.reshape(tf.matmul(rows, tf.reshape(wide, [count, inner, width * 2])), [count, -1, width, 2])
    return color_tf.lab_to_rgb(tf.concat([lightness, color.denormalize_ab(ab)], axis=-1))


def _gray(lightness: tf.Tensor) -> tf.Tensor:
    """The levels of gray that are next to L in [0, 100]: uint8, of the same shape."""
    steps = tf.round(tf.clip_by_value(lightness, 0.0, 100.0) * _STEPS)
    return tf.gather(_LEVEL_OF_L, tf.cast(steps, tf.int32))


def _one_by_one(function: Callable[[Any], tf.Tensor], items: Any, result: tf.TensorSpec) -> tf.Tensor:
    """Maps tensors along their first axis, with the memory of one."""
    return tf.map_fn(function, items, fn_output_signature=result, parallel_iterations=1)


def to_keras(model: ColorModel) -> keras.Model:
    """The network as a Keras model, which Keras can load without this program as long as its layers are Keras's own.

    Args:
        model: of operations that take Keras's symbolic tensors.

    Returns:
        A model from a dictionary, `l_224`, float32 [B, 224, 224, 1], and `l_299`, float32 [B, 299, 299, 3], both in
        [-1, 1], to float32 [B, 224, 224, 2], the normalized a and b. It shares the weights.
    """
    inputs = {name: keras.Input(tensors.SHAPES[name], name=name) for name in ("l_224", "l_299")}
    outputs = model.ab(model.outputs(inputs, training=False))
    return keras.models.clone_model(
        keras.Model(inputs, outputs), clone_function=lambda layer: layer, call_function=_call, recursive=True
    )


def _call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
    """Calls a layer, or in place of one of our own that has no weights the operations that it is made of."""
    is_own = type(layer).__module__.split(".")[0] != "keras"
    return layer.call(*args, **kwargs) if is_own and not layer.weights else layer(*args, **kwargs)
