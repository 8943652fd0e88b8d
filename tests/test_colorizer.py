import cv2
import numpy as np
import pytest

from pipeline import color, image
from pipeline.errors import UserError
from pipeline.image import ResizeMode
from tests.helpers import noise
from trainer import colorizer, models, trained
from trainer.colorizer import FixedSizeColorizer, NativeSizeColorizer

GRAYS = np.repeat(noise(100, 130)[..., :1] // 4 + 90, 3, axis=-1)  # few colors of their lightness fall out of sRGB


@pytest.fixture
def model(tiny_extractor, config):
    """An untrained network of the paper: any weights show where a color comes from."""
    return models.create(config.model, config.seed)


@pytest.mark.parametrize("shape", [(50, 60), (300, 240), (100, 500), (1, 1), (224, 700)])
def test_color_is_spread_evenly_over_any_size(model, monkeypatch, shape):
    """As OpenCV does it for axes that grow, whatever the strips; as the mean for others."""
    monkeypatch.setattr(colorizer, "_STRIP_PIXELS", 1000)
    ab = cv2.GaussianBlur(np.random.default_rng(0).uniform(-0.3, 0.3, (224, 224, 2)).astype(np.float32), (0, 0), 20)
    gray = np.full((*shape, 3), 128, np.uint8)
    found = color.rgb_to_lab(FixedSizeColorizer(model, ResizeMode.STRETCH).join(gray, ab))[..., 1:]
    expected = color.denormalize_ab(image.resize(ab, min(224, shape[0]), min(224, shape[1])))
    expected = cv2.resize(expected, shape[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(found - expected.reshape(found.shape)).max() < 1.2  # whole levels of red, green and blue


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (37, 53), (130, 96)])
def test_tiles_have_no_seams(model, monkeypatch, shape):
    """The network sees of a tile's surroundings all that matters: the same as without tiles, but for rounding."""
    own, picture = NativeSizeColorizer(model, ResizeMode.STRETCH), noise(*shape)
    (whole,) = own.predict([own.prepare(picture)])
    monkeypatch.setattr(colorizer, "_TILE", 32)
    (tiled,) = own.predict([own.prepare(picture)])
    assert whole.shape == (*shape, 2)
    assert np.ptp(whole[..., 0].astype(float)) > 0 or shape[0] <= 8
    np.testing.assert_allclose(tiled.astype(float), whole.astype(float), atol=1e-3)


def test_a_margin_that_is_too_small_would_show(model, monkeypatch):
    own = NativeSizeColorizer(model, ResizeMode.STRETCH)
    prepared = own.prepare(noise(130, 96))
    (whole,) = own.predict([prepared])
    monkeypatch.setattr(colorizer, "_TILE", 32)
    monkeypatch.setattr(model, "margin", 8, raising=False)
    (tiled,) = own.predict([prepared])
    assert np.abs(tiled.astype(float) - whole).max() > 1e-3


def test_a_picture_of_the_networks_size_is_the_same_in_its_own_size(model):
    picture = noise(224, 224)
    (fixed,) = FixedSizeColorizer(model, ResizeMode.STRETCH).colorize([picture])
    (native,) = NativeSizeColorizer(model, ResizeMode.STRETCH).colorize([picture])
    assert np.abs(fixed.astype(int) - native).max() <= 1


def test_saturation_scales_the_distance_from_gray(model):
    ab = np.full((10, 10, 2), 0.05, np.float32)
    plain, bold = (
        color.rgb_to_lab(FixedSizeColorizer(model, ResizeMode.STRETCH, saturation).join(GRAYS, ab))[..., 1:].mean()
        for saturation in (1.0, 2.0)
    )
    assert plain == pytest.approx(6.4, abs=0.2)
    assert bold == pytest.approx(12.8, abs=0.2)


def test_a_network_of_one_size_has_no_native_one(model, monkeypatch, finished):
    monkeypatch.setattr(type(model), "margin", None)
    with pytest.raises(UserError, match=r"--native_size: the network of model '\w+' takes one size only"):
        colorizer.load(str(finished[0]), native_size=True)


def test_the_newest_checkpoint_is_taken(tiny_extractor, finished):
    run, state = finished
    found = trained.load(str(run))
    assert found.step == state.step
    for one, other in zip(found.model.network.get_weights(), state.model.network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
