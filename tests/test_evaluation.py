import numpy as np
import pytest
import skimage.metrics
import tensorflow as tf

from pipeline import color, color_counts, color_tf, reader
from pipeline.color_counts import NONE, SIDE, ColorCounts
from pipeline.shards import TRAIN, VALIDATION
from trainer import evaluation, metrics, models
from trainer.evaluation import GRAY, MEAN_COLOR, METHODS, MODEL, Evaluator


@pytest.fixture
def examples(datasets):
    return list(reader.examples(datasets["full"], VALIDATION))


@pytest.fixture
def colors(datasets):
    return datasets["full"].manifest.splits[TRAIN].colors


def rgb(example, ab):
    lab = [color.denormalize_l(example.tensors["l_224"]), np.broadcast_to(color.denormalize_ab(ab), (224, 224, 2))]
    return color.lab_to_rgb(np.concatenate(lab, axis=-1).astype(np.float64))


def column(measured, name, method):
    return [each.column(name)[METHODS.index(method)] for each in measured]


def test_baselines_are_what_numpy_and_scikit_image_make_of_them(config, examples, colors):
    measured = list(Evaluator(models.create(config.model, 1), colors).measure(examples))
    assert [each.key for each in measured] == [example.key for example in examples]
    weights = color_counts.weights(colors)
    for method, constant in ((GRAY, np.zeros(2)), (MEAN_COLOR, color.normalize_ab(np.array(colors.mean)))):
        for row, example in enumerate(examples):
            truth = example.tensors["ab_224"].astype(np.float64)
            distances = 128 * np.linalg.norm(truth - constant, axis=-1)
            own = weights[color_counts.bins(128 * truth)]
            pictures = [rgb(example, ab) for ab in (truth, np.broadcast_to(constant, truth.shape))]
            expected = {
                "mse": np.mean((truth - constant) ** 2),
                "psnr": skimage.metrics.peak_signal_noise_ratio(*pictures),
                "ssim": skimage.metrics.structural_similarity(
                    *pictures, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
                ),
                "ab_error": np.minimum(distances, 150).mean(),
                "balanced_error": (own * np.minimum(distances, 150)).sum(),
                "weight": own.sum(),
            }
            for name, value in expected.items():
                assert column(measured, name, method)[row] == pytest.approx(value, rel=2e-3), name


def test_a_model_that_knows_the_truth_has_no_error(config, examples, colors, monkeypatch):
    model = models.create(config.model, 1)
    monkeypatch.setattr(model, "outputs", lambda batch, training: batch["ab_224"])
    measured = list(Evaluator(model, colors).measure(examples))
    for name, best in (("mse", 0), ("psnr", 100), ("ssim", 1), ("ab_error", 0), ("balanced_error", 0)):
        assert column(measured, name, MODEL) == pytest.approx([best] * len(examples), abs=1e-6)
    assert column(measured, "colorfulness", MODEL) == pytest.approx([each.colorfulness for each in measured])
    gray, predicted, truth = np.split(measured[0].pictures, 3, axis=1)
    np.testing.assert_array_equal(predicted, truth)
    assert np.ptp(gray.astype(int), axis=-1).max() <= 1


def test_the_area_under_the_curve_of_errors_by_hand():
    """Pixels that are off by 0, 75, 150 and 300: the curve has a quarter up to 75, half up to 150."""
    values = np.zeros((1, 3, 7))
    offs = np.array([0, 75, 150, 300]) / 128
    predicted = np.zeros((1, 2, 2, 2), np.float32)
    predicted[0, ..., 0] = offs.reshape(2, 2)
    values[0, :, 4] = np.mean(metrics.ab_error(tf.constant(predicted), tf.zeros((1, 2, 2, 2))))
    values[0, :, 5:] = (3 * 30 + 1 * 90, 4)  # three pixels of weight 1 are off by 30, one by 90: a mean of 45
    figures = evaluation.summarize(values)
    assert figures[MODEL]["auc"].value == pytest.approx(100 * (0.25 * 75 + 0.5 * 75) / 150)
    assert figures[MODEL]["balanced_auc"].value == pytest.approx(100 * (1 - 45 / 150))


def test_the_area_is_that_of_the_drawn_curve():
    errors = np.random.default_rng(0).gamma(2, 20, 10_000)
    thresholds = np.linspace(0, 150, 100_001)
    curve = np.searchsorted(np.sort(errors), thresholds, side="right") / len(errors)
    area = np.trapezoid(curve, thresholds) / 150
    assert 1 - np.minimum(errors, 150).mean() / 150 == pytest.approx(area, abs=1e-4)


def counts(**pixels):
    bins = [0] * SIDE**2
    for name, number in pixels.items():
        bins[int(name.removeprefix("bin"))] = number
    return ColorCounts(sum(bins), (0.0, 0.0), tuple(bins))


def test_rare_colors_weigh_as_much_in_all_as_frequent_ones():
    found = color_counts.weights(counts(bin150=900, bin400=100))
    assert found[400] / found[150] == pytest.approx(9)
    assert 0.9 * found[150] + 0.1 * found[400] == pytest.approx(1)
    assert found[0] == found.max() == pytest.approx(found[400] * 100 * smoothing())  # as if one pixel had it
    assert (color_counts.weights(NONE) == 1).all()


def smoothing():
    """What the Gaussian leaves at its center."""
    kernel = np.exp(-2.0 * np.arange(-2, 3) ** 2)
    return (kernel[2] / kernel.sum()) ** 2


def test_intervals_are_those_of_a_mean():
    generator = np.random.default_rng(0)
    values = np.ones((400, 3, 7))
    values[:, 0, 0] = generator.normal(5, 2, 400)
    figure = evaluation.summarize(values)[MODEL]["mse"]
    assert figure.value == pytest.approx(values[:, 0, 0].mean())
    half = 1.96 * values[:, 0, 0].std() / 20
    assert figure.value - figure.low == pytest.approx(half, rel=0.1)
    assert figure.high - figure.value == pytest.approx(half, rel=0.1)
    assert evaluation.summarize(values)[MODEL]["mse"] == figure
    assert evaluation.summarize(values)[GRAY]["mse"].low == 1


def test_pictures_are_those_of_the_training_panel(config, examples, colors):
    (first, *_) = Evaluator(models.create(config.model, 1), colors).measure(examples[:1])
    expected = color_tf.normalized_to_rgb(*(tf.constant(examples[0].tensors[name]) for name in ("l_224", "ab_224")))
    np.testing.assert_array_equal(first.pictures[:, 448:], expected)


def test_a_difference_has_the_interval_of_pairs():
    """Pictures that differ by much, and a model that is a little better on each: that leaves no doubt."""
    values = np.ones((200, len(METHODS), len(evaluation._COLUMNS)))
    hard = np.random.default_rng(0).uniform(1, 100, 200)
    values[..., 0] = hard[:, None]
    values[:, 0, 0] = hard - np.random.default_rng(1).uniform(0, 1, 200)
    figures = evaluation.summarize(values)
    assert figures[MODEL]["mse"].high > figures[GRAY]["mse"].low
    difference = figures["model - gray"]["mse"]
    assert difference.value == pytest.approx(figures[MODEL]["mse"].value - figures[GRAY]["mse"].value)
    assert -0.6 < difference.low < difference.value < difference.high < -0.4
    assert figures["model - mean color"]["psnr"].value == 0
