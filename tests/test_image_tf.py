import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import image
from pipeline.image import Picture, ResizeMode
from tests.helpers import encoded, noise
from trainer import image_tf

decode = tf.function(image_tf.decode, input_signature=[tf.TensorSpec([], tf.string)])
RGBA = np.dstack([noise(40, 50), noise(40, 50, 1)[..., 0]])


def assert_equals_pillow(data):
    expected = image.decode_picture(data)
    rgb, alpha = decode(data)
    np.testing.assert_array_equal(rgb, expected.rgb)
    if expected.alpha is None:
        assert alpha.shape == (*rgb.shape[:2], 0)
    else:
        np.testing.assert_array_equal(alpha[..., 0], expected.alpha)


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": "4:2:2"}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGB", "PNG", {"transparency": tuple(map(int, RGBA[3, 3, :3]))}),
        ("RGBA", "PNG", {}),
        ("L", "PNG", {}),
        ("L", "PNG", {"transparency": 5}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("1", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "BMP", {}),
        ("RGBA", "BMP", {}),
        ("L", "GIF", {}),
        ("RGB", "GIF", {}),
    ],
)
def test_equals_pillow(mode, image_format, options):
    assert_equals_pillow(encoded(Image.fromarray(RGBA).convert(mode), image_format, **options))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits(channels):
    """Grays are divided by 257, of others the upper byte is taken, as Pillow does."""
    shape = (40, 50, channels) if channels > 1 else (40, 50)
    levels = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    assert_equals_pillow(tf.io.encode_png(levels.reshape(40, 50, channels)).numpy())


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_rotation(orientation, image_format, endian):
    exif = Image.Exif()
    exif.endian = endian
    exif.update({0x010F: "a maker", 0x0112: orientation, 0x0131: "a program"})
    assert_equals_pillow(encoded(noise(40, 50), image_format, exif=exif.tobytes()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(Image.fromarray(RGBA).convert("P"), "BMP"), "a BMP with a palette or compressed"),
        (encoded(Image.fromarray(RGBA).convert("P"), "GIF", transparency=3), "a GIF with transparency"),
        (encoded(Image.fromarray(RGBA), "TIFF"), "Unknown image file format"),
        (b"no picture", "Unknown image file format"),
        (b"", "Input is empty"),
        (encoded(noise(40, 50), "JPEG")[:1000], "JPEG"),
        (encoded(noise(40, 50))[:1000], "PNG"),
    ],
)
def test_what_cannot_be_decoded_as_pillow_does_is_refused(data, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        decode(data)


def test_every_transparency_of_every_level_on_white():
    level, alpha = (each.astype(np.uint8) for each in np.indices((256, 256)))
    picture = Picture(np.repeat(level[..., None], 3, axis=-1), alpha)
    for alpha, expected in ((picture.alpha[..., None], picture.on_white()), (np.empty((256, 256, 0)), picture.rgb)):
        np.testing.assert_array_equal(image_tf.on_white(tf.constant(picture.rgb), tf.constant(alpha)), expected)


@pytest.mark.parametrize("mode", [ResizeMode.STRETCH, ResizeMode.PAD])
@pytest.mark.parametrize("size", [224, 299])
def test_fits_as_opencv_does(size, mode):
    """Up and down, but for ties that float32 decides; where OpenCV takes the mean of four pixels, there are many."""
    shapes = [(1, 1), (3, 500), (500, 3), (224, 224), (448, 448), (598, 598), (640, 427), (448, 300), (900, 901)]
    fit = tf.function(lambda pictures: image_tf.fit(pictures, size, mode), reduce_retracing=True)
    for shape in shapes:
        pictures = np.stack([noise(*shape, 1), noise(*shape, 2)])
        found = fit(tf.constant(pictures)).numpy()
        for picture, result in zip(pictures, found, strict=True):
            difference = np.abs(result.astype(int) - image.fit(picture, size, mode))
            assert difference.max() <= 1
            assert (difference > 0).mean() < 3e-3
