import numpy as np
import pytest
import skimage.color
import skimage.data

from pipeline import color

# Worked out with the formulas of CIE 15 and the sRGB primaries, to four digits; also Lindbloom's calculator.
KNOWN = {
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 255, 255): (100.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (119, 119, 119): (50.03, 0.0, 0.0),
}


@pytest.mark.parametrize(("rgb", "lab"), KNOWN.items())
def test_known_colors(rgb, lab):
    assert color.rgb_to_lab(np.array(rgb, np.uint8)) == pytest.approx(lab, abs=0.02)
    assert tuple(color.lab_to_rgb(np.array(lab))) == rgb


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_equals_scikit_image_on_photographs(name):
    rgb = getattr(skimage.data, name)()
    expected = skimage.color.rgb2lab(rgb)
    assert np.abs(color.rgb_to_lab(rgb) - expected).max() < 1e-3
    assert np.abs(color.rgb_to_l(rgb) - expected[..., 0]).max() < 1e-3


def test_every_eighth_color_equals_scikit_image_and_comes_back():
    levels = np.append(np.arange(0, 256, 8), 255).astype(np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    lab = color.rgb_to_lab(rgb)
    assert np.abs(lab - skimage.color.rgb2lab(rgb)).max() < 1e-3
    np.testing.assert_array_equal(color.lab_to_rgb(lab), rgb)


@pytest.mark.filterwarnings("ignore:.*negative Z values")
def test_colors_out_of_srgb_are_clipped_as_by_scikit_image():
    generator = np.random.default_rng(0)
    lab = np.stack([generator.uniform(0, 100, 10_000), *generator.uniform(-128, 128, (2, 10_000))], axis=-1)
    expected = np.clip(skimage.color.lab2rgb(lab), 0, 1) * 255
    assert np.abs(color.lab_to_rgb(lab) - expected).max() <= 0.5 + 1e-3  # rounded to the nearest level


def test_normalization_covers_the_ranges():
    assert color.normalize_l(np.array([0.0, 50.0, 100.0])).tolist() == [-1.0, 0.0, 1.0]
    assert color.normalize_ab(np.array([-128.0, 0.0, 64.0])).tolist() == [-1.0, 0.0, 0.5]
    values = np.linspace(-1, 1, 11, dtype=np.float32)
    np.testing.assert_allclose(color.normalize_l(color.denormalize_l(values)), values, atol=1e-6)
    np.testing.assert_allclose(color.normalize_ab(color.denormalize_ab(values)), values, atol=1e-6)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3)), np.uint8(3)])
def test_wrong_rgb_is_refused(wrong):
    for convert in (color.rgb_to_lab, color.rgb_to_l):
        with pytest.raises(ValueError, match=r"expected uint8 \[\.\.\., 3\]"):
            convert(np.asarray(wrong))


@pytest.mark.parametrize("wrong", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), np.float32(3)])
def test_wrong_lab_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected floating \[\.\.\., 3\]"):
        color.lab_to_rgb(np.asarray(wrong))
