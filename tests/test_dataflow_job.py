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

from beam_jobs import embed
from pipeline import cli
from tests import cloud_storage
from tests.google_dataflow import Dataflow
from tests.google_project import PROJECT, Project
from tests.helpers import TINY, encoded, noise
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


def start(cloud, *more, program=("-m", "beam_jobs.preprocess")):
    if program[-1] == "beam_jobs.preprocess":
        own = arguments("gs://bucket/archives")
        more = ("--config=configs/demo.py", *own, "--output=gs://bucket/data", *more)
    port = cloud.environment["STORAGE_EMULATOR_HOST"].rpartition(":")[2]
    command = [
        sys.executable, *program, "--runner=DataflowRunner", f"--project={PROJECT}",
        f"--dataflow_endpoint=http://localhost:{port}", *more,
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **cloud.environment}, **pipes)


@pytest.fixture(autouse=True)
def at_once(cloud):
    yield
    cloud.dataflow.slow = 0.0


def submit(cloud, *more, **program):
    process = start(cloud, *more, **program)
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


@pytest.fixture
def image(cloud):
    """The name of an image of the same versions; it holds what is here."""
    return pushed(cloud, "main", version.__version__, f"{sys.version_info[0]}.{sys.version_info[1]}")


def test_features_are_made_by_an_image_of_ones_own_of_which_no_code_is_staged(cloud, image, tmp_path):
    local = tmp_path / "local"
    options = ("--config.dataset.layout=compact", "--config.dataset.validation_fraction=0")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        (photos / f"{number}.png").write_bytes(encoded(noise(40, 40, number)))
    assert run_preprocess(f"--source=images:{photos}", f"--output={local}", *options) == 0
    cloud.upload(local, "bucket", "few/")
    assert cli.run(embed.main, ["embed", "--config=configs/demo.py", f"--data={local}"]) == 0

    cloud.dataflow.failure = None
    status, _, told = submit(
        cloud, "--config=configs/demo.py", "--data=gs://bucket/few", f"--sdk_container_image={image}",
        program=("-m", "beam_jobs.embed"),
    )  # fmt: skip
    assert status == 0, told + cloud.dataflow.said
    assert "gs://bucket/few: features of 5 examples, of extractor " in told
    cloud.download("bucket", "few/", tmp_path / "copy")
    assert content(tmp_path / "copy") == content(local)
    job = cloud.dataflow.jobs[-1]
    assert job["labels"]["job"] == "embed"
    (pool,) = job["environment"]["workerPools"]
    assert pool["workerHarnessContainerImage"] == image
    assert [each["containerImage"] for each in pool["sdkHarnessContainerImages"]] == [image]
    assert "workflow.tar.gz" not in cloud.dataflow.staged(job)


def test_weights_that_workers_do_not_have_are_refused(cloud, image, tmp_path):
    submitted = len(cloud.dataflow.jobs)
    status, _, told = submit(
        cloud, "--config=configs/demo.py", f"--config.model.feature_weights={tmp_path}/weights.h5",
        "--data=gs://bucket/few", f"--sdk_container_image={image}", program=("-m", "beam_jobs.embed"),
    )  # fmt: skip
    assert status == 2
    said = f"error: {tmp_path}/weights.h5 cannot be reached from Dataflow; copy it to a bucket, and name it as gs://..."
    assert told.splitlines()[-1].startswith(said)
    assert len(cloud.dataflow.jobs) == submitted


def test_a_collection_is_colorized_by_a_job_of_its_own(cloud, image, finished):
    cloud.upload(finished[0], "bucket", "run/")
    cloud.dataflow.failure = "no model here"
    status, _, told = submit(
        cloud, "--workdir=gs://bucket/run", "--source=places365:gs://bucket/archives/val_256.tar",
        "--output=gs://bucket/collection", f"--sdk_container_image={image}",
        program=("-c", TINY.format("beam_jobs.colorize")),
    )  # fmt: skip
    assert status == 1
    assert told.splitlines()[-1].startswith("error: the job failed on Dataflow: no model here; its console")
    job = cloud.dataflow.jobs[-1]
    assert job["labels"]["job"] == "colorize"
    (pool,) = job["environment"]["workerPools"]
    assert pool["workerHarnessContainerImage"] == image


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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_job_that_is_being_submitted_when_its_command_is_told_to_stop_is_cancelled(cloud, number, status):
    cloud.dataflow.failure, cloud.dataflow.slow = "", 3.0
    submitted = len(cloud.dataflow.jobs)
    cloud.dataflow.calls.clear()
    process = start(cloud, f"--output=gs://bucket/submitted-{status}")
    until(lambda: len(cloud.dataflow.jobs) > submitted)
    process.send_signal(number)
    _, told = process.communicate(timeout=300)
    assert process.returncode == status, told
    assert "cancels the job" in told
    assert "Traceback" not in told
    ((_, _, body),) = (call for call in cloud.dataflow.calls if call[0] == "dataflow.projects.locations.jobs.update")
    assert body["requestedState"] in (5, "JOB_STATE_CANCELLED")


def test_who_insists_while_a_job_is_being_submitted_is_told_that_it_may_be_there(cloud):
    cloud.dataflow.failure, cloud.dataflow.slow = "", 6.0
    submitted = len(cloud.dataflow.jobs)
    process = start(cloud, "--output=gs://bucket/insisted")
    until(lambda: len(cloud.dataflow.jobs) > submitted)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "may have been submitted; it goes on then, and costs" in told
    cloud.dataflow._state = "JOB_STATE_CANCELLED"  # by hand


def test_a_job_whose_command_was_killed_goes_on_and_no_other_writes_there(cloud):
    cloud.dataflow.failure = ""
    submitted = len(cloud.dataflow.jobs)
    process = start(cloud, "--output=gs://bucket/killed")
    until(lambda: len(cloud.dataflow.jobs) > submitted)
    process.kill()
    process.communicate()

    def written():
        return {blob.name: blob.generation for blob in cloud.client().list_blobs("bucket", prefix="killed/")}

    assert "killed/job/settings.json" in (before := written())
    others = ("--config.dataset.layout=full", "--overwrite")  # which would begin by deleting
    status, _, told = submit(cloud, "--output=gs://bucket/killed", *others)
    assert status == 1
    console = "https://console.cloud.google.com/dataflow/jobs/us-central1/a-job?project=a-project"
    assert told.splitlines()[-1] == f"error: a job writes there already; wait for it, or cancel it: {console}"
    assert written() == before


TEMPLATE = json.loads(Path("docker/preprocess_template.json").read_text())


def is_taken(name, value):
    """Whether Dataflow takes a value for a parameter of the template."""
    (parameter,) = (each for each in TEMPLATE["parameters"] if each["name"] == name)
    return all(re.fullmatch(regex, value) for regex in parameter["regexes"])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sources", ("images:photos", "photos", "flickr:gs://bucket/a", "images:gs://bucket/a  images:gs://bucket/b")),
        ("output", ("/x", "gs://bucket", "gs://b/x", "gs://Bucket/x")),
        ("sdk_container_image", ("beam", "", "us-docker.pkg.dev/a/b:c d")),
        ("config", ("/etc/passwd", "configs/../x.py", "configs/demo")),
        ("settings", ("layout", "dataset.layout = compact", "--seed=7")),
        ("overwrite", ("maybe", "True", "1")),
        ("max_reject_fraction", ("1.5", "50%", "-0.1")),
    ],
)
def test_parameters_that_a_template_cannot_have_are_refused_by_dataflow(name, values):
    assert [value for value in values if is_taken(name, value)] == []


def test_a_template_is_described_as_dataflow_asks(cloud):
    cloud.dataflow.check_template(TEMPLATE)
    required = [each["name"] for each in TEMPLATE["parameters"] if not each.get("isOptional")]
    assert required == ["sources", "output", "sdk_container_image"]
    for each in TEMPLATE["parameters"]:
        assert "defaultValue" not in each or is_taken(each["name"], each["defaultValue"])
    assert is_taken("output", f"gs://{'a' * 100}.example.com/data")  # of a domain; names of others have 63


def test_a_template_is_written_down_for_dataflow_as_its_launcher_asks(cloud, image, tmp_path):
    """Launchers may do less than people: they create no jobs and use no accounts."""
    submitted = len(cloud.dataflow.jobs)
    cloud.project.permissions |= {"project": set(), "account": set()}
    for name in ("docker/template.py", "configs"):  # as they lie in the image
        (tmp_path / os.path.basename(name)).symlink_to(Path(name).absolute())
    values = {
        "sources": "places365:gs://bucket/archives/val_256.tar imagenet:gs://bucket/archives/ILSVRC2012_img_train.tar",
        "output": "gs://bucket/templated", "config": "configs/demo.py", "overwrite": "true",
        "settings": "dataset.layout=compact seed=7", "max_reject_fraction": "0.25", "sdk_container_image": image,
    }  # fmt: skip
    assert values.keys() == {each["name"] for each in TEMPLATE["parameters"]}
    assert all(is_taken(name, value) for name, value in values.items())
    command = [
        sys.executable, tmp_path / "template.py", *(f"--{name}={value}" for name, value in values.items()),
        "--runner=DataflowRunner", f"--project={PROJECT}", "--region=us-central1", "--job_name=a-template",
        "--temp_location=gs://bucket/t", "--staging_location=gs://bucket/s", "--template_location=gs://bucket/job.json",
    ]  # fmt: skip
    environment = {**os.environ, **cloud.environment, "PYTHONPATH": os.getcwd()}
    result = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "the job is written down in gs://bucket/job.json" in result.stderr
    assert len(cloud.dataflow.jobs) == submitted
    job = json.loads(cloud.client().bucket("bucket").blob("job.json").download_as_bytes())
    cloud.dataflow.check_job(job)
    assert job["name"] == "a-template"
    (pool,) = job["environment"]["workerPools"]
    assert pool["workerHarnessContainerImage"] == image
    assert job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"].startswith("gs://bucket/s/")
