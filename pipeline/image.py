"""From the bytes of a picture to RGB, and from any size to the network's.

Decoding goes by content, never by name: ImageNet has a PNG named .JPEG and CMYK JPEGs among its pictures.
"""

import contextlib
import enum
import io
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import one_line
from pipeline.rejects import Reason, RejectedImage

# A header may promise any number of pixels: the limit is looked at before the first of them is allocated.
MAX_PIXELS = 178_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")  # no format that starts another program
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
_MODES_WITHOUT_WHITE = ("I", "F")  # whole numbers of 32 bits and floats: nothing says which of them is white
# Pillow warns of large sizes, which are looked at here, and of odd metadata, which is of no use here.
warnings.filterwarnings("ignore", module=r"PIL\.")
Image.init()  # registers them all; Pillow would load the rarer ones only when asked for no format in particular


class ResizeMode(str, enum.Enum):
    """How a picture of any aspect becomes a square.

    STRETCH scales each axis by its own factor (the report). PAD keeps the aspect and centers the picture on white (the
    original paper, section 3.1). CROP takes the largest centered square.
    """

    STRETCH = "stretch"
    PAD = "pad"
    CROP = "crop"


class Picture(NamedTuple):
    """A decoded picture.

    `rgb` is uint8 [height, width, 3], `alpha` uint8 [height, width], 0 where all shows through that lies behind; None
    where nothing does.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None

    def on_white(self) -> np.ndarray:
        """Laid on white, as a person would see it: uint8 [height, width, 3]."""
        if self.alpha is None:
            return self.rgb
        above = Image.fromarray(np.dstack([self.rgb, self.alpha]))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB"))


def decode(data: bytes, check_size: Callable[[int, int], None] = lambda width, height: None) -> np.ndarray:
    """Decodes a picture as a person would see it: as `decode_picture`, on white.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        RejectedImage: as `decode_picture`.
    """
    return decode_picture(data, check_size).on_white()


def decode_picture(data: bytes, check_size: Callable[[int, int], None] = lambda width, height: None) -> Picture:
    """Decodes a JPEG, PNG, WebP, TIFF, GIF or BMP.

    EXIF rotation is applied, CMYK and 16-bit samples are converted; a damaged EXIF block is ignored.

    Args:
        data: the bytes of the file.
        check_size: called with width and height before the first pixel is decoded; may raise `RejectedImage`.

    Raises:
        RejectedImage: not an image, truncated or damaged, larger than `MAX_PIXELS`, or refused by `check_size`.
    """
    with _rejecting(data):
        opened = _open(data)
        check_size(opened.width, opened.height)
        opened.load()
        return _separate(_upright(opened))


def pixels(data: bytes) -> int:
    """How many pixels the header of a picture promises.

    Raises:
        RejectedImage: not an image, or larger than `MAX_PIXELS`.
    """
    with _rejecting(data):
        opened = _open(data)
        return opened.width * opened.height


@contextlib.contextmanager
def _rejecting(data: bytes) -> Iterator[None]:
    """Gives whatever a decoder says of a picture the reason that it comes to."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise RejectedImage(Reason.NOT_AN_IMAGE, f"{len(data)} bytes that no decoder knows") from error
    except Image.DecompressionBombError as error:
        raise RejectedImage(Reason.TOO_LARGE, one_line(error)) from error
    except (MemoryError, RejectedImage):  # the first says nothing of the picture
        raise
    except Exception as error:  # damaged data surfaces as whatever the format's parser stumbled over
        raise RejectedImage(Reason.TRUNCATED, one_line(error)) from error


def _open(data: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    _check_size(opened)
    return opened


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, the limit is {MAX_PIXELS}")


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; where the EXIF block cannot be read, the picture is taken as it is."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged block, of which ImageNet has many
        return image
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _separate(image: Image.Image) -> Picture:
    """Color and transparency of any Pillow mode."""
    if image.mode in _MODES_WITHOUT_WHITE:
        raise RejectedImage(Reason.NOT_AN_IMAGE, f"samples of mode {image.mode} have no defined range")
    if image.mode in _SIXTEEN_BIT_MODES:
        level = (np.asarray(image) // 257).astype(np.uint8)  # 65535 = 257 * 255
        return Picture(np.repeat(level[..., None], 3, axis=-1), None)
    if image.has_transparency_data:
        channels = np.asarray(image.convert("RGBA"))
        return Picture(np.ascontiguousarray(channels[..., :3]), np.ascontiguousarray(channels[..., 3]))
    return Picture(np.asarray(image if image.mode == "RGB" else image.convert("RGB")), None)


def fit(image: np.ndarray, size: int, mode: ResizeMode) -> np.ndarray:
    """Makes a picture square.

    Args:
        image: uint8 [height, width, 3].
        size: the side of the result in pixels.
        mode: see `ResizeMode`.

    Returns:
        uint8 [size, size, 3].
    """
    height, width = image.shape[:2]
    if mode is ResizeMode.STRETCH:
        return resize(image, size, size)
    if mode is ResizeMode.CROP:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return resize(image[top : top + side, left : left + side], size, size)
    rows, columns = window(height, width, size, mode)
    square = np.full((size, size, 3), 255, np.uint8)
    square[rows, columns] = resize(image, rows.stop - rows.start, columns.stop - columns.start)
    return square


def window(height: int, width: int, size: int, mode: ResizeMode) -> tuple[slice, slice]:
    """The rows and columns of the square that the picture fills: all but in `ResizeMode.PAD`, and at least one."""
    if mode is not ResizeMode.PAD:
        return slice(0, size), slice(0, size)
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    return slice(top, top + inner_height), slice(left, left + inner_width)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resamples a picture: an axis that shrinks takes the mean over the area, one that grows is interpolated linearly.

    Args:
        image: uint8 or float32 [h, w, channels].
        height: rows of the result.
        width: columns of the result.

    Returns:
        [height, width, channels] of the same dtype; uint8 is rounded to the nearest level.
    """
    dtype = image.dtype
    shrunk = min(image.shape[0], height), min(image.shape[1], width)
    grows = shrunk != (height, width)
    if grows:  # in float32: OpenCV interpolates uint8 with 11-bit weights, which is off by a level in places
        image = image.astype(np.float32, copy=False)
    if image.shape[:2] != shrunk:
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    if grows:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        image = np.rint(image).astype(dtype) if dtype == np.uint8 else image
    return image


def encode_png(rgb: np.ndarray) -> bytes:
    """The bytes of a PNG file of a picture, uint8 [height, width, 3], and of nothing else."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    return buffer.getvalue()
