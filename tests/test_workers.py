"""Clusters of two workers, each a process of its own, as on two machines."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import scalars
from tests.programs import free_ports
from trainer.checkpoints import Checkpoints

pytestmark = pytest.mark.slow
# Rates at which rounding is not amplified; see test_run.py.
OPTIONS = (
    "--config.model.width_multiplier=0.0625", "--config.batch_size=4", "--config.learning_rates=(1e-4,3e-5)",
    "--config.panel_pictures=2",
)  # fmt: skip
STOPPED = 128 + signal.SIGTERM


class Cluster:
    """Workers that train on one dataset; none is left when the block ends."""

    def __init__(self, dataset, workdir, *options, workers=2, data=None, each=((), ())):
        addresses = [f"localhost:{port}" for port in free_ports(workers)]
        command = [sys.executable, "-m", "tests.worker", "--config=configs/demo.py"]
        self.processes = []
        for index in range(workers):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            own = workdir[index] if isinstance(workdir, list) else workdir
            own_data = data[index] if data else dataset.directory
            self.processes.append(
                subprocess.Popen(
                    [*command, f"--data={own_data}", f"--workdir={own}", *OPTIONS, *options, *each[index]],
                    env=os.environ | ({"TF_CONFIG": json.dumps(config)} if workers > 1 else {}),
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait(self):
        """The exit status and the messages of each worker."""
        outputs = [process.communicate(timeout=600)[1] for process in self.processes]
        return [(process.returncode, output) for process, output in zip(self.processes, outputs, strict=True)]

    def wait_for(self, text):
        """Reads what the chief says until it says a text."""
        for line in self.processes[0].stderr:
            if text in line:
                return
        raise AssertionError(f"ended without {text}")


def epochs(first, second):
    return f"--config.epochs_per_learning_rate=({first},{second})"


def test_two_workers_equal_one_over_200_steps(compact_dataset, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        with Cluster(compact_dataset, tmp_path / name, epochs(5, 5), workers=workers) as cluster:
            results = cluster.wait()
        assert [status for status, _ in results] == [0] * workers, results
        for _, output in results:
            assert "Traceback" not in output
        first, second = results[0][1].splitlines()[:2]
        assert len(list((tmp_path / name / "tensorboard").iterdir())) == 1  # one writes
        assert first.startswith(
            "MultiWorkerMirroredStrategy of batches of 4 waits for all workers: localhost:"
            if workers == 2
            else "OneDeviceStrategy on "
        )
        if workers == 2:
            assert second == "MultiWorkerMirroredStrategy on 2 workers: 2 replicas, batch of 4, 2 per replica"
    for tag, count in (("loss", 210), ("validation/loss", 10)):
        one, two = scalars(tmp_path / "one", tag), scalars(tmp_path / "two", tag)
        assert one.keys() == two.keys()
        assert len(one) == count
        np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-3)


def test_one_worker_told_to_stop_stops_both_and_they_go_on(compact_dataset, tmp_path):
    with Cluster(compact_dataset, tmp_path / "whole", epochs(2, 1)) as cluster:
        assert [status for status, _ in cluster.wait()] == [0, 0]
    with Cluster(compact_dataset, tmp_path / "parts", epochs(2, 1)) as cluster:
        cluster.wait_for("epoch 1/3")
        cluster.processes[1].terminate()
        start = time.monotonic()
        results = cluster.wait()
        assert time.monotonic() - start < 20
    assert [status for status, _ in results] == [STOPPED, STOPPED]
    assert all("is saved; the same command goes on from there" in output for _, output in results)
    with Cluster(compact_dataset, tmp_path / "parts", epochs(2, 1)) as cluster:
        assert [status for status, _ in cluster.wait()] == [0, 0]
    for tag in ("loss", "validation/loss"):
        assert scalars(tmp_path / "parts", tag) == scalars(tmp_path / "whole", tag)


@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_worker_that_is_gone_ends_the_other_with_one_line(compact_dataset, tmp_path, victim, number):
    """Killed, or silent as a machine whose network is gone; then the cluster goes on from the last checkpoint."""
    with Cluster(compact_dataset, tmp_path, epochs(5, 5), "--config.steps_per_checkpoint=5") as cluster:
        cluster.wait_for("epoch 1/10")
        cluster.processes[victim].send_signal(number)
        start = time.monotonic()
        output = cluster.processes[1 - victim].communicate(timeout=60)[1]
        assert time.monotonic() - start < 40
    assert cluster.processes[1 - victim].returncode == os.EX_TEMPFAIL
    assert "Traceback" not in output
    last = output.splitlines()[-1]
    assert last.startswith("error: ")
    assert "of the cluster is gone (" in last
    assert last.endswith("; start the same command on all workers again: the run goes on from its last checkpoint")
    step = Checkpoints(str(tmp_path)).steps()[-1]
    assert step >= 20
    if (victim, number) != (1, signal.SIGKILL):
        return
    with Cluster(compact_dataset, tmp_path, epochs(2, 1)) as cluster:
        results = cluster.wait()
    assert [status for status, _ in results] == [0, 0]
    assert f"goes on from step {step}" in results[0][1]


def test_a_worker_that_refuses_to_start_ends_the_other_with_one_line(compact_dataset, tmp_path):
    data = [compact_dataset.directory, tmp_path]
    with Cluster(compact_dataset, tmp_path / "run", epochs(1, 1), data=data) as cluster:
        results = cluster.wait()
    assert [status for status, _ in results] == [os.EX_TEMPFAIL, 1]
    assert f"error: {tmp_path} is no dataset" in results[1][1]
    assert "of the cluster is gone (" in results[0][1].splitlines()[-1]
    assert "Traceback" not in results[0][1]


def test_workers_of_other_settings_are_refused(compact_dataset, tmp_path):
    options = [[], ["--config.learning_rates=(1e-3,1e-3)"]]
    with Cluster(compact_dataset, tmp_path / "run", epochs(1, 1), each=options) as cluster:
        results = cluster.wait()
    assert [status for status, _ in results] == [1, 1]
    for _, output in results:
        assert "error: the workers of the cluster have other configurations or datasets than the chief" in output
    assert not (tmp_path / "run/config.json").exists()


def test_a_worker_says_for_whom_it_waits(compact_dataset, tmp_path):
    with Cluster(compact_dataset, tmp_path / "run", epochs(1, 1)) as cluster:
        cluster.processes[1].kill()
        cluster.wait_for("waits for all workers: localhost:")


def test_a_directory_that_workers_do_not_share_is_refused(compact_dataset, tmp_path):
    with Cluster(compact_dataset, tmp_path / "chief", epochs(1, 1), workers=1) as cluster:
        assert [status for status, _ in cluster.wait()] == [0]
    with Cluster(compact_dataset, [tmp_path / "chief", tmp_path / "other"], epochs(1, 1)) as cluster:
        results = cluster.wait()
    for (status, output), step in zip(results, (42, 0), strict=True):
        assert status == 1
        assert f"is at step {step} for this worker, and at another for others; name one directory" in output
