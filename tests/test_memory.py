"""A job needs no more memory for more pictures."""

import io
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import encoded, noise


def archive(path, count):
    """As large a Places365 as a test has time for: one member in 500 is a picture, the others are listed and read."""
    picture = encoded(noise(375, 500), "JPEG")
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            data = b"no picture" if number % 500 else picture
            member = tarfile.TarInfo(f"data_256/a/apartment_building/outdoor/{number:08d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def processes(pid):
    """A process and its descendants, with the peak of each one's memory in MB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:  # it has ended
        return
    if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
        yield pid, int(peak[1]) / 1024
    for child in children.split():
        yield from processes(int(child))


def peaks(tmp_path, mode, count):
    """Of the driver and of its largest worker process (0 without any), in MB."""
    source = archive(tmp_path / f"train_256_{count}.tar", count)
    argv = [
        "--config=configs/koalarization.py", "--config.dataset.layout=compact", f"--source=places365:{source}",
        f"--output={tmp_path}/{count}", "--max_reject_fraction=1", f"--direct_running_mode={mode}",
    ]  # fmt: skip
    seen = {}
    with subprocess.Popen([sys.executable, "-m", "beam_jobs.preprocess", *argv]) as process:
        while process.poll() is None:
            seen.update(processes(process.pid))
            time.sleep(0.1)
    assert process.returncode == 0
    driver = seen.pop(process.pid)
    return driver, max(seen.values(), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_memory_of_200_000_pictures_is_that_of_20_000(mode, tmp_path):
    few, many = peaks(tmp_path, mode, 20_000), peaks(tmp_path, mode, 200_000)
    assert max(many) < 1024
    for peak_of_few, peak_of_many in zip(few, many, strict=True):
        assert peak_of_many <= 1.25 * peak_of_few


READING = """
import sys, time
from pathlib import Path
from trainer import train
import tensorflow as tf
from pipeline import reader
from pipeline.batches import Batches

def memory(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0]) / 1024

dataset = reader.open_dataset(sys.argv[1])
list(tf.data.Dataset.range(3))
before = memory("VmRSS:")
batches = Batches(dataset, 2, memory_bytes=100 << 20)  # which hold a fifth of an epoch
for step, _ in enumerate(batches.train(1, range(int(sys.argv[2])))):
    time.sleep(0.2 if step % 8 == 0 else 0)  # so that all that may be prefetched is
print(memory("VmHWM:") - before)
"""


@pytest.mark.slow
def test_reading_keeps_to_its_budget_for_any_number_of_shards_and_epochs(make_dataset, tmp_path):
    peaks = {}
    for shards in (16, 512):
        folder = make_dataset(tmp_path / str(shards), f"--config.dataset.train_shards={shards}")
        for epochs in (1, 20):
            command = [sys.executable, "-c", READING, str(folder), str(epochs)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert result.returncode == 0, result.stderr
            peaks[shards, epochs] = float(result.stdout)
    assert max(peaks.values()) <= 100, peaks
    # The first change of epochs takes some 12 MB once; a batch that was held on to would take 1.7 MB each of 860 times.
    assert max(peaks.values()) - min(peaks.values()) <= 24, peaks


@pytest.mark.slow
def test_the_largest_pictures_take_a_stated_memory(finished, tmp_path):
    """Four of 100 megapixels, of which one is read and one written while another is predicted."""
    (tmp_path / "in").mkdir()
    large = Image.fromarray(noise(100, 100)).resize((10_000, 10_000), Image.Resampling.NEAREST)
    for number in range(4):
        large.save(tmp_path / f"in/{number}.jpg")
    command = [sys.executable, "-m", "trainer.colorize", f"--workdir={finished[0]}", f"--output={tmp_path}/out"]
    with subprocess.Popen([*command, str(tmp_path / "in")]) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert usage.ru_maxrss / 1024 < 3600  # MB; README says 3,100
    assert len(list((tmp_path / "out").iterdir())) == 4
