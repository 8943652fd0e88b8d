"""Runs from start to end: stopped, resumed, refused, finished."""

import copy
import itertools
import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from pipeline import cli, reader
from pipeline.errors import UserError
from pipeline.stopping import stop_request
from tests.helpers import assert_weights_close, events, scalars, train
from trainer import colorizer, summaries, workdir
from trainer.checkpoints import Checkpoints
from trainer.steps import Steps


def ask_to_stop(monkeypatch, method, call, *numbers):
    """Sends this process signals, or SIGTERM, in a certain call of a method of `Steps`."""
    original, calls = getattr(Steps, method), itertools.count(1)

    def signalled(self, *args):
        if next(calls) == call:
            for number in numbers or (signal.SIGTERM,):
                os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(Steps, method, signalled)


@pytest.mark.parametrize(
    ("replicas", "method", "call", "stops_at"),
    [
        (1, "train", 1, 1),
        (1, "train", 30, 30),
        pytest.param(2, "train", 30, 30, marks=pytest.mark.slow),
        (1, "validate", 1, 21),
        (1, "validate", 5, 42),
    ],
)
def test_told_to_stop_and_resumed_ends_as_if_nothing_had_been(
    config, compact_dataset, two_replicas, tmp_path, monkeypatch, finished, replicas, method, call, stops_at
):
    strategy = two_replicas if replicas == 2 else None
    folder, whole = finished if replicas == 1 else (tmp_path, train(config, compact_dataset, tmp_path, strategy))
    with monkeypatch.context() as patch:
        ask_to_stop(patch, method, call)
        with pytest.raises(cli.Terminated):
            train(config, compact_dataset, tmp_path / "parts", strategy)
    assert Checkpoints(str(tmp_path / "parts")).steps()[-1] == stops_at
    resumed = train(config, compact_dataset, tmp_path / "parts", strategy)
    assert resumed.step == whole.step
    assert_weights_close(whole, resumed, rtol=0, atol=0)
    for tag in ("loss", "learning_rate", "validation/loss"):
        assert scalars(tmp_path / "parts", tag) == scalars(folder, tag)


def test_it_goes_on_with_the_same_examples_on_another_number_of_replicas(
    config, compact_dataset, two_replicas, tmp_path, monkeypatch
):
    """At rates that do not amplify rounding; see test_run.py."""
    config.learning_rates = (1e-4, 3e-5)
    train(config, compact_dataset, tmp_path / "whole")
    with monkeypatch.context() as patch:
        ask_to_stop(patch, "train", 8)
        with pytest.raises(cli.Terminated):
            train(config, compact_dataset, tmp_path / "parts")
    assert train(config, compact_dataset, tmp_path / "parts", two_replicas).step == 42
    for tag in ("loss", "validation/loss"):
        whole, parts = (scalars(tmp_path / name, tag) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        np.testing.assert_allclose(list(parts.values()), list(whole.values()), rtol=1e-3)


def test_a_machine_that_goes_down_sends_more_than_one_signal(config, compact_dataset, tmp_path, monkeypatch):
    ask_to_stop(monkeypatch, "train", 2, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM)
    with pytest.raises(cli.Terminated) as caught:
        train(config, compact_dataset, tmp_path)
    assert caught.value.args[0] == signal.SIGTERM
    assert Checkpoints(str(tmp_path)).steps() == [2]


def test_one_process_trains_in_a_directory(config, compact_dataset, finished_copy):
    with (
        workdir.claim(str(finished_copy)),
        pytest.raises(UserError, match="another process trains in --workdir=.*; wait for it, or stop it"),
    ):
        train(config, compact_dataset, finished_copy)
    train(config, compact_dataset, finished_copy)


def test_an_interrupt_saves_too_and_a_second_one_ends_at_once(config, compact_dataset, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background do not have
    ask_to_stop(monkeypatch, "train", 2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(config, compact_dataset, tmp_path)
    assert Checkpoints(str(tmp_path)).steps() == [2]
    with pytest.raises(KeyboardInterrupt), stop_request() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.is_made
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_a_finished_run_has_nothing_left_to_do(config, compact_dataset, finished, finished_copy):
    _, first = finished
    again = train(config, compact_dataset, finished_copy)
    assert again.step == first.step
    assert again.validation_losses == []
    assert_weights_close(first, again, rtol=0, atol=0)


def test_a_directory_that_is_not_local(config, compact_dataset, tmp_path, monkeypatch):
    """Read and written by TensorFlow's file systems alone; events are made in a local folder, and copied."""
    monkeypatch.setattr(summaries, "_LARGEST_BYTES", 1000)
    train(config, compact_dataset, f"file://{tmp_path}/run")
    assert {tag for _, tag, _ in events(tmp_path / "run")} >= {"loss", "validation/psnr", "panel"}
    assert list(scalars(tmp_path / "run", "loss")) == list(range(1, 43))
    assert len(list((tmp_path / "run/tensorboard").iterdir())) > 2
    assert Checkpoints(f"file://{tmp_path}/run").steps() == [21, 42]
    assert train(config, compact_dataset, f"file://{tmp_path}/run").step == 42


def test_workdir_of_another_run_is_refused(config, compact_dataset, make_dataset, finished_copy, tmp_path):
    for field, value, message in (
        ("model.width_multiplier", 0.125, "holds a run whose model is .*0.0625.*, not .*0.125"),
        ("seed", 3, "holds a run whose seed is 2017, not 3"),
        ("batch_size", 8, "holds a run whose batch_size is 4, not 8"),
        ("precision", "mixed_float16", "holds a run whose precision is float32, not mixed_float16"),
    ):
        other = copy.deepcopy(config)
        other.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=message) as caught:
            train(other, compact_dataset, finished_copy)
        assert "\n" not in str(caught.value)
    folder = make_dataset(tmp_path / "other", "--config.seed=5", "--config.dataset.layout=compact")
    with pytest.raises(UserError, match="holds a run on another dataset"):
        train(config, reader.open_dataset(str(folder)), finished_copy)
    config.epochs_per_learning_rate = (1, 2)  # a run that is to last longer is still the same
    assert len(train(config, compact_dataset, finished_copy).validation_losses) == 1


def test_from_a_damaged_checkpoint_a_run_goes_on_from_the_one_before(
    config, compact_dataset, finished, finished_copy, caplog
):
    _, expected = finished
    (before, newest) = Checkpoints(str(finished_copy)).steps()
    (data,) = (finished_copy / "checkpoints" / f"step-{newest:08d}").glob("*.data-*")
    flipped = bytearray(data.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    data.write_bytes(flipped)
    found = train(config, compact_dataset, finished_copy)
    assert f"step-{newest:08d} is damaged or of another model" in caplog.text
    assert f"goes on from step {before}" in caplog.text
    assert_weights_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"seed": 1}', "config"])
def test_a_damaged_configuration_of_a_run_is_refused(config, compact_dataset, finished_copy, text):
    (finished_copy / "config.json").write_text(text)
    for use in (lambda: train(config, compact_dataset, finished_copy), lambda: colorizer.load(str(finished_copy))):
        with pytest.raises(UserError, match="config.json is damaged .*; name the directory of a run of this version"):
            use()
    (finished_copy / "config.json").unlink()
    with pytest.raises(UserError, match="holds no run: config.json cannot be read"):
        train(config, compact_dataset, finished_copy)


def test_a_store_that_does_not_answer_is_not_without_a_run(config, compact_dataset, finished_copy, monkeypatch):
    def fail(*_):
        raise tf.errors.UnavailableError(None, None, "try later")

    monkeypatch.setattr(tf.io.gfile.GFile, "read", fail)
    with pytest.raises(UserError, match="config.json cannot be read: try later; start again"):
        train(config, compact_dataset, finished_copy)


def test_events_that_cannot_be_written_are_one_line(config, compact_dataset, tmp_path):
    (tmp_path / "tensorboard").write_text("a file in the way")
    with pytest.raises(UserError, match="tensorboard cannot be written"):
        train(config, compact_dataset, tmp_path)


def test_a_start_that_fails_does_not_claim_the_directory(config, compact_dataset, tmp_path):
    config.model.name = "gan"
    with pytest.raises(UserError, match="model.name is 'gan'"):
        train(config, compact_dataset, tmp_path)
    config.model.name = "koalarization"
    train(config, compact_dataset, tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps_per_log", 0, "steps_per_log is 0; choose a number from 1"),
        ("kept_checkpoints", 0, "kept_checkpoints is 0"),
        ("steps_per_checkpoint", 0, "steps_per_checkpoint is 0"),
        ("panel_pictures", -1, "panel_pictures is -1; choose a number from 0"),
        ("profile_steps", (5, 4), r"profile_steps is \(5, 4\); give the first and the last step"),
        ("clip_norm", float("nan"), "clip_norm is nan; choose a number from 0"),
        ("precision", "float16", "precision is 'float16'; choose one of float32, mixed_bfloat16, mixed_float16"),
        ("features", "none", "features is 'none'; choose one of auto, stored, computed"),
        ("features", "stored", "features is 'stored', but .* has none; run beam_jobs.embed on it, or choose 'auto'"),
        ("accumulation_steps", 3, "accumulation_steps is 3, into which a replica cannot divide its part of a batch, 4"),
        ("model.width_multiplier", float("nan"), "width_multiplier is nan; choose above 0"),
        ("epochs_per_learning_rate", (1.5, 1), "epochs whole"),
    ],
)
def test_fields_out_of_range_are_refused(config, compact_dataset, tmp_path, field, value, message):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        train(config, compact_dataset, tmp_path)
    assert not (tmp_path / "config.json").exists()
