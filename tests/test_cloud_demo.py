"""The way of `make demo`, command by command, and more, with every path on Cloud Storage, while requests fail.

In place of Inception-ResNet-v2 stands one convolution, and the network is narrow: it is the way that is tested.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests import cloud_storage
from tests.helpers import TINY, weights
from tests.programs import free_ports, until

_SETTINGS = ("dataset.layout=compact", "model.width_multiplier=0.0625", "epochs_per_learning_rate=1,1")
_OF_ITS_OWN = re.compile(r"/(tensorboard|job/index)/")  # named by when they were written, or by what the archives were
_SHARE = 0.05  # of requests, for each kind of fault


def commands(folder):
    """The commands of `make demo` that are ours: module and arguments of each."""
    makefile = subprocess.run(
        ["make", "--dry-run", "demo", f"DEMO={folder}"], capture_output=True, text=True, check=True
    )
    lines = makefile.stdout.replace("\\\n", " ").splitlines()
    found = [line.split()[2:] for line in lines if line.startswith(".venv/bin/python -m ") and " pip " not in line]
    assert found[0][0] == "tools.photographs"
    assert found[-1][0] == "trainer.report"
    more = (
        f"beam_jobs.colorize --workdir={folder}/run --source=images:{folder}/held_out --output={folder}/collection",
        f"trainer.export --workdir={folder}/run --output={folder}/exported",
    )
    return found + [command.split() for command in more]


def run(folder, environment):
    for module, *arguments in commands(folder):
        if any(argument.startswith("--config=") for argument in arguments):
            arguments += [
                f"--config.{setting}" for setting in _SETTINGS if module != "beam_jobs.embed" or "model" in setting
            ]
        program = ["-c", TINY.format(module)] if module.startswith(("beam_jobs", "trainer")) else ["-m", module]
        result = subprocess.run(
            [sys.executable, *program, *arguments], env={**os.environ, **environment}, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{module}: {result.stderr}"
        assert "Traceback" not in result.stderr
        assert "0000 00:00" not in result.stderr  # TensorFlow's log


def files(folder):
    """The names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def tree(folder):
    """The shards and pictures below a folder, and what was rejected."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".tar", ".tfrecord", ".features", ".png", ".jsonl")
    }


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def scalars_on_a_board(run, environment):
    """The tags that a TensorBoard shows of a run."""
    (port,) = free_ports(1)
    command = ["make", "tensorboard", f"WORKDIR={run}", f"PORT={port}"]
    process = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
    address = f"http://localhost:{port}/data/plugin/scalars/tags"
    try:
        shown = until(lambda: json.loads(urllib.request.urlopen(address).read()))
        return [tag for tags in shown.values() for tag in tags]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.mark.engines
def test_the_demo_on_cloud_storage_that_fails_ends_as_on_the_disk(tmp_path):
    local, copy = tmp_path / "local", tmp_path / "copy"
    with cloud_storage.running(tmp_path, "bucket") as cloud, ThreadPoolExecutor() as pool:
        on_disk = pool.submit(run, local, {})  # beside the other, which mostly waits
        cloud.faults.share = _SHARE
        run("gs://bucket/demo", cloud.environment)
        cloud.faults.share = 0
        on_disk.result()
        cloud.download("bucket", "demo/", copy)
        assert "loss" in scalars_on_a_board("gs://bucket/demo/run", cloud.environment)
        assert cloud.faults.seen.keys() == {None, *cloud.faults.KINDS}
    first, second = tree(local), tree(copy)
    assert first.keys() == second.keys()
    assert len([name for name in first if name.endswith(".tfrecord")]) == 6
    for name in first:
        if name.startswith("collection/") and name.endswith(".png"):  # whose files name the run that they were made by
            assert np.array_equal(pixels(first[name]), pixels(second[name])), name
        else:
            assert first[name] == second[name], name
    assert weights(local / "run") == weights(copy / "run")
    assert (copy / "run/report.html").stat().st_size > 100_000
    names = files(copy)
    assert names >= {name for name in files(local) if not _OF_ITS_OWN.search(f"/{name}")}
    assert not [name for name in names if name.endswith((".tmp", "claim.json"))]
