import glob
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import files
from pipeline.errors import UserError
from trainer.checkpoints import Checkpoints


def state(units=3):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, kernel_initializer="ones")])
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(network.trainable_variables)
    return network, optimizer


def step(network, optimizer):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(tf.constant([[1.0, 2.0]])))
    optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)


def test_network_and_optimizer_come_back(tmp_path):
    network, optimizer = state()
    step(network, optimizer)
    Checkpoints(str(tmp_path)).save(1, network, optimizer, keep=3)
    other_network, other_optimizer = state()
    assert Checkpoints(str(tmp_path)).restore(other_network, other_optimizer) == 1
    for _ in range(3):
        step(network, optimizer)
        step(other_network, other_optimizer)
    for expected, found in zip(network.get_weights(), other_network.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert int(other_optimizer.iterations.numpy()) == 4


def test_network_alone_comes_back(tmp_path):
    network, optimizer = state()
    step(network, optimizer)
    Checkpoints(str(tmp_path)).save(1, network, optimizer, keep=3)
    other, _ = state()
    assert Checkpoints(str(tmp_path)).restore(other) == 1
    np.testing.assert_array_equal(other.get_weights()[0], network.get_weights()[0])


def test_newest_are_kept_and_leavings_of_the_killed_removed(tmp_path):
    network, optimizer = state()
    (tmp_path / "checkpoints" / ABANDONED).mkdir(parents=True)
    (tmp_path / "checkpoints" / ABANDONED / "state.index").write_text("")
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.steps() == []
    for number in (5, 10, 15):
        checkpoints.save(number, network, optimizer, keep=2)
    assert checkpoints.steps() == [10, 15]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000015"]


ABANDONED = f"step-00000001.{'0' * 32}.tmp"


class Killed(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("call", range(1, 8))
def test_killed_at_any_change_of_the_folder_what_is_there_is_whole(tmp_path, monkeypatch, call):
    """In a save for which leavings, a folder of that step and an old checkpoint go, the last amid its files."""
    network, optimizer = state()
    checkpoints, saved = Checkpoints(str(tmp_path)), {}
    for number in (5, 10, 15, 20):
        step(network, optimizer)
        saved[number] = network.get_weights()[0]
        if number < 20:
            checkpoints.save(number, network, optimizer, keep=2)
    for name in (ABANDONED, "step-00000020"):
        (tmp_path / "checkpoints" / name).mkdir()
    calls = iter(range(1, call + 1))

    def dying(operation):
        def change_or_die(path, *args, **kwargs):
            if next(calls, call) == call:  # and nothing after it
                if os.path.isdir(path) and (files := os.listdir(path)) and operation is rmtree:
                    os.unlink(os.path.join(path, files[0]))
                raise Killed
            return operation(path, *args, **kwargs)

        return change_or_die

    rmtree = shutil.rmtree
    for owner, name in ((os, "makedirs"), (os, "rename"), (os, "remove"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    with pytest.raises(Killed):
        checkpoints.save(20, network, optimizer, keep=2)
    monkeypatch.undo()
    other, other_optimizer = state()
    found = Checkpoints(str(tmp_path)).restore(other, other_optimizer)
    assert found == (20 if call >= 6 else 15)
    np.testing.assert_array_equal(other.get_weights()[0], saved[found])
    checkpoints.save(25, network, optimizer, keep=2)
    assert checkpoints.restore(other) == 25
    assert all(path.name.startswith("step-") for path in (tmp_path / "checkpoints").iterdir())


def test_what_fails_while_it_is_written_is_no_checkpoint(tmp_path, monkeypatch):
    network, optimizer = state()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "rename", fail)
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(UserError, match="step-00000001 cannot be created: disk full"):
        checkpoints.save(1, network, optimizer, keep=2)
    assert checkpoints.steps() == []
    assert not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("upload", range(1, 3))
def test_of_a_remote_one_the_index_comes_last_and_goes_first(tmp_path, monkeypatch, upload):
    """A process that is killed, or a store that fails, amid its files leaves none, or what is passed over."""
    network, optimizer = state()
    checkpoints = Checkpoints(f"file://{tmp_path}")
    checkpoints.save(1, network, optimizer, keep=1)
    original, calls = files.upload, iter(range(1, upload + 1))

    def upload_or_fail(local, path):
        if next(calls) == upload:
            raise UserError("no more")
        original(local, path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "upload", upload_or_fail)
        with pytest.raises(UserError, match="no more"):
            checkpoints.save(2, network, optimizer, keep=1)
    assert checkpoints.steps() == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    calls = iter(range(1, upload + 1))

    def upload_or_die(local, path):
        if next(calls) == upload:
            raise Killed
        original(local, path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "upload", upload_or_die)
        patch.setattr(files, "remove_folder", lambda *_, **__: None)  # nobody is left to clean up
        with pytest.raises(Killed):
            checkpoints.save(2, network, optimizer, keep=1)
    assert checkpoints.steps() == [1]
    checkpoints.save(2, network, optimizer, keep=1)
    assert checkpoints.steps() == [2]
    removed = []
    monkeypatch.setattr(files, "remove", lambda path, remove=files.remove: (removed.append(path), remove(path)))
    checkpoints.save(3, network, optimizer, keep=1)
    assert removed[0].endswith("/state.index")


def test_a_folder_of_another_step_is_refused(tmp_path):
    network, optimizer = state()
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, network, optimizer, keep=2)
    (tmp_path / "checkpoints/step-00000001").rename(tmp_path / "checkpoints/step-99999999")
    with pytest.raises(UserError, match="step-99999999 is damaged or of another model: it holds step 1"):
        checkpoints.restore(network, optimizer)


def test_another_network_is_refused(tmp_path):
    network, optimizer = state()
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, network, optimizer, keep=2)
    with pytest.raises(UserError, match="step-00000001 is damaged or of another model") as caught:
        checkpoints.restore(state(units=4)[0])
    assert "\n" not in str(caught.value)


def damaged(path):
    """The files of a checkpoint in the ways in which they can be lost: cut short, a bit turned, gone."""
    (data,) = path.glob("*.data-*")
    content = data.read_bytes()
    yield lambda: data.write_bytes(content[:10])
    yield lambda: data.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    yield lambda: data.unlink()


@pytest.mark.parametrize("way", range(3))
def test_a_damaged_newest_one_is_passed_over_and_written_anew(tmp_path, caplog, way):
    network, optimizer = state()
    checkpoints = Checkpoints(str(tmp_path))
    for number in (1, 2):
        step(network, optimizer)
        checkpoints.save(number, network, optimizer, keep=3)
    expected, _ = state()
    assert checkpoints.restore(expected) == 2
    list(damaged(tmp_path / "checkpoints/step-00000002"))[way]()
    other, other_optimizer = state()
    assert checkpoints.restore(other, other_optimizer) == 1
    assert "step-00000002 is damaged or of another model" in caplog.text
    assert "the one of step 1 is taken in its place" in caplog.text
    step(other, other_optimizer)
    checkpoints.save(2, other, other_optimizer, keep=3)
    again, _ = state()
    assert checkpoints.restore(again) == 2
    for one, two in zip(expected.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_none_that_is_whole(tmp_path):
    network, optimizer = state()
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.restore(network, optimizer) is None
    for number in (0, 1):
        checkpoints.save(number, network, optimizer, keep=3)
        next(damaged(tmp_path / f"checkpoints/step-{number:08d}"))()
    with pytest.raises(UserError, match="step-00000001 is damaged .*, and there is none before it that is whole"):
        checkpoints.restore(network, optimizer)


def test_what_cannot_be_read_back_is_no_checkpoint(tmp_path, monkeypatch):
    network, optimizer = state()
    write = tf.train.Checkpoint.write

    def write_badly(checkpoint, prefix):
        result = write(checkpoint, prefix)
        (data,) = glob.glob(f"{prefix}.data-*")
        with open(data, "r+b") as file:
            file.seek(20)
            file.write(b"damage")
        return result

    monkeypatch.setattr(tf.train.Checkpoint, "write", write_badly)
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(UserError, match="checkpoint .*step-00000001 cannot be written: "):
        checkpoints.save(1, network, optimizer, keep=3)
    assert checkpoints.steps() == []


def test_what_half_precision_needs_comes_back(tmp_path):
    """The scale of the loss; and a step that was left out is still a step."""
    network, optimizer = state()
    scaled = keras.optimizers.LossScaleOptimizer(optimizer)
    scaled.build(network.trainable_variables)
    scaled.apply([tf.fill(variable.shape, np.inf) for variable in network.trainable_variables])
    Checkpoints(str(tmp_path)).save(1, network, scaled, keep=3)
    other_network, other = state()
    other_scaled = keras.optimizers.LossScaleOptimizer(other)
    other_scaled.build(other_network.trainable_variables)
    assert Checkpoints(str(tmp_path)).restore(other_network, other_scaled) == 1
    assert float(other_scaled.dynamic_scale.numpy()) == 2**14
    assert int(other.iterations.numpy()) == 0


def test_the_best_is_the_lowest_that_was_recorded(tmp_path):
    network, optimizer = state()
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.best() is None
    for number, loss in ((1, 0.5), (2, 0.2), (3, 0.2), (4, None)):
        checkpoints.save(number, network, optimizer, keep=1)
        if loss is not None:
            checkpoints.record(number, loss)
    assert checkpoints.best() == 3
    assert checkpoints.steps() == [3, 4]
    assert (checkpoints.validation_loss(3), checkpoints.validation_loss(4)) == (0.2, None)
    (tmp_path / "checkpoints/step-00000003/metrics.json").write_text("{")
    assert checkpoints.best() is None


def test_a_damaged_newest_one_makes_room_for_those_that_are_written_after_it(tmp_path):
    network, optimizer = state()
    checkpoints = Checkpoints(str(tmp_path))
    for number in (21, 42):
        checkpoints.save(number, network, optimizer, keep=2)
    checkpoints.record(42, 0.1)
    (index,) = (tmp_path / "checkpoints/step-00000042").glob("*.index")
    index.write_text("")
    assert checkpoints.restore(network, optimizer) == 21
    checkpoints.save(30, network, optimizer, keep=1)
    assert checkpoints.steps() == [30]


def test_one_whose_files_are_not_all_in_their_place_is_none(tmp_path, caplog):
    """As where a remote folder was being renamed: what comes last is missing."""
    network, optimizer = state()
    checkpoints = Checkpoints(str(tmp_path))
    for number in (1, 2):
        checkpoints.save(number, network, optimizer, keep=2)
    (tmp_path / "checkpoints/step-00000002/state.index").unlink()
    assert checkpoints.steps() == [1]
    assert checkpoints.restore(network, optimizer) == 1
    assert "step-00000002 is incomplete; the one of step 1 is taken in its place" in caplog.text
    (tmp_path / "checkpoints/step-00000001/state.index").unlink()
    assert Checkpoints(str(tmp_path)).restore(network, optimizer) is None
    assert "step-00000001 is incomplete, and there is none before it" in caplog.text
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.restore(network, optimizer)
    checkpoints.save(1, network, optimizer, keep=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("error", [tf.errors.UnavailableError, tf.errors.FailedPreconditionError])
def test_a_store_that_does_not_answer_is_no_damage(tmp_path, monkeypatch, error):
    """Nor is it an empty directory, or a run whose checkpoints are worth nothing."""
    network, optimizer = state()
    checkpoints = Checkpoints(f"file://{tmp_path}")
    for number in (1, 2):
        checkpoints.save(number, network, optimizer, keep=2)
        checkpoints.record(number, 0.1)

    def fail(*args, **kwargs):
        raise error(None, None, "try later")

    for owner, name, use in (
        (tf.train.Checkpoint, "read", lambda: checkpoints.restore(network, optimizer)),
        (tf.io.gfile, "stat", lambda: checkpoints.restore(network, optimizer)),
        (tf.io.gfile, "exists", lambda: checkpoints.save(3, network, optimizer, keep=2)),
        (tf.io.gfile.GFile, "read", lambda: checkpoints.validation_loss(2)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(UserError, match="cannot be read: try later; start again"):
                use()
    assert checkpoints.steps() == [1, 2]


def test_checkpoints_of_another_process_are_not_deleted(tmp_path):
    network, optimizer = state()
    Checkpoints(str(tmp_path)).save(9, network, optimizer, keep=1)
    with pytest.raises(UserError, match="step-00000009 is of a later step than 5, .*: another process trains in"):
        Checkpoints(str(tmp_path)).save(5, network, optimizer, keep=1)
    assert Checkpoints(str(tmp_path)).steps() == [9]
