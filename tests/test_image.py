import contextlib
import struct
import zlib

import cv2
import numpy as np
import pytest
import skimage.data
import skimage.transform
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import image
from pipeline.image import ResizeMode
from pipeline.rejects import Reason, RejectedImage
from tests.helpers import encoded, exactly_resized, noise

RGB = noise(20, 30)


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}])
def test_png_comes_back_exactly(options):
    np.testing.assert_array_equal(image.decode(encoded(RGB, "PNG", **options)), RGB)


@pytest.mark.parametrize("image_format", ["WEBP", "TIFF", "BMP"])
def test_other_formats_come_back_exactly(image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    np.testing.assert_array_equal(image.decode(encoded(RGB, image_format, **options)), RGB)


def test_jpeg_is_close():
    photograph = skimage.data.chelsea()
    assert np.abs(image.decode(encoded(photograph, "JPEG", quality=95)).astype(int) - photograph).mean() < 3


def test_cmyk_jpeg_has_the_colors_of_the_picture():
    photograph = skimage.data.chelsea()
    cmyk = Image.fromarray(photograph).convert("CMYK")
    assert np.abs(image.decode(encoded(cmyk, "JPEG", quality=95)).astype(int) - photograph).mean() < 3


def test_single_channel_is_repeated():
    gray = RGB[..., 0]
    np.testing.assert_array_equal(image.decode(encoded(gray)), np.repeat(gray[..., None], 3, axis=-1))


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)  # 0, 1, 128 and 255 of 255
    decoded = image.decode(encoded(Image.fromarray(levels)))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_in_color(suffix, channels):
    levels = np.random.default_rng(0).integers(0, 65536, (5, 6, channels)).astype(np.uint16)
    decoded = image.decode_picture(cv2.imencode(suffix, levels)[1].tobytes())
    assert np.abs(decoded.rgb - levels[..., 2::-1] / 257).max() < 1  # OpenCV's order is blue, green, red
    assert decoded.alpha is None if channels == 3 else np.abs(decoded.alpha - levels[..., 3] / 257).max() < 1


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_is_kept_apart(mode):
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = np.dstack([noise(16, 16), alpha])
    if mode == "LA":
        rgba[..., 1:3] = rgba[..., :1]
    if mode == "P":
        rgba[..., 3] = np.where(alpha > 99, 255, 0)
        rgba[..., :3] = np.where(alpha[..., None] > 99, 80, 200)
    data = encoded(Image.fromarray(rgba).convert("RGBA" if mode == "P" else mode).convert(mode))
    picture = image.decode_picture(data)
    np.testing.assert_array_equal(picture.alpha, rgba[..., 3])
    shown = rgba[..., 3] > 0
    np.testing.assert_array_equal(picture.rgb[shown], rgba[..., :3][shown])
    np.testing.assert_array_equal(picture.on_white(), image.decode(data))


def test_pixels_are_known_from_the_header():
    data = encoded(noise(30, 50), "PNG")
    assert image.pixels(data[:100]) == 1500
    with pytest.raises(RejectedImage, match="not_an_image"):
        image.pixels(b"no picture")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_samples_without_a_white_are_rejected(dtype):
    with pytest.raises(RejectedImage, match="have no defined range"):
        image.decode(encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF"))


def test_palette_and_transparency():
    palette = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(image.decode(encoded(palette)), np.asarray(palette.convert("RGB")))
    alpha = np.zeros((20, 30, 1), np.uint8)
    alpha[:10] = 255
    decoded = image.decode(encoded(np.concatenate([RGB, alpha], axis=-1)))
    np.testing.assert_array_equal(decoded[:10], RGB[:10])
    assert (decoded[10:] == 255).all()  # white shows through


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation):
    turns = {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: np.swapaxes(x, 0, 1),
        6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2), 8: lambda x: np.rot90(x, 1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(image.decode(encoded(RGB, "PNG", exif=exif)), turns[orientation](RGB))


def test_damaged_exif_is_ignored():
    data = encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert image.decode(data).shape == (20, 30, 3)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_truncated_picture_is_rejected(image_format):
    data = encoded(noise(100, 100), image_format)
    with pytest.raises(RejectedImage) as caught:
        image.decode(data[: len(data) * 2 // 3])
    assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize(
    "data", [b"", b"GIF8", b"hello, world" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"]
)
def test_what_is_no_image_is_rejected(data):
    with pytest.raises(RejectedImage) as caught:
        image.decode(data)
    assert caught.value.reason is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize(("width", "height"), [(65500, 65500), (20_000, 9_000)])
def test_a_promise_of_too_many_pixels_is_rejected_before_they_are_allocated(width, height):
    png = bytearray(encoded(RGB))
    png[16:24] = struct.pack(">II", width, height)
    png[29:33] = struct.pack(">I", zlib.crc32(bytes(png[12:29])))
    with pytest.raises(RejectedImage) as caught:
        image.decode(bytes(png))
    assert caught.value.reason is Reason.TOO_LARGE


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_mutated_pictures_are_decoded_or_rejected(data):
    image_format = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]))
    mutated = bytearray(encoded(RGB, image_format))
    for _ in range(data.draw(st.integers(1, 8))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RejectedImage):
        decoded = image.decode(bytes(mutated))
        assert decoded.dtype == np.uint8
        assert decoded.ndim == 3
        assert decoded.shape[2] == 3


@pytest.mark.parametrize("source", [(300, 451), (100, 80), (500, 90), (224, 299), (1, 1), (3, 900)])
@pytest.mark.parametrize("size", [(224, 224), (299, 299)])
def test_resize_equals_scikit_image(source, size):
    rgb = noise(*source)
    resized = image.resize(rgb, *size)
    assert np.abs(resized - exactly_resized(rgb, *size)).max() <= 0.5 + 1e-3


def test_stretch_fills_the_square():
    rgb = np.zeros((10, 40, 3), np.uint8)
    assert (image.fit(rgb, 16, ResizeMode.STRETCH) == 0).all()


def test_pad_keeps_the_aspect_on_white():
    rgb = np.zeros((10, 40, 3), np.uint8)
    square = image.fit(rgb, 16, ResizeMode.PAD)
    assert (square[6:10] == 0).all()
    assert (square[:6] == 255).all()
    assert (square[10:] == 255).all()


def test_crop_takes_the_center():
    rgb = np.zeros((10, 40, 3), np.uint8)
    rgb[:, 15:25] = 200
    assert (image.fit(rgb, 16, ResizeMode.CROP) == 200).all()


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([224, 299]))
def test_window_of_a_padded_picture_lies_in_the_square_and_keeps_the_aspect(height, width, size):
    rows, columns = image.window(height, width, size, image.ResizeMode.PAD)
    inner = rows.stop - rows.start, columns.stop - columns.start
    assert 0 <= rows.start < rows.stop <= size
    assert 0 <= columns.start < columns.stop <= size
    assert max(inner) == size
    assert abs(inner[0] / size - height / max(height, width)) <= 1 / size
    assert abs(inner[1] / size - width / max(height, width)) <= 1 / size
