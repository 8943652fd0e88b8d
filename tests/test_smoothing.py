import numpy as np
import pytest

from trainer.smoothing import Smoother

SIZE = 96


@pytest.fixture
def scene():
    """A field of soft blobs, larger than a frame, and the true a and b of each place in it."""
    generator = np.random.default_rng(3)
    y, x = np.mgrid[: 2 * SIZE, : 2 * SIZE]
    gray = np.zeros((2 * SIZE, 2 * SIZE))
    for row, column in generator.integers(0, 2 * SIZE, (60, 2)):
        gray += np.exp(-((y - row) ** 2 + (x - column) ** 2) / 50.0)
    gray = np.clip(70 * gray, 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1), np.stack([gray / 255 - 0.5, 0.5 - gray / 255], axis=-1)


def pan(scene, number):
    """What a camera sees that moves by two pixels down and one to the right from frame to frame."""
    window = slice(2 * number, 2 * number + SIZE), slice(number, number + SIZE)
    return np.ascontiguousarray(scene[0][window]), scene[1][window]


def noise(number):
    """A color for the whole frame, another one each time: what flickers."""
    return np.random.default_rng(number).normal(0, 0.1, 2)


def test_flicker_shrinks_and_colors_stay_true_to_what_moves(scene):
    smoother = Smoother(0.8)
    raw, smooth = [], []
    for number in range(30):
        rgb, truth = pan(scene, number)
        raw.append(np.abs(noise(number)).mean())
        smooth.append(np.abs(smoother.smooth(rgb, truth + noise(number)) - truth).mean())
    # Of noise a running mean leaves sqrt((1 - s) / (1 + s)) = 1/3; what comes into view has no past yet.
    assert np.mean(smooth[10:]) < 0.5 * np.mean(raw[10:])


def test_without_motion_it_is_a_running_mean(scene):
    smoother = Smoother(0.75)
    rgb, truth = pan(scene, 0)
    expected = truth + noise(0)
    smoother.smooth(rgb, expected)
    for number in range(1, 6):
        expected = 0.75 * expected + 0.25 * (truth + noise(number))
        result = smoother.smooth(rgb, truth + noise(number))
    np.testing.assert_allclose(result, expected, atol=2e-3)
    assert result.dtype == np.float32


def test_a_cut_brings_no_color_along(scene):
    smoother = Smoother(0.9)
    rgb, truth = pan(scene, 0)
    smoother.smooth(rgb, truth + 0.5)
    np.testing.assert_array_equal(smoother.smooth(255 - rgb[::-1, ::-1], -truth), -truth.astype(np.float32))


def test_what_appears_has_its_own_color(scene):
    """A bright square that was not there before takes nothing of the color behind it."""
    smoother = Smoother(0.9)
    rgb, truth = pan(scene, 0)
    smoother.smooth(rgb // 2, np.full_like(truth, -0.5))
    with_square = rgb // 2
    with_square[40:56, 40:56] = 250
    result = smoother.smooth(with_square, np.full_like(truth, 0.5))
    assert result[44:52, 44:52].mean() > 0.4
    assert result[5:20, 5:20].mean() < 0


@pytest.mark.parametrize("strength", [0.0, 0.9])
@pytest.mark.parametrize("size", [1, 20])
def test_little_pictures_and_no_smoothing_are_left_alone(strength, size):
    smoother = Smoother(strength)
    for number in range(3):
        ab = np.full((size, size, 2), number / 4, np.float16)
        np.testing.assert_array_equal(smoother.smooth(np.full((90, 50, 3), 128, np.uint8), ab), ab.astype(np.float32))


def test_a_is_not_changed_in_place(scene):
    rgb, truth = pan(scene, 0)
    smoother = Smoother(0.9)
    first = smoother.smooth(rgb, truth.astype(np.float32))
    kept = first.copy()
    smoother.smooth(rgb, truth.astype(np.float32) + 0.3)
    np.testing.assert_array_equal(first, kept)
