"""A job on Dataflow from the command to the shards, with Google's service in a double that runs what was staged."""

import os
import subprocess
import sys

import pytest
from apache_beam import version
from apache_beam.portability.api import beam_runner_api_pb2

from tests import cloud_storage
from tests.google_dataflow import Dataflow
from tests.google_project import PROJECT, Project
from tests.programs import content, run_preprocess

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


def submit(cloud, *more):
    port = cloud.environment["STORAGE_EMULATOR_HOST"].rpartition(":")[2]
    command = [
        sys.executable, "-m", "beam_jobs.preprocess", "--config=configs/demo.py", *arguments("gs://bucket/archives"),
        "--output=gs://bucket/data", "--runner=DataflowRunner", f"--project={PROJECT}",
        f"--dataflow_endpoint=http://localhost:{port}", *more,
    ]  # fmt: skip
    return subprocess.run(command, env={**os.environ, **cloud.environment}, capture_output=True, text=True)


def test_what_is_submitted_is_whole_and_makes_the_same_shards(cloud, pictures, tmp_path):
    result = submit(cloud, "--labels=team=a")
    assert cloud.project.refused() == []
    assert result.returncode == 0, result.stderr + cloud.dataflow.said
    assert "Traceback" not in result.stderr
    told = (
        "us-central1, paid for by a-project",
        "up to 2 of e2-standard-4",
        "shuffles",
        "on 8 cores",
        "87 train examples",
    )
    for said in told:
        assert said in result.stderr

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
