"""A job on Dataflow from the command to the shards, with Google's service in a double that runs what was staged."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apache_beam import version
from apache_beam.portability.api import beam_runner_api_pb2

from tests import cloud_storage
from tests.google_dataflow import Dataflow
from tests.google_project import PROJECT, Project
from tests.programs import content, run_preprocess, until

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def cloud(tmp_path_factory, pictures):
    """A project with a bucket that holds the archives, and Dataflow."""
    folder = tmp_path_factory.mktemp("dataflow")
    dataflow = Dataflow(folder)
    project = Project(dataflow)
    with cloud_storage.running(folder, "bucket", services=project.services) as server:
        dataflow.cloud, server.dataflow, server.project = server, dataflow, project
        for path in (pictures / "archives").iterdir():
            server.client().bucket("bucket").blob(f"archives/{path.name}").upload_from_filename(path)
        yield server


def arguments(archives):
    return [
        f"--source=places365:{archives}/val_256.tar", f"--source=imagenet:{archives}/ILSVRC2012_img_train.tar",
        "--config.dataset.layout=compact",
    ]  # fmt: skip


def start(cloud, *more):
    port = cloud.environment["STORAGE_EMULATOR_HOST"].rpartition(":")[2]
    command = [
        sys.executable, "-m", "beam_jobs.preprocess", "--config=configs/demo.py", *arguments("gs://bucket/archives"),
        "--output=gs://bucket/data", "--runner=DataflowRunner", f"--project={PROJECT}",
        f"--dataflow_endpoint=http://localhost:{port}", *more,
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **cloud.environment}, **pipes)


def submit(cloud, *more):
    process = start(cloud, *more)
    output, said = process.communicate()
    return process.returncode, output, said


def test_what_is_submitted_is_whole_and_makes_the_same_shards(cloud, pictures, tmp_path):
    status, _, told = submit(cloud, "--labels=team=a")
    assert cloud.project.refused() == []
    assert status == 0, told + cloud.dataflow.said
    assert "Traceback" not in told
    console = "https://console.cloud.google.com/dataflow/jobs/us-central1/a-job?project=a-project"
    workers = "up to 2 of e2-standard-4 (4 cores each), 2 threads"
    for said in ("us-central1, paid for by a-project", workers, "shuffles", "on 8 cores", console, "87 train examples"):
        assert said in told, told

    (job,) = cloud.dataflow.jobs
    assert job["type"] in (1, "JOB_TYPE_BATCH")
    assert job["labels"] == {
        "team": "a", "application": "koalarization", "job": "preprocess", "beam": version.__version__.replace(".", "_")
    }  # fmt: skip
    (pool,) = job["environment"]["workerPools"]
    assert (pool["machineType"], pool["numThreadsPerWorker"]) == ("e2-standard-4", 2)
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 2
    assert f"beam_python{sys.version_info[0]}.{sys.version_info[1]}_sdk:" in pool["workerHarnessContainerImage"]
    options = job["environment"]["sdkPipelineOptions"]["options"]
    assert options["temp_location"].startswith("gs://bucket/data/job/dataflow/")
    assert (options["region"], options["project"]) == ("us-central1", PROJECT)
    staged = cloud.dataflow.staged(job)
    assert "workflow.tar.gz" in staged

    bucket = cloud.client().bucket("bucket")
    proto = bucket.blob(options["pipelineUrl"].removeprefix("gs://bucket/")).download_as_bytes()
    pipeline = beam_runner_api_pb2.Pipeline.FromString(proto)
    steps = {transform.unique_name for transform in pipeline.components.transforms.values()}
    assert any("WriteShard" in step for step in steps), steps

    local = tmp_path / "local"
    assert run_preprocess(*arguments(pictures / "archives"), f"--output={local}") == 0
    cloud.download("bucket", "data/", tmp_path / "copy")
    made, expected = content(tmp_path / "copy"), content(local)
    assert made.keys() == expected.keys()
    assert [name for name in made if name != "dataset.json" and made[name] != expected[name]] == []


TRACE = """Traceback (most recent call last):
  File "apache_beam/runners/worker.py", line 1, in process
pipeline.errors.UserError: source places365:gs://bucket/a.tar cannot be read: gone [while running 'ListPart']
"""


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (TRACE, "error: source places365:gs://bucket/a.tar cannot be read: gone"),
        (
            "Startup of the worker pool failed",
            "error: the job failed on Dataflow: Startup of the worker pool failed; its",
        ),
    ],
)
def test_a_job_that_fails_is_one_line(cloud, failure, line):
    cloud.dataflow.failure = failure
    status, _, told = submit(cloud, "--output=gs://bucket/failed")
    assert status == 1
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith(line)


def pushed(cloud, tag, beam, python):
    """The name of an image of these versions."""
    name = f"{PROJECT}/koalarization/beam:{tag}"
    cloud.project.images[name] = {"org.koalarization.beam": beam, "org.koalarization.python": python}
    return f"us-central1-docker.pkg.dev/{name}"


def test_a_job_with_an_image_of_its_own_runs_it_and_has_no_code_staged(cloud):
    image = pushed(cloud, "main", version.__version__, f"{sys.version_info[0]}.{sys.version_info[1]}")
    cloud.dataflow.failure = "no engine for images here"
    assert submit(cloud, "--output=gs://bucket/by-image", f"--sdk_container_image={image}")[0] == 1
    job = cloud.dataflow.jobs[-1]
    (pool,) = job["environment"]["workerPools"]
    assert pool["workerHarnessContainerImage"] == image
    assert [each["containerImage"] for each in pool["sdkHarnessContainerImages"]] == [image]
    assert "workflow.tar.gz" not in cloud.dataflow.staged(job)


def test_nothing_is_submitted_of_a_job_that_is_refused(cloud):
    before = len(cloud.dataflow.jobs)
    image = pushed(cloud, "old", "2.50.0", "3.11")
    for option, said in (
        (f"--sdk_container_image={image}", "has Beam 2.50.0 and Python 3.11, this program has"),
        ("--region=europe-west4", "gs://bucket lies in us-central1, but the work would be done in europe-west4"),
    ):
        status, _, told = submit(cloud, "--output=gs://bucket/refused", option)
        assert status == 1
        assert told.splitlines()[-1].startswith("error: ")
        assert said in told.splitlines()[-1]
    assert len(cloud.dataflow.jobs) == before


def test_a_job_whose_command_is_interrupted_is_cancelled(cloud):
    cloud.dataflow.failure = ""
    submitted = len(cloud.dataflow.jobs)
    process = start(cloud, "--output=gs://bucket/interrupted")
    until(lambda: len(cloud.dataflow.jobs) > submitted)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "error: interrupted"
    ((_, _, body),) = (call for call in cloud.dataflow.calls if call[0] == "dataflow.projects.locations.jobs.update")
    assert body["requestedState"] in (5, "JOB_STATE_CANCELLED")


def test_a_job_whose_command_was_killed_goes_on_and_no_other_writes_there(cloud):
    cloud.dataflow.failure = ""
    submitted = len(cloud.dataflow.jobs)
    process = start(cloud, "--output=gs://bucket/killed")
    until(lambda: len(cloud.dataflow.jobs) > submitted)
    process.kill()
    process.communicate()
    status, _, told = submit(cloud, "--output=gs://bucket/killed")
    assert status == 1
    line = told.splitlines()[-1]
    assert line.startswith(
        "error: a job writes there already: There is already active job named koalarization-preprocess"
    )
    assert line.endswith("with id: a-job. Wait for it, or cancel it")


def test_a_template_is_written_down_for_dataflow_as_its_launcher_asks(cloud):
    """Launchers may do less than people: they create no jobs and use no accounts."""
    submitted = len(cloud.dataflow.jobs)
    cloud.project.permissions |= {"project": set(), "account": set()}
    image = f"us-central1-docker.pkg.dev/{PROJECT}/koalarization/beam:main"
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    labels = {"org.koalarization.beam": version.__version__, "org.koalarization.python": python}
    cloud.project.images[image.partition("/")[2]] = labels
    metadata = json.loads(Path("docker/preprocess_template.json").read_text())
    values = {
        "sources": "places365:gs://bucket/archives/val_256.tar imagenet:gs://bucket/archives/ILSVRC2012_img_train.tar",
        "output": "gs://bucket/templated", "config": "configs/demo.py", "overwrite": "true",
        "settings": "dataset.layout=compact seed=7", "max_reject_fraction": "0.25", "sdk_container_image": image,
    }  # fmt: skip
    assert values.keys() == {each["name"] for each in metadata["parameters"]}
    for each in metadata["parameters"]:
        assert all(re.fullmatch(regex, values[each["name"]]) for regex in each["regexes"])
    command = [
        sys.executable, "docker/template.py", *(f"--{name}={value}" for name, value in values.items()),
        "--runner=DataflowRunner", f"--project={PROJECT}", "--region=us-central1", "--job_name=a-template",
        "--temp_location=gs://bucket/t", "--staging_location=gs://bucket/s", "--template_location=gs://bucket/job.json",
    ]  # fmt: skip
    environment = {**os.environ, **cloud.environment, "PYTHONPATH": os.getcwd()}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "the job is written down in gs://bucket/job.json" in result.stderr
    assert len(cloud.dataflow.jobs) == submitted
    job = json.loads(cloud.client().bucket("bucket").blob("job.json").download_as_bytes())
    cloud.dataflow.check_job(job)
    assert job["name"] == "a-template"
    assert job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"].startswith("gs://bucket/s/")
