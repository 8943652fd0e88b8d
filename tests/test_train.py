"""Training through the command line, in processes of their own, as a person runs it."""

import json
import subprocess
import sys
import time

import pytest

from beam_jobs import preprocess
from pipeline import cli
from tests.helpers import scalars

OVERRIDES = (
    "--config=configs/demo.py",
    "--config.model.width_multiplier=0.0625",
    "--config.batch_size=2",
    "--config.learning_rates=(1e-3,)",
    "--config.panel_pictures=1",
)


def command(*argv, epochs=1):
    schedule = f"--config.epochs_per_learning_rate=({epochs},)"
    return [sys.executable, "-m", "trainer.train", *OVERRIDES, schedule, *map(str, argv)]


def train(*argv, **options):
    return subprocess.run(command(*argv, **options), capture_output=True, text=True)


@pytest.fixture(scope="module")
def small_data(pictures, tmp_path_factory):
    """The eight held-out pictures: each takes the real extractor a sixth of a second."""
    folder = tmp_path_factory.mktemp("small")
    source = f"--source=images:{pictures}/held_out"
    argv = ["preprocess", "--config=configs/demo.py", source, f"--output={folder}"]
    assert cli.run(preprocess.main, [*argv, "--config.dataset.validation_fraction=0.3"]) == 0
    return folder


@pytest.mark.slow
def test_two_virtual_replicas_with_the_real_extractor(small_data, tmp_path):
    result = train(f"--data={small_data}", f"--workdir={tmp_path}/run", "--virtual_replicas=2")
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0] == "MirroredStrategy on /device:CPU:0, /device:CPU:1: 2 replicas, batch of 2, 1 per replica"
    assert "RANDOM weights" in lines[1]
    assert lines[-1].startswith("finished at step ")
    assert len(lines) <= 8, result.stderr  # nothing of TensorFlow's
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["model"]["width_multiplier"] == 0.0625
    assert scalars(tmp_path / "run", "loss")[1] > 0
    assert (tmp_path / "run/dataset.json").read_text() == (small_data / "dataset.json").read_text()


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["--virtual_replicas=3"], 1, "batch_size is 2, which 3 replicas cannot share equally"),
        (["--virtual_replicas=0"], 1, "--virtual_replicas=0; choose a number from 1"),
        (["--config.batch_size=500"], 1, "fewer than a batch of 500; set --config.batch_size lower"),
        (["--config.learning_rates=(1e-3,1e-4)"], 1, "must be of the same length"),
        (["--config.model.name=gan"], 1, "model.name is 'gan'; choose one of koalarization"),
        (["--config.model.feature_weights=/absent.h5"], 1, "'/absent.h5', which is no file"),
        (["stray"], 2, "unexpected argument stray"),
        (["--config.batchsize=2"], 2, "no configuration field 'batchsize'"),
        (["--data=/absent"], 1, "/absent is no dataset"),
        (["--workdir=/proc/none"], 1, "--workdir=/proc/none cannot be written"),
    ],
)
def test_mistakes_are_one_line(small_data, tmp_path, argv, status, message):
    result = train(f"--data={small_data}", f"--workdir={tmp_path}/run", *argv)
    assert result.returncode == status
    assert "Traceback" not in result.stderr
    assert message in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run/checkpoints").exists()


def test_options_are_required():
    assert "--data is missing" in train().stderr
    assert "--workdir is missing" in train("--data=/x").stderr


@pytest.mark.slow
def test_a_killed_run_goes_on(small_data, tmp_path):
    """Killed with its first checkpoint just written, and started again by the same command."""
    argv = (f"--data={small_data}", f"--workdir={tmp_path}/run")
    with subprocess.Popen(command(*argv, epochs=3), stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("run/checkpoints/step-????????")):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    result = train(*argv, epochs=3)
    assert result.returncode == 0
    assert "goes on from step" in result.stderr
    assert len(list(tmp_path.glob("run/checkpoints/*"))) == 3  # no leavings of the killed one
