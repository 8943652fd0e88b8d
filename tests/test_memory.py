"""A job needs no more memory for more pictures."""

import io
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

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
