r"""From the bytes of a picture to RGB, and from any size to another, inside TensorFlow graphs: as `pipeline.image`.

TensorFlow's decoders give what Pillow's give, but for a few forms that are refused: BMPs that are compressed or have a
palette, and GIFs with transparency. There is none for TIFF.
"""

import tensorflow as tf

from pipeline.image import ResizeMode

_HEADER_BYTES = 1 << 16  # of a file; what is looked for stands there
# The orientation, a number from 1 to 8, among the twelve-byte entries behind the head of an EXIF block, in either order
# of bytes. `\C` is any byte.
_ORIENTATION = (
    r"\A\C*?(?:Exif\x00\x00|eXIf)(?:"
    r"II\*\x00\x08\x00\x00\x00\C\C(?:\C{12}){0,50}?\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])\x00|"
    r"MM\x00\*\x00\x00\x00\x08\C\C(?:\C{12}){0,50}?\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08]))\C*"
)
_BMP = r"BM\C*"
_PLAIN_BMP = r"BM\C{26}[\x18\x20]\x00\x00\x00\x00\x00\C*"  # 24 or 32 bits for each pixel, without compression
_TRANSPARENT_GIF = r"GIF8\C*!\C\x04[\x01\x05\x09\x0d]\C\C\C\x00\C*"  # a block that says so before a frame


def decode(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a JPEG, PNG, WebP, BMP or GIF, of which the first frame.

    EXIF rotation is applied where the block stands in the first 64 KiB, CMYK and 16-bit samples are converted.

    Args:
        data: string []: the bytes of the file.

    Returns:
        uint8 [height, width, 3], RGB, and [height, width, 0 or 1]: the transparency, if there is any.

    Raises:
        InvalidArgumentError: of the operation: no picture, a damaged one, or one of another form.
    """
    head = tf.strings.substr(data, 0, _HEADER_BYTES)
    rgb, alpha = tf.case(
        [
            (tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff", lambda: _decode_jpeg(data)),
            (tf.strings.substr(data, 0, 4) == b"\x89PNG", lambda: _decode_png(data, head)),
        ],
        default=lambda: _decode_other(data, head),
    )
    orientation = _orientation(head)
    rgb, alpha = (_upright(pixels, orientation) for pixels in (rgb, alpha))
    return tf.ensure_shape(rgb, [None, None, 3]), tf.ensure_shape(alpha, [None, None, None])


def _decode_jpeg(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    rgb = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")  # as Pillow
    return rgb, rgb[..., :0]


def _decode_png(data: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    depth, kind = tf.unstack(tf.io.decode_raw(tf.strings.substr(data, 24, 2), tf.uint8, fixed_length=2))

    def sixteen_bit_gray() -> tuple[tf.Tensor, tf.Tensor]:
        level = tf.cast(tf.io.decode_png(data, channels=1, dtype=tf.uint16) // 257, tf.uint8)  # 65535 = 257 * 255
        return tf.repeat(level, 3, axis=-1), level[..., :0]

    def others() -> tuple[tf.Tensor, tf.Tensor]:
        before_pixels = tf.strings.split([head], "IDAT", maxsplit=1)[0, 0]
        is_transparent = (kind >= 4) | tf.strings.regex_full_match(before_pixels, r"\C*tRNS\C*")
        rgba = tf.io.decode_png(data, channels=4)
        return rgba[..., :3], rgba[..., 3 : 3 + tf.cast(is_transparent, tf.int32)]

    return tf.cond((depth == 16) & (kind == 0), sixteen_bit_gray, others)


def _decode_other(data: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    is_bmp = tf.strings.regex_full_match(head, _BMP)
    checks = [
        tf.debugging.Assert(
            ~is_bmp | tf.strings.regex_full_match(head, _PLAIN_BMP), ["a BMP with a palette or compressed; send a PNG"]
        ),
        tf.debugging.Assert(
            ~tf.strings.regex_full_match(head, _TRANSPARENT_GIF), ["a GIF with transparency; send a PNG"]
        ),
    ]
    with tf.control_dependencies(checks):
        pixels = tf.io.decode_image(data, expand_animations=False)
    rgba = tf.ensure_shape(pixels, [None, None, None])
    return rgba[..., :3], rgba[..., 3 : tf.where(is_bmp, 3, 4)]  # the fourth byte of a BMP says nothing


def _orientation(head: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation, int32 []: 1 where there is none."""
    found = tf.strings.regex_replace(head, _ORIENTATION, r"\1\2", replace_global=False)
    found = tf.where(tf.strings.length(found) == 1, found, b"\x01")
    return tf.cast(tf.io.decode_raw(found, tf.uint8, fixed_length=1)[0], tf.int32)


def _upright(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
    rows, columns = (
        tf.where(tf.reduce_any(orientation == mirrored), -1, 1) for mirrored in ([3, 4, 7, 8], [2, 3, 6, 7])
    )
    return pixels[::rows, ::columns]


def on_white(rgb: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """Lays a picture, as `decode` gives it, on white: uint8 [height, width, 3]."""

    def blend() -> tf.Tensor:
        opacity = tf.cast(alpha, tf.int32)
        return tf.cast((tf.cast(rgb, tf.int32) * opacity + 255 * (255 - opacity) + 127) // 255, tf.uint8)

    return tf.cond(tf.shape(alpha)[-1] > 0, blend, lambda: rgb)


def fit(pictures: tf.Tensor, size: int, mode: ResizeMode) -> tf.Tensor:
    """Makes pictures square, as `pipeline.image.fit`.

    Args:
        pictures: uint8 [N, height, width, channels].
        size: the side of the result in pixels.
        mode: stretch or pad.

    Returns:
        uint8 [N, size, size, channels].
    """
    shape = tf.shape(pictures)
    (top, rows), (left, columns) = window(shape[1], shape[2], size, mode)
    resized = _resize(tf.cast(pictures, tf.float32), rows, columns)
    is_half = (shape[1] == 2 * rows) & (shape[2] == 2 * columns)  # for which OpenCV has a way of its own
    level = tf.where(is_half, tf.floor(resized + 0.5), tf.round(resized))
    margins = [[0, 0], [top, size - top - rows], [left, size - left - columns], [0, 0]]
    fitted = tf.cast(tf.pad(level, margins, constant_values=255.0), tf.uint8)
    return tf.ensure_shape(fitted, [None, size, size, pictures.shape[-1]])


def window(
    height: tf.Tensor, width: tf.Tensor, size: int, mode: ResizeMode
) -> tuple[tuple[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """The rows and columns of the square that the picture fills, as `pipeline.image.window`: first and count of each.

    Args:
        height: int32 [].
        width: int32 [].
        size: the side of the square.
        mode: stretch or pad.
    """
    if mode is ResizeMode.STRETCH:
        return (tf.constant(0), tf.constant(size)), (tf.constant(0), tf.constant(size))
    scale = size / tf.maximum(height, width)
    rows, columns = (
        tf.maximum(1, tf.cast(tf.round(tf.cast(side, tf.float64) * scale), tf.int32)) for side in (height, width)
    )
    return ((size - rows) // 2, rows), ((size - columns) // 2, columns)


def _resize(pictures: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Float32 [N, h, w, channels] to [N, height, width, channels], as `pipeline.image.resize`, but not rounded."""
    count, rows, columns, channels = tf.unstack(tf.shape(pictures))
    flat = tf.reshape(pictures, [count, rows, columns * channels])
    return columns_resized(
        tf.reshape(tf.matmul(weights(rows, height), flat), [count, height, columns, channels]), width
    )


def columns_resized(pictures: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Float32 [N, h, w, channels] to [N, h, width, channels], as `pipeline.image.resize`."""
    return tf.matmul(weights(tf.shape(pictures)[2], width), pictures)


def weights(size: tf.Tensor, to: tf.Tensor) -> tf.Tensor:
    """How much each pixel of an axis counts in each one of its result.

    Where the axis shrinks, by how much they overlap; where it grows, by how near their centers are. In whole numbers,
    which are exact.

    Args:
        size: int32 [], of the axis.
        to: int32 [], of the result.

    Returns:
        float32 [to, size].
    """
    pixel, result = tf.range(size), tf.range(to)[:, None]
    overlap = tf.minimum((pixel + 1) * to, (result + 1) * size) - tf.maximum(pixel * to, result * size)
    place = tf.clip_by_value((2 * result + 1) * size - to, 0, 2 * to * (size - 1))
    nearness = 2 * to - tf.abs(place - 2 * to * pixel)
    weight = tf.where(to < size, overlap, nearness)
    return tf.cast(tf.maximum(weight, 0), tf.float32) / tf.cast(tf.where(to < size, size, 2 * to), tf.float32)
