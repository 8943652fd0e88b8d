"""What a run computes, shows and keeps."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from beam_jobs import preprocess
from pipeline import color, example, image, reader
from pipeline.batches import Batches
from pipeline.errors import UserError
from pipeline.tfrecord import SEGMENT_RECORDS
from tests.helpers import Terminal, assert_weights_close, events, scalars, train
from trainer import colorizer, models, run
from trainer.checkpoints import Checkpoints
from trainer.steps import Steps, Sums


def one_and_two_replicas(config, dataset, two_replicas, tmp_path):
    """200 steps and more, on splits of which neither is a multiple of the batch."""
    splits = dataset.manifest.splits
    assert all(split.examples % config.batch_size for split in splits.values())
    steps = Batches(dataset, config.batch_size).steps_per_epoch
    epochs = -(-200 // steps)
    config.epochs_per_learning_rate = (epochs // 2, epochs - epochs // 2)
    one = train(config, dataset, tmp_path / "one")
    two = train(config, dataset, tmp_path / "two", two_replicas)
    assert one.step == two.step == epochs * steps >= 200
    for tag, count in (("loss", one.step), ("learning_rate", one.step), ("validation/loss", epochs)):
        first, second = scalars(tmp_path / "one", tag), scalars(tmp_path / "two", tag)
        assert first.keys() == second.keys()
        assert len(first) == count
        np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-3)
    return one, two


@pytest.mark.slow
def test_two_replicas_equal_one_over_200_steps(config, compact_dataset, two_replicas, tmp_path):
    """In float32 they part by rounding, 1e-7 in the first step, which training at a rate of 1e-3 (but not at the lower
    ones taken here) amplifies to 1e-3 within a hundred steps, as it would any other rounding."""
    config.learning_rates = (1e-4, 3e-5)
    one, two = one_and_two_replicas(config, compact_dataset, two_replicas, tmp_path)
    assert_weights_close(one, two, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_two_replicas_equal_one_to_the_last_digits_in_float64(
    config, double_precision, compact_dataset, two_replicas, tmp_path
):
    """At the report's rates. Adam does not feel the scale of gradients, but its moments do."""
    config.learning_rates = (1e-3, 1e-4)
    one, two = one_and_two_replicas(config, compact_dataset, two_replicas, tmp_path)
    assert_weights_close(one, two, rtol=1e-9, atol=1e-9)
    for first, second in zip(one.optimizer.variables, two.optimizer.variables, strict=True):
        np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("replicas", [1, 2])
def test_first_loss_is_the_mean_over_the_batch_of_the_untrained_model(
    config, compact_dataset, two_replicas, tmp_path, replicas
):
    train(config, compact_dataset, tmp_path, two_replicas if replicas == 2 else None)
    stored = next(iter(Batches(compact_dataset, config.batch_size).train(config.seed, range(1))))
    batch = reader.unpack(stored, example.layout(compact_dataset.manifest.layout))
    model = models.create(config.model, config.seed)
    losses = model.loss(model.outputs(batch, training=False), batch)
    assert scalars(tmp_path, "loss")[1] == pytest.approx(float(tf.reduce_mean(losses)), rel=1e-5)


def batches_of_one(dataset):
    """The validation split as its records say, an example at a time."""
    for each in reader.examples(dataset, "validation"):
        yield {name: tf.constant(values[None]) for name, values in each.tensors.items()}


def test_validation_loss_is_the_mean_over_examples(config, compact_dataset, two_replicas, tmp_path):
    config.epochs_per_learning_rate = (1, 1)
    state = train(config, compact_dataset, tmp_path, two_replicas)
    losses = [
        float(state.model.loss(state.model.outputs(example, training=False), example)[0])
        for example in batches_of_one(compact_dataset)
    ]
    assert len(losses) == compact_dataset.manifest.splits["validation"].examples
    assert state.validation_losses[-1] == pytest.approx(np.mean(losses), rel=1e-5)


def test_checkpoints_are_written_within_an_epoch(config, compact_dataset, tmp_path):
    config.steps_per_checkpoint, config.kept_checkpoints = 8, 3
    train(config, compact_dataset, tmp_path)
    assert Checkpoints(str(tmp_path)).steps() == [21, 32, 40, 42]  # the first was the best until the last was validated


def test_overfits_a_handful_of_pictures_in_color(config, pictures, tmp_path):
    """The loss falls by 5x and the colors of the training pictures are there, not their mean brown."""
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "chelsea", "coffee", "retina"):
        for number in range(24):  # so that an epoch has some steps
            shutil.copy(pictures / f"held_out/{name}.png", tmp_path / f"photos/{name}-{number}.png")
    argv = [
        "preprocess", "--config=configs/demo.py", f"--source=images:{tmp_path}/photos", f"--output={tmp_path}/data",
        "--config.dataset.validation_fraction=0", "--config.dataset.layout=compact",
    ]  # fmt: skip
    preprocess.main(argv)
    dataset = reader.open_dataset(str(tmp_path / "data"))
    config.model.width_multiplier = 0.25
    config.horizontal_flip = False
    config.learning_rates, config.epochs_per_learning_rate = (2e-3, 5e-4), (6, 2)
    train(config, dataset, tmp_path / "run")
    losses = np.array(list(scalars(tmp_path / "run", "loss").values()))
    assert losses[:5].mean() / losses[-20:].mean() >= 5
    own = colorizer.load(str(tmp_path / "run"))
    for name in ("astronaut", "chelsea", "coffee", "retina"):
        truth = image.decode((pictures / f"held_out/{name}.png").read_bytes())
        (colorized,) = own.colorize([truth])
        assert chroma(colorized) == pytest.approx(chroma(truth), rel=0.3), name


def chroma(rgb):
    """Mean distance from gray, Lab units."""
    return float(np.linalg.norm(color.rgb_to_lab(rgb)[..., 1:], axis=-1).mean())


def test_tensorboard_tags_steps_and_values(config, compact_dataset, finished):
    folder, state = finished
    assert {tag for _, tag, _ in events(folder)} == {
        "loss", "learning_rate", "gradient_norm", "images_per_second", "waiting_for_data", "memory_mib",
        "validation/loss", "validation/psnr", "validation/colorfulness", "validation/true_colorfulness", "panel",
        "config", "_hparams_/session_start_info",
    }  # fmt: skip
    steps = Batches(compact_dataset, config.batch_size).steps_per_epoch
    assert list(scalars(folder, "loss")) == list(range(1, 2 * steps + 1))
    rates = scalars(folder, "learning_rate")
    assert [rates[step] for step in (1, steps, steps + 1, 2 * steps)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert list(scalars(folder, "validation/loss")) == [steps, 2 * steps]
    assert min(scalars(folder, "images_per_second").values()) > 0
    assert all(0 <= share < 1 for share in scalars(folder, "waiting_for_data").values())
    assert min(scalars(folder, "memory_mib").values()) > 200
    (text,) = (tf.make_ndarray(value.tensor).item().decode() for _, tag, value in events(folder) if tag == "config")
    assert '"width_multiplier": 0.0625' in text
    check_validation(state.model, compact_dataset, {tag: scalars(folder, f"validation/{tag}")[2 * steps] for tag in (
        "psnr", "colorfulness", "true_colorfulness"
    )})  # fmt: skip


def check_validation(model, dataset, found):
    """Compares with means over pictures that NumPy makes of what the model says."""
    pairs = []
    for each in batches_of_one(dataset):
        ab = model.ab(model.outputs(each, training=False))
        lightness = each["l_224"][0] * 50 + 50
        labs = [np.concatenate([lightness, values[0] * 128], axis=-1) for values in (ab, each["ab_224"])]
        pairs.append([color.lab_to_rgb(lab) for lab in labs])
    mse = [np.mean(np.square(one.astype(float) - other)) for one, other in pairs]
    assert found["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / np.array(mse))), abs=0.02)
    for index, tag in enumerate(("colorfulness", "true_colorfulness")):
        assert found[tag] == pytest.approx(np.mean([hasler(pair[index]) for pair in pairs]), rel=0.01)


def hasler(rgb):
    """Hasler and Susstrunk's M3, as in their paper."""
    red, green, blue = np.moveaxis(rgb.astype(float), -1, 0)
    rg, yb = red - green, 0.5 * (red + green) - blue
    return np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())


def test_several_steps_in_a_call_and_a_profile_of_chosen_ones(config, compact_dataset, finished, tmp_path):
    """A call never goes over the end of an epoch; those that hold the steps are profiled."""
    config.profile_steps = (3, 4)
    config.steps_per_call = 5
    config.steps_per_checkpoint = 8
    state = train(config, compact_dataset, tmp_path)
    assert len(list((tmp_path / "tensorboard/plugins/profile").glob("*/*.xplane.pb"))) == 1
    assert state.validation_losses == finished[1].validation_losses
    assert_weights_close(state, finished[1], rtol=0, atol=0)
    assert Checkpoints(str(tmp_path)).steps() == [21, 36, 41, 42]  # the first was the best until the last was validated


def test_how_batches_are_read_is_as_configured(config, compact_dataset, tmp_path, monkeypatch):
    calls = []

    class Asked(Exception):
        pass

    class Spy(Batches):
        def __init__(self, dataset, batch_size, *rest):
            calls.append(rest)
            super().__init__(dataset, batch_size, *rest)

        def validation(self, *rest):
            raise Asked

    monkeypatch.setattr(run, "Batches", Spy)
    config.input_memory_mib, config.deterministic, config.steps_per_call = 123, False, 3
    with pytest.raises(Asked):
        train(config, compact_dataset, tmp_path)
    assert calls == [(False, 123 << 20, False, 3)]


def test_a_validation_loss_that_is_not_finite_stops_the_run(config, compact_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Steps, "validate", lambda *_: Sums(*tf.constant([np.nan, 1, 1, 1, 4, 0])))
    with pytest.raises(UserError, match="the validation loss of step 21 is nan: its weights are of no use; delete its"):
        train(config, compact_dataset, tmp_path)
    assert Checkpoints(str(tmp_path)).best() is None


def test_panel_shows_the_same_pictures_each_epoch_gray_predicted_and_true(compact_dataset, finished):
    panels = (value for _, tag, value in events(finished[0]) if tag == "panel")
    first_epoch, second_epoch = (tf.make_ndarray(value.tensor) for value in panels)
    for width, height, *pictures in (first_epoch, second_epoch):
        assert (int(width), int(height), len(pictures)) == (3 * 224, 224, 2)
    before, after = (tf.io.decode_png(panel[2]).numpy().astype(int) for panel in (first_epoch, second_epoch))
    gray, predicted, truth = (before[:, start : start + 224] for start in (0, 224, 448))
    assert np.ptp(gray, axis=-1).max() <= 2
    first = next(reader.examples(compact_dataset, "validation")).tensors
    lab = np.concatenate([color.denormalize_l(first["l_224"]), color.denormalize_ab(first["ab_224"])], axis=-1)
    assert np.abs(truth - color.lab_to_rgb(lab)).max() <= 1
    assert (after[:, 448:] == truth).all()
    assert (after[:, :224] == gray).all()
    assert (after[:, 224:448] != predicted).any()


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
    config.steps_per_checkpoint = 1
    with pytest.raises(UserError, match=r"of step \d+ is (nan|inf); lower --config.learning_rates") as caught:
        train(config, compact_dataset, tmp_path)
    step = int(re.search(r"step (\d+)", str(caught.value))[1])
    assert Checkpoints(str(tmp_path)).steps() == list(range(1, step))  # and none of what is not finite
    keys = Batches(compact_dataset, config.batch_size).keys(config.seed, 0, step - 1)
    assert len(keys) == config.batch_size
    assert str(caught.value).endswith(f"of its batch: {', '.join(keys)}")


def test_a_shard_damaged_inside_is_named(config, compact_dataset, tmp_path):
    damaged = shutil.copytree(compact_dataset.directory, tmp_path / "damaged")
    path = damaged / "train-00002-of-00007.tfrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="train-00002-of-00007.tfrecord is damaged: damaged record at byte"):
        train(config, reader.open_dataset(str(damaged)), tmp_path / "run")


def test_a_manifest_that_promises_more_than_there_is(config, compact_dataset, tmp_path):
    promised = shutil.copytree(compact_dataset.directory, tmp_path / "data")
    manifest = compact_dataset.manifest
    split = manifest.splits["train"]
    first, *others = split.shards
    more = SEGMENT_RECORDS - first.examples  # all that its one segment could hold
    assert more >= config.batch_size
    shards = (dataclasses.replace(first, examples=first.examples + more), *others)
    listed, written = ({**counts, "images": more} for counts in (split.listed, split.written))
    split = dataclasses.replace(split, shards=shards, listed=listed, written=written)
    manifest = dataclasses.replace(manifest, splits={**manifest.splits, "train": split})
    (promised / "dataset.json").write_text(manifest.to_json())
    with pytest.raises(UserError, match="train-00000-of-00007.tfrecord is damaged: it ends before its last record"):
        train(config, reader.open_dataset(str(promised)), tmp_path / "run")


def test_progress_bar_on_a_terminal(config, compact_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    train(config, compact_dataset, tmp_path)
    steps = Batches(compact_dataset, config.batch_size).steps_per_epoch
    assert "epoch 2/2: 100%" in terminal.getvalue()
    assert f"{steps}/{steps}" in terminal.getvalue()
    assert re.search(r"loss 0\.\d+, \d+\.\d images/s", terminal.getvalue())


def test_the_newest_checkpoints_and_the_best_are_kept(config, compact_dataset, tmp_path, monkeypatch):
    losses = iter((0.3, 0.1, 0.2, 0.4))
    monkeypatch.setattr(run.Run, "_validate", lambda self: next(losses))
    config.epochs_per_learning_rate = (2, 2)
    config.kept_checkpoints = 1
    train(config, compact_dataset, tmp_path)
    steps = Batches(compact_dataset, config.batch_size).steps_per_epoch
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.steps() == [2 * steps, 4 * steps]
    assert checkpoints.best() == 2 * steps
    assert [checkpoints.validation_loss(step) for step in checkpoints.steps()] == [0.1, 0.4]
