"""The life of machines for training, from the command to their end: real commands, script and training, else doubles.

A machine is the startup script that Compute Engine's double was given; its container is `trainer.train` with a small
extractor; data and runs are on the emulator of Cloud Storage.
"""

import json
import os
import subprocess
import sys

import pytest

from tests import cloud_storage
from tests.google_compute import Compute, Logging, Machine, prepare
from tests.google_project import PROJECT, Project
from tests.helpers import weights
from tests.programs import free_ports, until
from trainer.launch.job import group_name

pytestmark = pytest.mark.engines
OPTIONS = (
    "--config.model.width_multiplier=0.0625", "--config.batch_size=4", "--config.learning_rates=(1e-4,3e-5)",
    "--config.epochs_per_learning_rate=(2,1)", "--config.steps_per_checkpoint=1000", "--config.panel_pictures=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def cloud(tmp_path_factory, compact_dataset):
    """A project in which machines can be made; they run until the end of the tests at the latest."""
    folder = tmp_path_factory.mktemp("life")
    machines = []
    ports = dict(enumerate(free_ports(2)))

    def start(name, metadata, zone):
        own = folder / f"machine-{len(machines)}"
        own.mkdir()
        (own / "status").write_text("0")
        address = f"{name.rpartition('-')[0]}-{{}}.{zone}.c.{PROJECT}.internal:2222"
        environment = {
            **server.environment, "CONTAINER": json.dumps([sys.executable, "-m", "tests.worker"]),
            "PORTS": json.dumps({address.format(index): port for index, port in ports.items()}),
        }  # fmt: skip
        machines.append(Machine(name, metadata, own, environment, zone))
        return machines[-1]

    compute, logging = Compute(start), Logging()
    project = Project(compute, logging)
    prepare(project)
    with cloud_storage.running(folder, "bucket", services=project.services) as server:
        for name in os.listdir(compact_dataset.directory):
            if os.path.isfile(path := os.path.join(compact_dataset.directory, name)):
                server.client().bucket("bucket").blob(f"data/{name}").upload_from_filename(path)
        server.compute, server.logging, server.project = compute, logging, project
        yield server
        for machine in machines:
            machine.kill()


@pytest.fixture
def launch(cloud):
    """The command; what goes wrong in the doubles fails the test."""
    cloud.compute.made.clear()
    cloud.compute.deleted.clear()
    cloud.logging.entries.clear()

    def run(*arguments):
        environment = {**os.environ, **cloud.environment}
        command = [sys.executable, "-m", "trainer.launch", *arguments, f"--project={PROJECT}"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert "Traceback" not in result.stderr
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    yield run
    assert cloud.project.refused() == []


def train(workdir, *more):
    return [
        "--config=configs/demo.py", "--data=gs://bucket/data", f"--workdir={workdir}", "--machine=e2-standard-4",
        *OPTIONS, *more,
    ]  # fmt: skip


def wait_for(cloud, text):
    """Waits until a machine says something."""
    until(lambda: any(text in line for line in cloud.logging.said()), 600, pause=0.05)


def wait_for_deletion(cloud):
    until(lambda: cloud.compute.deleted, 600)
    until(lambda: not cloud.compute.groups)
    return cloud.logging.said()


def on_disk(dataset, workdir):
    """The weights of the same run on this machine."""
    command = [sys.executable, "-m", "tests.worker", "--config=configs/demo.py", f"--data={dataset.directory}"]
    subprocess.run([*command, f"--workdir={workdir}", *OPTIONS], check=True, stderr=subprocess.PIPE)
    return weights(workdir)


def test_created_trained_preempted_resumed_finished_deleted(cloud, launch, compact_dataset, tmp_path):
    run, name = "gs://bucket/one", f"{group_name('gs://bucket/one')}-0"
    said_ = launch(*train(run, "--spot"))
    assert "1 of 1 machines run" in said_
    assert f"python -m trainer.launch stop --project={PROJECT} --workdir={run}" in said_
    wait_for(cloud, "epoch 1/3")
    cloud.compute.preempt(name)
    assert name in launch("status", f"--workdir={run}")
    wait_for(cloud, "goes on from step")
    said = wait_for_deletion(cloud)
    stopped = next(line for line in said if line.startswith("stopped at step"))
    assert f"goes on from step {stopped.split()[3].rstrip(',')}" in said
    assert any(line.startswith("finished at step 63") for line in said)
    assert said[-1] == "training is finished; all machines of the job are deleted now"
    assert cloud.compute.made == [name, name]
    assert "training is finished" in launch("logs", f"--workdir={run}")
    assert f"no machines train in {run}" in launch("status", f"--workdir={run}")
    cloud.download("bucket", "one/", tmp_path / "copy")
    assert weights(tmp_path / "copy") == on_disk(compact_dataset, tmp_path / "local")


def test_two_machines_of_which_one_is_taken_away(cloud, launch):
    run = "gs://bucket/two"
    group = group_name(run)
    assert "2 of 2 machines run" in launch(*train(run, "--count=2", "--spot"))
    wait_for(cloud, "epoch 1/3")
    cloud.compute.preempt(f"{group}-1")
    wait_for(cloud, "goes on from step")
    said = wait_for_deletion(cloud)
    assert sum(line.startswith("goes on from step") for line in said) == 2
    assert sum(line.startswith("finished at step 63") for line in said) == 2
    assert sorted(cloud.compute.made) == [f"{group}-0", f"{group}-1", f"{group}-1"]


def test_when_max_hours_have_passed_the_run_is_saved_and_the_same_launch_goes_on(cloud, launch):
    run = "gs://bucket/short"
    launch(*train(run, "--max_hours=0.01", "--config.epochs_per_learning_rate=(100,100)"))
    wait_for(cloud, "epoch 1/200")
    said = wait_for_deletion(cloud)
    (stopped,) = (
        (line for line in said if line.startswith("stopped at step"))
        if any(line.startswith("stopped at step") for line in said)
        else pytest.fail("\n".join(said))
    )
    assert said[-1].startswith("the time of the job is over; the same launch goes on from its last checkpoint")
    cloud.compute.deleted.clear()
    launch(*train(run, "--config.epochs_per_learning_rate=(100,100)"))
    wait_for(cloud, f"goes on from step {stopped.split()[3].rstrip(',')}")
    launch("stop", f"--workdir={run}")
    until(lambda: not cloud.compute.groups)
    assert not any(name.startswith(group_name(run)) for name in cloud.compute.templates)
