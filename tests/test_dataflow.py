"""What is looked at and chosen before a job goes to Dataflow, with Google's APIs in doubles."""

import copy
import importlib
import platform
import re
import signal
from pathlib import Path

import pytest
from apache_beam import version
from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, SetupOptions, WorkerOptions
from apache_beam.runners.dataflow.dataflow_runner import DataflowRuntimeException
from apache_beam.runners.dataflow.internal.apiclient import DataflowJobAlreadyExistsError
from google.api_core.exceptions import Forbidden, RetryError, TooManyRequests

from beam_jobs import dataflow, embed, gcs, runner
from pipeline import cli
from pipeline.errors import UsageError, UserError
from tests import cloud_storage
from tests.google_apis import Api
from tests.google_project import ACCOUNT, PROJECT, Project

PYTHON = ".".join(platform.python_version_tuple()[:2])
IMAGE = f"us-central1-docker.pkg.dev/{PROJECT}/koalarization/beam:main"
NAME = IMAGE.partition("/")[2]
LABELS = {"org.koalarization.beam": version.__version__, "org.koalarization.python": PYTHON}
OUTPUT = "gs://bucket/data"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    jobs = []

    def listed(found, body):
        """Two pages."""
        assert "name" not in found, "jobs are not filtered by name"
        assert found["filter"] == "ACTIVE"
        first, last = {"nextPageToken": "more"}, {"jobs": jobs, "failedLocation": [{"name": "us-east9"}]}
        return last if found.get("pageToken") == "more" else first

    project = Project(Api("dataflow", "v1b3", projects_jobs_aggregated=listed))
    project.jobs = jobs
    folder = tmp_path_factory.mktemp("cloud")
    with (
        cloud_storage.running(folder, "bucket", services=project.services) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        project.locations |= {"far-away": "EUROPE-WEST4", "everywhere": "US"}
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
        gcs._client.cache_clear()
        project.storage = server
        yield project


@pytest.fixture
def project(running):
    """A project in which all is as it should be, for a test to change."""
    before = copy.deepcopy(running.permissions), running.roles, running.bucket_roles
    running.images.clear()
    running.images[NAME] = LABELS
    running.architectures.clear()
    running.jobs.clear()
    yield running
    running.permissions, running.roles, running.bucket_roles = before
    running.own_bucket_roles = {}
    running.disabled = set()
    assert running.refused() == []


def prepared(*argv, job="preprocess", output=OUTPUT, paths=(), units=128, **more):
    options = runner.parse_options(["--runner=DataflowRunner", f"--project={PROJECT}", *argv])
    dataflow.prepare(options, job, output, list(paths), units, **more)
    return options


def documented(page):
    """The commands of Beam jobs for Dataflow that a page shows: the module, and its arguments."""
    text = Path(page).read_text().replace("\\\n", " ")
    lines = re.findall(
        r"^\.venv/bin/python -m (beam_jobs\.\w+) ([^#\n]*--runner=DataflowRunner[^#\n]*)", text, re.MULTILINE
    )
    values = {
        "koalarization@PROJECT.iam.gserviceaccount.com": ACCOUNT, "PROJECT": PROJECT, "BUCKET": "bucket",
        "REGION": "us-central1",
    }  # fmt: skip
    pattern = "|".join(map(re.escape, values))
    return [(module, re.sub(pattern, lambda found: values[found[0]], rest).split()) for module, rest in lines]


@pytest.mark.parametrize(("page", "count"), [("README.md", 1), ("docs/google-cloud.md", 2)])
def test_the_commands_of_the_pages_work(project, pictures, compact_dataset, monkeypatch, page, count):
    """Those that have no --dry_run up to what would be submitted."""
    bucket = project.storage.client().bucket("bucket")
    bucket.blob("val_256.tar").upload_from_filename(pictures / "archives/val_256.tar")
    project.images[NAME.replace("/beam:", "/trainer:")] = LABELS
    project.roles = ["roles/dataflow.worker", "roles/artifactregistry.reader"]
    begun = []
    monkeypatch.setattr(embed, "embed", lambda *arguments: begun.append(arguments))
    commands = documented(page)
    assert len(commands) == count
    for module, arguments in commands:
        program = importlib.import_module(module)
        more = ["--dry_run"] if module == "beam_jobs.preprocess" else []
        assert cli.run(program.main, [module, *arguments, *more]) == 0
        bucket.blob("data/dataset.json").upload_from_filename(f"{compact_dataset.directory}/dataset.json")
    assert len(begun) == count - 1
    bucket.blob("data/dataset.json").delete()


def test_the_options_of_the_pages_are_known_to_beam():
    text = Path("docs/google-cloud.md").read_text()
    (named,) = re.findall(r"All of Beam's options for Dataflow follow as they are \(([^)]+)\)", text)
    (other,) = re.findall(r"`(\S+)` for Dataflow", text)
    options = [*re.findall(r"`([^`]+)`", named), other]
    assert len(options) == 5
    parsed = runner.parse_options(["--runner=DataflowRunner", *options])
    assert parsed.view_as(WorkerOptions).use_public_ips is False


def test_what_is_not_said_is_chosen_and_told(project):
    options = prepared()
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    assert cloud.region == "us-central1"  # where the bucket lies
    assert cloud.temp_location == cloud.staging_location == "gs://bucket/data/job/dataflow"
    assert cloud.job_name.startswith("koalarization-")
    assert {"application=koalarization", "job=preprocess"} < set(cloud.labels)
    assert (worker.machine_type, worker.max_num_workers) == ("e2-standard-4", 32)
    assert options.view_as(DebugOptions).number_of_worker_harness_threads == 2
    assert options.view_as(SetupOptions).setup_file.endswith("/setup.py")
    assert dataflow.cores(options) == 128
    assert prepared(units=10_000).view_as(WorkerOptions).max_num_workers == 50
    told = dataflow.describe(options)
    for part in ("us-central1", PROJECT, "up to 32 of e2-standard-4 (4 cores each)", "2 threads", "setup.py"):
        assert part in told


def test_what_is_said_is_left(project):
    options = prepared(
        "--region=us-east1", "--temp_location=gs://everywhere/t", "--machine_type=n2-highcpu-16",
        "--max_num_workers=3", "--number_of_worker_harness_threads=7", "--labels=team=a", "--setup_file=/x/setup.py",
        output="gs://everywhere/data",
    )  # fmt: skip
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    assert (cloud.region, cloud.temp_location) == ("us-east1", "gs://everywhere/t")
    assert (worker.machine_type, worker.max_num_workers) == ("n2-highcpu-16", 3)
    assert options.view_as(DebugOptions).number_of_worker_harness_threads == 7
    assert options.view_as(SetupOptions).setup_file == "/x/setup.py"
    assert cloud.labels[-1] == "team=a"  # the last of a name is taken
    assert dataflow.cores(options) == 48


def test_an_image_of_the_same_versions(project, caplog):
    assert IMAGE in dataflow.describe(prepared(f"--sdk_container_image={IMAGE}"))
    beams = f"apache/beam_python{PYTHON}_sdk:{version.__version__}"
    options = prepared(f"--sdk_container_image={beams}")
    assert options.view_as(SetupOptions).setup_file.endswith("/setup.py")  # which it has not
    project.images[NAME] = {**LABELS, "org.koalarization.beam": "2.50.0"}
    with pytest.raises(
        UserError, match=f"image {IMAGE} has Beam 2.50.0 and Python {PYTHON}, this program has Beam 2.7"
    ):
        prepared(f"--sdk_container_image={IMAGE}")
    with pytest.raises(UserError, match="has Beam 2.50.0 and Python 3.8, this program has"):
        prepared("--sdk_container_image=gcr.io/cloud-dataflow/v1beta3/beam_python3.8_sdk:2.50.0")
    project.images[NAME] = {**LABELS, "org.koalarization.python": "3.8"}
    with pytest.raises(UserError, match=f"has Beam {version.__version__} and Python 3.8, this program has"):
        prepared(f"--sdk_container_image={IMAGE}")
    project.images[NAME] = {}
    with pytest.raises(UserError, match="does not say which Beam and Python it holds; build it from docker/"):
        prepared(f"--sdk_container_image={IMAGE}")
    with pytest.raises(UserError, match="image .*:none cannot be looked at: .* 404.*; build it from docker/"):
        prepared(f"--sdk_container_image={IMAGE.replace(':main', ':none')}")
    project.images[NAME] = LABELS
    project.architectures[NAME.partition(":")[0]] = "arm64"
    with pytest.raises(UserError, match=f"image {IMAGE} is for arm64, the machines are amd64: build it from docker/"):
        prepared(f"--sdk_container_image={IMAGE}")
    prepared("--sdk_container_image=mine")
    assert "which versions image mine has could not be looked up" in caplog.text


def test_workers_that_can_fetch_no_image_or_install_nothing_are_warned_of(project, caplog):
    prepared("--no_use_public_ips", f"--sdk_container_image={IMAGE}")
    assert "can install nothing" not in caplog.text
    assert "lacks roles/artifactregistry.reader in project a-project: gcloud" in caplog.text
    caplog.clear()
    project.roles = ["roles/dataflow.worker", "roles/artifactregistry.reader"]
    prepared(f"--sdk_container_image={IMAGE}")
    assert "artifactregistry" not in caplog.text
    prepared("--no_use_public_ips")
    assert "workers without public addresses can install nothing, unless their network has a Cloud NAT" in caplog.text


def test_a_job_that_writes_there_is_noticed_in_any_region_and_of_any_kind(project, caplog):
    assert len({prepared(job=each).view_as(GoogleCloudOptions).job_name for each in ("preprocess", "embed")}) == 1
    name = prepared().view_as(GoogleCloudOptions).job_name
    project.jobs += [
        {"id": "other", "name": f"{name}0", "location": "us-central1"},
        {"id": "one", "name": name, "location": "europe-west4"},
    ]
    console = "https://console.cloud.google.com/dataflow/jobs/europe-west4/one.project=a-project"
    with pytest.raises(UserError, match=f"a job writes there already; wait for it, or cancel it: {console}"):
        prepared()
    prepared(output="gs://bucket/elsewhere")
    with pytest.raises(UsageError, match="--job_name=mine cannot be chosen: a job is named by its output"):
        prepared("--job_name=mine")
    assert "WARNING: whether a job writes there already cannot be seen in us-east9" in caplog.text


def test_another_region_is_refused(project):
    with pytest.raises(
        UserError, match="gs://far-away lies in europe-west4, but the work would be done in us-central1"
    ):
        prepared(paths=["gs://far-away/photos"])
    with pytest.raises(UserError, match="gs://bucket lies in us-central1, but the work would be done in europe-west4"):
        prepared("--region=europe-west4", output=OUTPUT)
    with pytest.raises(UserError, match="gs://everywhere lies in us, but the work would be done in europe-west4"):
        prepared("--region=europe-west4", output="gs://far-away/data", paths=["gs://everywhere/photos"])
    with pytest.raises(UsageError, match="--region is missing: .* near to gs://everywhere/data"):
        prepared(output="gs://everywhere/data")
    with pytest.raises(UserError, match="there is no bucket gs://no-bucket; make it: gcloud storage buckets create"):
        prepared(output="gs://no-bucket/data")


@pytest.mark.parametrize("name", ["service_account_email", "sdk_container_image", "region", "temp_location"])
def test_an_option_that_a_shell_left_empty_is_refused(project, name):
    with pytest.raises(UsageError, match=f"--{name}= is empty; give it a value, or leave it out"):
        prepared(f"--{name}=")


@pytest.mark.parametrize(
    ("what", "permission", "said"),
    [
        (
            "project",
            "dataflow.jobs.create",
            "in project a-project, which roles/dataflow.developer has: gcloud projects",
        ),
        (
            "project",
            "dataflow.messages.list",
            "in project a-project, which roles/dataflow.developer has: gcloud projects",
        ),
        ("bucket", "storage.objects.create", "on gs://bucket: gcloud storage .* --role=roles/storage.objectAdmin"),
        ("bucket", "storage.buckets.get", "on gs://bucket: gcloud storage .* --role=roles/storage.legacyBucketReader"),
        ("account", "iam.serviceAccounts.actAs", "on 123456789-compute@.*--role=roles/iam.serviceAccountUser"),
    ],
)
def test_a_missing_permission_is_named_with_the_role_that_has_it(project, what, permission, said):
    project.permissions[what] -= {permission}
    with pytest.raises(UserError, match=f"you lack {permission} {said}"):
        prepared()


def test_an_api_that_is_not_enabled(project):
    project.disabled = {"dataflow.googleapis.com"}
    with pytest.raises(
        UserError, match="dataflow.googleapis.com is not enabled: gcloud services enable dataflow.google"
    ):
        prepared()


def test_a_service_account_without_a_role_is_refused_or_warned_of_where_that_cannot_be_seen(project, caplog):
    project.roles = ["roles/viewer"]
    with pytest.raises(UserError, match="as whom the machines run, lacks roles/dataflow.worker in project a-project"):
        prepared()
    project.roles = ["roles/viewer", "projects/a-project/roles/mine"]
    prepared()
    assert "lacks roles/dataflow.worker in project a-project: gcloud" in caplog.text
    assert "--condition=None, unless projects/a-project/roles/mine will do" in caplog.text
    project.roles = None
    prepared()
    assert "WARNING: whether " in caplog.text
    assert "has roles/dataflow.worker in project a-project could not be looked up" in caplog.text


def test_a_service_account_that_may_not_write_to_the_bucket_is_refused(project, caplog):
    project.bucket_roles = {
        "roles/storage.objectAdmin": "user:me",
        "roles/storage.legacyObjectOwner": "projectEditor:x",
    }
    with pytest.raises(
        UserError,
        match="lacks roles/storage.objectAdmin on gs://bucket: gcloud storage buckets add-iam-policy-binding "
        "gs://bucket --member=serviceAccount:.* --role=roles/storage.objectAdmin --condition=None",
    ):
        prepared()
    project.bucket_roles["roles/storage.legacyObjectOwner"] = f"projectEditor:{PROJECT}"
    with pytest.raises(UserError, match="lacks roles/storage.objectAdmin on gs://bucket"):
        prepared()
    project.roles = ["roles/editor"]
    prepared()
    project.roles, project.bucket_roles = ["roles/dataflow.worker", "roles/storage.admin"], {}
    prepared()
    project.own_bucket_roles = {"everywhere": {"roles/storage.objectViewer": f"serviceAccount:{ACCOUNT}"}}
    project.roles, project.bucket_roles = (
        ["roles/dataflow.worker"],
        {"roles/storage.objectAdmin": f"serviceAccount:{ACCOUNT}"},
    )
    prepared(paths=["gs://everywhere/photos"])
    with pytest.raises(UserError, match="lacks roles/storage.objectAdmin on gs://everywhere"):
        prepared("--temp_location=gs://everywhere/t")
    project.own_bucket_roles = {"everywhere": {}}
    with pytest.raises(UserError, match="lacks roles/storage.objectViewer on gs://everywhere: gcloud storage"):
        prepared(paths=["gs://everywhere/photos"])
    project.own_bucket_roles = {"everywhere": {"roles/storage.objectViewer": "allUsers"}}
    prepared(paths=["gs://everywhere/photos"])
    project.bucket_roles = None
    prepared()
    assert "WARNING: whether " in caplog.text
    assert "has roles/storage.objectAdmin on gs://bucket could not be looked up" in caplog.text


@pytest.mark.parametrize(
    ("machine", "cores"),
    [
        ("e2-standard-4", 4), ("n2-custom-8-16384", 8), ("custom-4-8192", 4), ("n2-custom-6-98304-ext", 6),
        ("c3-standard-22-lssd", 22), ("a2-highgpu-1g", None), ("e2-medium", None), ("g2-standard-12", 12),
    ],
)  # fmt: skip
def test_the_cores_of_a_machine(machine, cores):
    assert dataflow.machine_cores(machine) == cores


def test_what_beam_would_refuse_when_it_is_late(project):
    with pytest.raises(UsageError, match="Invalid job_name .*My_Job"):
        prepared("--job_name=My_Job", "--template_location=gs://bucket/t", f"--sdk_container_image={IMAGE}")
    with pytest.raises(UsageError, match="--temp_location=gs://mine is no directory of a bucket"):
        prepared("--temp_location=gs://mine")
    with pytest.raises(
        UserError, match="gs://far-away lies in europe-west4, but the work would be done in us-central1"
    ):
        prepared("--temp_location=gs://far-away/x")
    assert prepared("--num_workers=100").view_as(WorkerOptions).max_num_workers == 100
    with pytest.raises(UsageError, match="--max_num_workers is missing: how many cores e2-medium has its name"):
        prepared("--machine_type=e2-medium")


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
    with pytest.raises(UsageError, match="--sdk_container_image is missing: the workers need this package"):
        prepared("--template_location=gs://bucket/t")
    with pytest.raises(UsageError, match="--template_location=gs://bucket/t is for --runner=DataflowRunner"):
        runner.parse_options(["--template_location=gs://bucket/t"])


def test_without_a_project(project):
    options = runner.parse_options(["--runner=DataflowRunner"])
    with pytest.raises(UsageError, match="--project is missing"):
        dataflow.prepare(options, "preprocess", OUTPUT, [], 1)


class Result:
    """A job of which the service answers as a test says."""

    def __init__(self, *answers, cancel=None, state="FAILED"):
        self._answers, self._cancel, self.state = iter(answers), cancel, state

    def job_id(self):
        return "a-job"

    def wait_until_finish(self):
        if isinstance(answer := next(self._answers), BaseException):
            raise answer
        return answer

    def cancel(self):
        if self._cancel:
            raise self._cancel
        self.state = "CANCELLED"


def heard():
    """No signal came."""


def test_a_service_that_does_not_answer_is_asked_again(project, monkeypatch):
    monkeypatch.setattr(dataflow, "_PAUSE_SECONDS", 0.0)
    options = prepared()
    assert dataflow.wait(Result(AssertionError(), AssertionError(), "DONE"), options, heard) == "DONE"
    with pytest.raises(
        UserError, match="the job was lost sight of, and goes on: https://console.*a-job.project=a-proj"
    ):
        dataflow.wait(Result(*[AssertionError() for _ in range(100)]), options, heard)


def test_a_wait_that_is_broken_off_cancels_the_job_or_says_that_it_goes_on(project, caplog, monkeypatch):
    options = prepared()
    result = Result(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        dataflow.wait(result, options, heard)
    assert result.state == "CANCELLED"
    assert "could not be cancelled" not in caplog.text
    with pytest.raises(KeyboardInterrupt):
        dataflow.wait(Result(KeyboardInterrupt(), cancel=OSError("no route")), options, heard)
    assert (
        "the job could not be cancelled, goes on, and costs (no route); see to it in its console: http" in caplog.text
    )
    with pytest.raises(KeyboardInterrupt):
        dataflow.wait(Result(KeyboardInterrupt(), cancel=KeyboardInterrupt()), options, heard)
    assert "the job could not be cancelled, goes on, and costs (interrupted once more)" in caplog.text
    monkeypatch.setattr(dataflow, "_STOP_SECONDS", 0.0)
    monkeypatch.setattr(Result, "cancel", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        dataflow.wait(Result(KeyboardInterrupt(), state="RUNNING"), options, heard)
    assert "the job was told to stop, and may go on (it is still there after 0 s)" in caplog.text


def test_who_interrupts_a_cancellation_is_told_that_it_was_asked_for(project, caplog):
    class Stopping(Result):
        def cancel(self):
            pass

        @property
        def state(self):
            raise cli.Interrupted(signal.SIGINT)

        @state.setter
        def state(self, value):
            pass

    caplog.set_level("INFO")
    with pytest.raises(cli.Interrupted):
        dataflow.wait(Stopping(KeyboardInterrupt()), prepared(), heard)
    assert "cancels the job, and waits until its workers have stopped" in caplog.text
    assert "the job was told to stop, and may go on (interrupted once more); see to it" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataflowRuntimeException("failed:\nbecause", Result()), "the job failed on Dataflow: because; its console"),
        (DataflowRuntimeException("failed:\nNone", Result()), "the job failed on Dataflow: it does not say why; its"),
        (
            DataflowJobAlreadyExistsError("There is already active job named x with id: y. If you want to submit"),
            "a job writes there already: There is already active job named x with id: y. Wait for it, or cancel it$",
        ),
        (DataflowRuntimeException("x", Result(state="CANCELLED")), "the job was cancelled; give the command again"),
        (Forbidden("no quota\nfor it"), "Dataflow cannot be given the job, or be asked about it: 403 no quota for it$"),
        (TooManyRequests("wait"), "Dataflow cannot be given the job, or be asked about it: 429 wait; try again$"),
        (RetryError("out of time", None), "Dataflow cannot be given the job, .*: out of time.*; try again$"),
        (OSError("Could not upload"), "Dataflow cannot be given the job, .*: Could not upload; try again$"),
        (KeyError("a bug"), "None$"),
    ],
)
def test_errors_on_the_way_are_one_line(error, said):
    assert re.match(said, str(dataflow.explain(error)))
