"""What is looked at and chosen before a job goes to Dataflow, with Google's APIs in doubles."""

import platform

import pytest
from apache_beam import version
from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, SetupOptions, WorkerOptions

from beam_jobs import dataflow, runner
from pipeline.errors import UsageError, UserError
from tests import cloud_storage
from tests.google_project import PROJECT, Project

PYTHON = ".".join(platform.python_version_tuple()[:2])
IMAGE = f"us-central1-docker.pkg.dev/{PROJECT}/koalarization/beam:main"
NAME = IMAGE.partition("/")[2]
LABELS = {"org.koalarization.beam": version.__version__, "org.koalarization.python": PYTHON}
OUTPUT = "gs://bucket/data"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    project = Project()
    folder = tmp_path_factory.mktemp("cloud")
    with (
        cloud_storage.running(folder, "bucket", services=project.services) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        project.locations |= {"far-away": "EUROPE-WEST4", "everywhere": "US"}
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield project


@pytest.fixture
def project(running):
    """A project in which all is as it should be, for a test to change."""
    before = running.permissions.copy(), running.roles
    running.images.clear()
    running.images[NAME] = LABELS
    yield running
    running.permissions, running.roles = before
    assert running.refused() == []


def prepared(*argv, output=OUTPUT, paths=(), units=128, **more):
    options = runner.parse_options(["--runner=DataflowRunner", f"--project={PROJECT}", *argv])
    dataflow.prepare(options, "preprocess", output, list(paths), units, **more)
    return options


def test_what_is_not_said_is_chosen_and_told(project):
    options = prepared()
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    assert cloud.region == "us-central1"  # where the bucket lies
    assert cloud.temp_location == cloud.staging_location == "gs://bucket/data/job/dataflow"
    assert cloud.job_name.startswith("koalarization-preprocess-")
    assert {"application=koalarization", "job=preprocess"} < set(cloud.labels)
    assert (worker.machine_type, worker.max_num_workers) == ("e2-standard-4", 32)
    assert options.view_as(DebugOptions).number_of_worker_harness_threads == 2
    assert options.view_as(SetupOptions).setup_file.endswith("/setup.py")
    assert dataflow.cores(options) == 128
    told = dataflow.describe(options)
    for part in ("us-central1", PROJECT, "up to 32 of e2-standard-4 (4 cores each)", "2 threads", "setup.py"):
        assert part in told


def test_what_is_said_is_left(project):
    options = prepared(
        "--region=us-east1", "--temp_location=gs://everywhere/t", "--job_name=mine", "--machine_type=n2-highcpu-16",
        "--max_num_workers=3", "--number_of_worker_harness_threads=7", "--labels=team=a", "--setup_file=/x/setup.py",
        output="gs://everywhere/data",
    )  # fmt: skip
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    assert (cloud.region, cloud.temp_location, cloud.job_name) == ("us-east1", "gs://everywhere/t", "mine")
    assert (worker.machine_type, worker.max_num_workers) == ("n2-highcpu-16", 3)
    assert options.view_as(DebugOptions).number_of_worker_harness_threads == 7
    assert options.view_as(SetupOptions).setup_file == "/x/setup.py"
    assert cloud.labels[0] == "team=a"
    assert dataflow.cores(options) == 48


def test_an_image_of_the_same_versions(project):
    assert IMAGE in dataflow.describe(prepared(f"--sdk_container_image={IMAGE}"))
    beams = f"apache/beam_python{PYTHON}_sdk:{version.__version__}"
    prepared(f"--sdk_container_image={beams}")
    project.images[NAME] = {**LABELS, "org.koalarization.beam": "2.50.0"}
    with pytest.raises(
        UserError, match=f"image {IMAGE} has Beam 2.50.0 and Python {PYTHON}, this program has Beam 2.7"
    ):
        prepared(f"--sdk_container_image={IMAGE}")
    with pytest.raises(UserError, match="has Beam 2.50.0 and Python 3.8, this program has"):
        prepared("--sdk_container_image=gcr.io/cloud-dataflow/v1beta3/beam_python3.8_sdk:2.50.0")
    project.images[NAME] = {}
    with pytest.raises(UserError, match="does not say which Beam and Python it holds; build it from docker/"):
        prepared(f"--sdk_container_image={IMAGE}")
    with pytest.raises(UserError, match="image .*:none cannot be looked at: .* 404.*; build it from docker/"):
        prepared(f"--sdk_container_image={IMAGE.replace(':main', ':none')}")
    with pytest.raises(UserError, match="image mine is not in Artifact Registry"):
        prepared("--sdk_container_image=mine")


def test_another_region_is_refused(project):
    with pytest.raises(
        UserError, match="gs://far-away lies in europe-west4, but the work would be done in us-central1"
    ):
        prepared(paths=["gs://far-away/photos"])
    with pytest.raises(UserError, match="gs://bucket lies in us-central1, but the work would be done in europe-west4"):
        prepared("--region=europe-west4", output=OUTPUT)
    with pytest.raises(UserError, match="gs://everywhere lies in us, but the work would be done in europe-west4"):
        prepared("--region=europe-west4", output="gs://far-away/data", paths=["gs://everywhere/photos"])
    with pytest.raises(UsageError, match="--region is missing: .* near gs://everywhere/data"):
        prepared(output="gs://everywhere/data")
    with pytest.raises(UserError, match="there is no bucket gs://no-bucket; make it: gcloud storage buckets create"):
        prepared(output="gs://no-bucket/data")


@pytest.mark.parametrize(
    ("permission", "said"),
    [
        (
            "dataflow.jobs.create",
            "you lack dataflow.jobs.create in project a-project, which roles/dataflow.developer has",
        ),
        (
            "storage.objects.create",
            "you lack storage.objects.create on gs://bucket: gcloud storage buckets add-iam-pol",
        ),
        ("iam.serviceAccounts.actAs", "you lack iam.serviceAccounts.actAs on 123456789-compute@.*serviceAccountUser"),
    ],
)
def test_a_missing_permission_is_named_with_the_role_that_has_it(project, permission, said):
    project.permissions -= {permission}
    with pytest.raises(UserError, match=said):
        prepared()


def test_a_service_account_without_a_role_is_refused_if_that_can_be_seen(project, caplog):
    project.roles = ["roles/viewer"]
    with pytest.raises(UserError, match="as whom the workers run, lacks roles/dataflow.worker in project a-project"):
        prepared()
    project.roles = None
    caplog.set_level("INFO")
    prepared()
    assert "has roles/dataflow.worker could not be looked up" in caplog.text


def test_another_project_and_what_cannot_be_reached(project):
    with pytest.raises(
        UserError, match="project other cannot be looked at: .* 403: The caller does not have permission"
    ):
        prepared("--project=other")
    with pytest.raises(UsageError, match="/photos cannot be reached from Dataflow; copy it to a bucket"):
        prepared(paths=["/photos"])
    with pytest.raises(
        UsageError, match="--sdk_container_image is missing: the workers of 'preprocess' need TensorFlow"
    ):
        prepared(needs_image=True)
    with pytest.raises(UsageError, match="'preprocess' has no template"):
        prepared("--template_location=gs://bucket/t", needs_image=True)


def test_without_a_project(project):
    options = runner.parse_options(["--runner=DataflowRunner"])
    with pytest.raises(UsageError, match="--project is missing"):
        dataflow.prepare(options, "preprocess", OUTPUT, [], 1)
