import subprocess
import sys

import pytest
import tensorflow as tf

from pipeline.errors import TryAgain, UserError
from trainer import replicas


def test_all_devices_share_a_batch(caplog):
    with caplog.at_level("INFO"):
        strategy = replicas.create_strategy(8)
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert strategy.num_replicas_in_sync == 2
    assert "MirroredStrategy on /device:CPU:0, /device:CPU:1: 2 replicas, batch of 8, 4 per replica" in caplog.text


@pytest.mark.parametrize("batch_size", [0, 3, -2])
def test_a_batch_that_cannot_be_shared_is_refused(batch_size):
    with pytest.raises(UserError, match=rf"batch_size is {batch_size}, which 2 replicas cannot share equally"):
        replicas.create_strategy(batch_size)


def test_a_gpu_that_tensorflow_cannot_use_is_no_reason_to_train_on_the_cpu_unasked(tmp_path, monkeypatch):
    (tmp_path / "nvidia0").write_text("")
    monkeypatch.setattr(replicas, "_NVIDIA_DEVICE", str(tmp_path / "nvidia0"))
    with pytest.raises(UserError, match="TensorFlow finds no GPU: install its CUDA libraries with 'make gpu'"):
        replicas.create_strategy(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    replicas.create_strategy(2)


def test_split_cpu_refuses_what_makes_no_sense(monkeypatch):
    with pytest.raises(UserError, match="--virtual_replicas=0; choose a number from 1"):
        replicas.split_cpu(0)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    with pytest.raises(UserError, match="--virtual_replicas=2 splits the CPU, but there are 1 GPUs"):
        replicas.split_cpu(2)


def test_split_cpu_in_a_process_of_its_own():
    program = (
        "from trainer import replicas; replicas.split_cpu(3); s = replicas.create_strategy(6); "
        "print(type(s).__name__, s.num_replicas_in_sync)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "MirroredStrategy 3\n"
    assert result.stderr == ""  # TensorFlow's noise is kept from the user


def test_one_device_is_no_mirrored_strategy():
    program = "from trainer import replicas; print(type(replicas.create_strategy(5)).__name__)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "OneDeviceStrategy\n"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (tf.errors.DeadlineExceededError, UserError),
        (tf.errors.InternalError, UserError),  # as of a GPU that is broken
        (tf.errors.UnavailableError, TryAgain),
    ],
)
def test_of_workers_that_do_not_find_each_other_only_one_that_came_is_waited_for_again(monkeypatch, error, kind):
    def fail():
        raise error(None, None, "task 1 is\nnot there")

    monkeypatch.setenv("TF_CONFIG", CLUSTER % 0)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fail)
    with pytest.raises(UserError, match=r"the workers of TF_CONFIG do not find each other \(.*task 1 is") as found:
        replicas.create_strategy(2)
    assert type(found.value) is kind


CLUSTER = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": %s}}'


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("tpu", "", "strategy is 'tpu'; choose one of auto, one_device, mirrored, multi_worker"),
        ("multi_worker", "", "strategy is 'multi_worker', but TF_CONFIG names no cluster"),
        ("mirrored", CLUSTER % 0, "strategy is 'mirrored', but TF_CONFIG names 2 workers, which would write one"),
        ("auto", CLUSTER % 2, r"TF_CONFIG is '.*' \(task worker 2 of {'worker': 2}\); give it a cluster"),
        ("auto", "{", "TF_CONFIG is '{' .*; give it a cluster of 'worker' addresses"),
        ("auto", '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "task ps 0 of"),
    ],
)
def test_clusters_that_make_no_sense_are_refused(name, config, message, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UserError, match=message) as caught:
        replicas.create_strategy(4, name)
    assert "\n" not in str(caught.value)


def test_a_failure_of_a_device_is_no_loss_of_a_worker():
    strategy = tf.distribute.OneDeviceStrategy("/device:CPU:0")
    with pytest.raises(tf.errors.InternalError), replicas.naming_losses(strategy):
        raise tf.errors.InternalError(None, None, "a kernel failed")
