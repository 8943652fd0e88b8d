import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from beam_jobs import preprocess
from pipeline import color, reader
from pipeline.errors import UserError
from pipeline.shards import TRAIN
from tests.helpers import events, scalars
from trainer import loop
from trainer.checkpoints import Checkpoints


def train(config, dataset, workdir, strategy=None):
    strategy = strategy or tf.distribute.OneDeviceStrategy("/device:CPU:0")
    return loop.train_and_evaluate(config, strategy, dataset.directory, str(workdir))


def assert_weights_close(first, second, **tolerance):
    for a, b in zip(first.model.network.get_weights(), second.model.network.get_weights(), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, **tolerance)


def one_and_two_replicas(config, dataset, two_replicas, tmp_path):
    """200 steps and more, on splits of which neither is a multiple of the batch."""
    splits = dataset.manifest.splits
    assert all(split.examples % config.batch_size for split in splits.values())
    steps = reader.steps_per_epoch(dataset, config.batch_size)
    epochs = -(-200 // steps)
    config.epochs_per_learning_rate = (epochs // 2, epochs - epochs // 2)
    one = train(config, dataset, tmp_path / "one")
    two = train(config, dataset, tmp_path / "two", two_replicas)
    assert one.step == two.step == epochs * steps >= 200
    for tag, count in (("loss", one.step), ("learning_rate", one.step), ("validation_loss", epochs)):
        first, second = scalars(tmp_path / "one", tag), scalars(tmp_path / "two", tag)
        assert first.keys() == second.keys()
        assert len(first) == count
        np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-3)
    return one, two


def test_two_replicas_equal_one_over_200_steps(config, compact_dataset, two_replicas, tmp_path):
    """In float32 they part by rounding, 1e-7 in the first step, which training at a rate of 1e-3 (but not at the lower
    ones taken here) amplifies to 1e-3 within a hundred steps, as it would any other rounding."""
    config.learning_rates = (1e-4, 3e-5)
    one, two = one_and_two_replicas(config, compact_dataset, two_replicas, tmp_path)
    assert_weights_close(one, two, rtol=1e-3, atol=1e-3)


def test_two_replicas_equal_one_to_the_last_digits_in_float64(
    config, double_precision, compact_dataset, two_replicas, tmp_path
):
    """At the report's rates. Adam does not feel the scale of gradients, but its moments do."""
    config.learning_rates = (1e-3, 1e-4)
    one, two = one_and_two_replicas(config, compact_dataset, two_replicas, tmp_path)
    assert_weights_close(one, two, rtol=1e-9, atol=1e-9)
    for first, second in zip(one.optimizer.variables, two.optimizer.variables, strict=True):
        np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=1e-6, atol=1e-15)


def test_validation_loss_is_the_mean_over_examples(config, compact_dataset, two_replicas, tmp_path):
    config.epochs_per_learning_rate = (1, 1)
    state = train(config, compact_dataset, tmp_path, two_replicas)
    losses = []
    for example in reader.examples(compact_dataset, "validation").batch(1):
        losses.append(float(state.model.loss(state.model.outputs(example, training=False), example)[0]))
    assert len(losses) == compact_dataset.manifest.splits["validation"].examples
    assert state.validation_losses[-1] == pytest.approx(np.mean(losses), rel=1e-5)


def test_interrupted_after_an_epoch_and_resumed_ends_with_the_same_weights(
    config, compact_dataset, tmp_path, monkeypatch
):
    config.epochs_per_learning_rate = (2, 2)
    whole = train(config, compact_dataset, tmp_path / "whole")

    save, saved = Checkpoints.save, []

    def save_then_die(self, step, *args):
        save(self, step, *args)
        saved.append(step)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train(config, compact_dataset, tmp_path / "parts")
    resumed = train(config, compact_dataset, tmp_path / "parts")
    assert resumed.step == whole.step
    assert resumed.validation_losses == whole.validation_losses[2:]
    assert_weights_close(whole, resumed, rtol=0, atol=0)


def test_a_finished_run_has_nothing_left_to_do(config, compact_dataset, tmp_path):
    first = train(config, compact_dataset, tmp_path)
    again = train(config, compact_dataset, tmp_path)
    assert again.step == first.step
    assert again.validation_losses == []
    assert_weights_close(first, again, rtol=0, atol=0)


def test_overfits_a_handful_of_pictures_in_color(config, pictures, tmp_path):
    """The loss falls by 5x and the colors of the training pictures are there, not their mean brown."""
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "chelsea", "coffee", "retina"):
        for copy in range(24):  # so that an epoch has some steps
            shutil.copy(pictures / f"held_out/{name}.png", tmp_path / f"photos/{name}-{copy}.png")
    argv = [
        "preprocess", "--config=configs/demo.py", f"--source=images:{tmp_path}/photos", f"--output={tmp_path}/data",
        "--config.dataset.validation_fraction=0", "--config.dataset.layout=compact",
    ]  # fmt: skip
    preprocess.main(argv)
    dataset = reader.open_dataset(str(tmp_path / "data"))
    config.model.width_multiplier = 0.25
    config.horizontal_flip = False
    config.learning_rates, config.epochs_per_learning_rate = (2e-3, 5e-4), (6, 2)
    state = train(config, dataset, tmp_path / "run")
    losses = np.array(list(scalars(tmp_path / "run", "loss").values()))
    assert losses[:5].mean() / losses[-20:].mean() >= 5
    seen = next(iter(reader.examples(dataset, TRAIN).batch(96)))
    predicted = state.model.ab(state.model.outputs(seen, training=False))
    assert chroma(predicted) == pytest.approx(chroma(seen["ab_224"]), rel=0.3)


def chroma(ab):
    """Mean distance from gray, Lab units."""
    return float(np.linalg.norm(color.denormalize_ab(np.asarray(ab)), axis=-1).mean())


class TestTensorBoard:
    @pytest.fixture
    def run(self, config, compact_dataset, tmp_path):
        train(config, compact_dataset, tmp_path)
        return tmp_path

    def test_exact_set_of_tags(self, run):
        assert {tag for _, tag, _ in events(run)} == {
            "loss", "learning_rate", "images_per_second", "validation_loss", "panel", "config",
        }  # fmt: skip

    def test_steps_and_values(self, run, config, compact_dataset):
        steps = reader.steps_per_epoch(compact_dataset, config.batch_size)
        assert list(scalars(run, "loss")) == list(range(1, 2 * steps + 1))
        rates = scalars(run, "learning_rate")
        assert [rates[step] for step in (1, steps, steps + 1, 2 * steps)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
        assert list(scalars(run, "validation_loss")) == [steps, 2 * steps]
        assert min(scalars(run, "images_per_second").values()) > 0

    def test_panel_shows_gray_predicted_and_truth(self, run, compact_dataset):
        panels = [tf.make_ndarray(value.tensor) for _, tag, value in events(run) if tag == "panel"]
        assert len(panels) == 2
        for panel in panels:
            width, height, *pictures = panel
            assert (int(width), int(height), len(pictures)) == (3 * 224, 224, 2)
        shown = tf.io.decode_png(panels[0][2]).numpy()
        gray, predicted, truth = (shown[:, start : start + 224].astype(int) for start in (0, 224, 448))
        assert np.ptp(gray, axis=-1).max() <= 2
        assert np.ptp(truth, axis=-1).max() > 20
        first = next(iter(reader.examples(compact_dataset, "validation")))
        lab = np.concatenate([color.denormalize_l(first["l_224"]), color.denormalize_ab(first["ab_224"])], axis=-1)
        assert np.abs(truth - color.lab_to_rgb(lab)).max() <= 1
        assert predicted.shape == truth.shape

    def test_panel_is_the_same_pictures_each_epoch(self, run):
        first, second = (tf.make_ndarray(value.tensor) for _, tag, value in events(run) if tag == "panel")
        for before, after in zip(first[2:], second[2:], strict=True):
            np.testing.assert_array_equal(tf.io.decode_png(before)[:, 448:], tf.io.decode_png(after)[:, 448:])

    def test_config_is_text(self, run):
        (text,) = (tf.make_ndarray(value.tensor).item().decode() for _, tag, value in events(run) if tag == "config")
        assert '"width_multiplier": 0.0625' in text


def test_without_a_validation_split_training_goes_on(config, make_dataset, tmp_path):
    folder = make_dataset(
        tmp_path / "data", "--config.dataset.layout=compact", "--config.dataset.validation_fraction=0"
    )
    state = train(config, reader.open_dataset(str(folder)), tmp_path / "run")
    assert state.validation_losses == []
    assert "panel" in {tag for _, tag, _ in events(tmp_path / "run")}


def test_another_model_trains_in_the_same_loop(config, toy_model, compact_dataset, two_replicas, tmp_path):
    config.model.name = "toy"
    config.learning_rates = (1e-2, 1e-3)
    state = train(config, compact_dataset, tmp_path, two_replicas)
    assert state.validation_losses[1] < state.validation_losses[0]


def test_a_loss_that_is_not_finite_stops_the_run(config, compact_dataset, tmp_path):
    config.learning_rates = (1e30, 1.0)
    with pytest.raises(UserError, match=r"the loss of step \d+ is (nan|inf); lower --config.learning_rates"):
        train(config, compact_dataset, tmp_path)


def test_a_shard_damaged_inside_is_named(config, compact_dataset, tmp_path):
    copy = shutil.copytree(compact_dataset.directory, tmp_path / "copy")
    path = copy / "train-00002-of-00007.tfrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="train-00002-of-00007.tfrecord is damaged: checksum"):
        train(config, reader.open_dataset(str(copy)), tmp_path / "run")


class TestWorkdirOfAnotherRun:
    @pytest.fixture
    def run(self, config, compact_dataset, tmp_path):
        config.epochs_per_learning_rate = (1, 1)
        train(config, compact_dataset, tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("model.width_multiplier", 0.125, "holds a run whose model is .*0.0625.*, not .*0.125"),
            ("seed", 3, "holds a run whose seed is 2017, not 3"),
            ("batch_size", 8, "holds a run whose batch_size is 4, not 8"),
        ],
    )
    def test_is_refused(self, run, config, compact_dataset, field, value, message):
        config.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=message):
            train(config, compact_dataset, run)

    def test_on_other_data_is_refused(self, run, config, make_dataset, tmp_path):
        folder = make_dataset(tmp_path / "other", "--config.seed=5", "--config.dataset.layout=compact")
        with pytest.raises(UserError, match="holds a run on another dataset"):
            train(config, reader.open_dataset(str(folder)), run)

    def test_that_is_to_last_longer_goes_on(self, run, config, compact_dataset):
        config.epochs_per_learning_rate = (1, 2)
        assert len(train(config, compact_dataset, run).validation_losses) == 1

    def test_whose_checkpoint_is_damaged_is_refused(self, run, config, compact_dataset):
        newest = Checkpoints(str(run)).steps()[-1]
        (data,) = (run / "checkpoints" / f"step-{newest:08d}").glob("*.data-*")
        data.write_bytes(data.read_bytes()[:1000])
        with pytest.raises(UserError, match=f"checkpoint .*step-{newest:08d} is damaged or of another model"):
            train(config, compact_dataset, run)


def test_only_the_newest_checkpoints_are_kept(config, compact_dataset, tmp_path):
    config.epochs_per_learning_rate = (2, 2)
    config.kept_checkpoints = 2
    train(config, compact_dataset, tmp_path)
    steps = reader.steps_per_epoch(compact_dataset, config.batch_size)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [f"step-{3 * steps:08d}", f"step-{4 * steps:08d}"]
