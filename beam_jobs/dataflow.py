"""A job on Dataflow: what is chosen where nothing is said, a look at what would make it fail, and waiting for its end.

Options that are given are left as they are.
"""

import contextlib
import hashlib
import logging
import math
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from apache_beam import version as beam_version
from apache_beam.internal.gcp.auth import get_service_credentials
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner, DataflowRuntimeException
from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient, DataflowJobAlreadyExistsError
from apache_beam.runners.runner import PipelineResult, PipelineState
from google.api_core.exceptions import GoogleAPICallError, GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.protobuf.json_format import ParseError

from cloud import checks
from cloud.api import MAY_PASS, Api
from pipeline import gs
from pipeline.cli import Terminated
from pipeline.errors import UsageError, UserError, one_line
from pipeline.stopping import StopRequest, stop_request

_LOGGER = logging.getLogger(__name__)
_MACHINE = "e2-standard-4"  # to be had everywhere; a worker needs some 0.3 GB for each of its threads
_THREADS = 2  # of each process, of which a worker has one for each core: one reads or writes while one computes
_MOST_WORKERS = 50
_RECIPE = "docker/beam.Dockerfile"
_BEAM_IMAGE = re.compile(r"(?:.*/)?beam_python(\d+\.\d+)_sdk:([\w.]+)")
_SERVICES = ("compute.googleapis.com", "dataflow.googleapis.com", "storage.googleapis.com")
_USER_PERMISSIONS = dict.fromkeys(
    [
        f"dataflow.{each}"
        for each in ("jobs.cancel", "jobs.create", "jobs.get", "jobs.list", "messages.list", "metrics.get")
    ],
    "roles/dataflow.developer",
)
_JOBS = "https://dataflow.googleapis.com/v1b3/projects"
_WORKER_ROLES = ("roles/dataflow.worker", "roles/editor", "roles/owner")
_LOOKS, _PAUSE_SECONDS = 20, 30.0  # for a job of which the service does not tell
_STOP_SECONDS = 300.0  # that workers of a job that was cancelled may take to stop


def prepare(
    options: PipelineOptions, job: str, output: str, paths: list[str], units: int, needs_image: bool = False
) -> None:
    """Chooses what is not said, and looks for what would make the job fail.

    Args:
        options: of the job; they are changed.
        job: what it does, in a word.
        output: its directory, on Cloud Storage.
        paths: what it reads.
        units: into how many pieces its work is divided: more cores than that would have nothing to do.
        needs_image: its workers need more than can be installed when they start.

    Raises:
        UsageError: something is missing or cannot be.
        UserError: a bucket in another region, a role that is missing, an image of other versions, or a job that writes
            there already.
    """
    cloud = options.view_as(GoogleCloudOptions)
    _check_paths(options, job, output, paths, needs_image)
    credentials = get_service_credentials(options)  # of an account that is impersonated, if one is named
    api = Api(credentials and credentials.get_google_auth_credentials())
    cloud.project = cloud.project or api.project
    if not cloud.project:
        raise UsageError("--project is missing: the ID of the Google Cloud project that pays for the job")
    cloud.temp_location = cloud.temp_location or f"{output}/job/dataflow"
    cloud.staging_location = cloud.staging_location or cloud.temp_location
    checks.check_services(api, cloud.project, _SERVICES)
    _check_buckets(api, cloud, output, paths)
    _choose(options, job, output, units)
    if not cloud.template_location:  # it is then Dataflow's launcher who asks, and the job is there already
        checks.check_permissions(api, cloud.project, _USER_PERMISSIONS)
        account = cloud.service_account_email or checks.default_account(api, cloud.project)
        checks.check_account(api, account)
        roles = checks.find_roles(api, cloud.project, account)
        roles.require(_WORKER_ROLES)
        if _has_package_image(options):
            roles.warn_without(checks.IMAGE_ROLES)  # which it may have on the repository alone
        checks.check_account_objects(
            api, cloud.project, roles, _written(cloud, output), {gs.split(path)[0] for path in paths}
        )
        _refuse_second(api, cloud)
    _bring_code(api, options, job, needs_image)
    if errors := PipelineOptionsValidator(options, DataflowRunner()).validate():
        raise UsageError(" ".join(errors[0].split()))


def _check_paths(options: PipelineOptions, job: str, output: str, paths: list[str], needs_image: bool) -> None:
    cloud = options.view_as(GoogleCloudOptions)
    if cloud.template_location and needs_image:
        raise UsageError(f"--template_location={cloud.template_location}: '{job}' has no template; leave it out")
    if cloud.job_name and not cloud.template_location:
        raise UsageError(
            f"--job_name={cloud.job_name} cannot be chosen: a job is named by its output, so that there are no two of "
            "them; leave it out, and tell jobs apart by --labels=NAME=VALUE"
        )
    for path in (*paths, output):
        if not gs.is_path(path):
            raise UsageError(f"{path} cannot be reached from Dataflow; copy it to a bucket, and name it as gs://...")
    for name in ("temp_location", "staging_location"):
        if path := getattr(cloud, name):
            gs.check_directory(name, path)


def _written(cloud: GoogleCloudOptions, output: str) -> list[str]:
    """The buckets that a job writes to."""
    return sorted({gs.split(path)[0] for path in (output, cloud.temp_location, cloud.staging_location)})


def _check_buckets(api: Api, cloud: GoogleCloudOptions, output: str, paths: list[str]) -> None:
    """Looks at all buckets of a job, and takes the region of its output's, if none is said."""
    written = _written(cloud, output)
    read = {gs.split(path)[0] for path in paths}
    buckets = {name: found for name in sorted({*written, *read}) if (found := checks.find_bucket(api, name))}
    for name in written:
        checks.check_objects(api, name)
    own = buckets.get(gs.split(output)[0])
    cloud.region = cloud.region or (own and own.region)
    if not cloud.region:
        raise UsageError(f"--region is missing: where the job is to run; as near to {output} as there is one")
    for bucket in buckets.values():
        checks.check_region(bucket, cloud.region)


def _choose(options: PipelineOptions, job: str, output: str, units: int) -> None:
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    debug = options.view_as(DebugOptions)
    # Whoever asks for it, there are no two jobs of one name at a time, and so none that writes where another does.
    place = hashlib.blake2b(output.encode(), digest_size=5).hexdigest()
    cloud.job_name = cloud.job_name or f"koalarization-{place}"
    version = re.sub(r"[^a-z0-9_-]", "_", beam_version.__version__)
    cloud.labels = ["application=koalarization", f"job={job}", f"beam={version}", *(cloud.labels or [])]
    worker.machine_type = worker.machine_type or _MACHINE
    debug.number_of_worker_harness_threads = debug.number_of_worker_harness_threads or _THREADS
    if worker.max_num_workers:
        return
    cores = machine_cores(worker.machine_type)
    if cores is None:
        raise UsageError(
            f"--max_num_workers is missing: how many cores {worker.machine_type} has its name does not say"
        )
    worker.max_num_workers = max(min(_MOST_WORKERS, math.ceil(units / cores)), worker.num_workers or 0)


def _refuse_second(api: Api, cloud: GoogleCloudOptions) -> None:
    """Looks for a job of the same name: Dataflow itself refuses one, but only in its region, and after all is staged.

    Raises:
        UserError: there is one.
    """
    request: dict[str, str] | None = {"filter": "ACTIVE"}
    while request:
        found = api.get(f"{_JOBS}/{cloud.project}/jobs:aggregated", **request)
        for job in found.get("jobs", ()):
            if job["name"] == cloud.job_name:
                raise UserError(
                    f"a job writes there already; wait for it, or cancel it: "
                    f"{_console(job['id'], job['location'], cloud.project)}"
                )
        for place in found.get("failedLocation", ()):
            _LOGGER.warning("WARNING: whether a job writes there already cannot be seen in %s", place["name"])
        token = found.get("nextPageToken")
        request = {"filter": "ACTIVE", "pageToken": token} if token else None


def _console(job: str, region: str, project: str) -> str:
    return f"https://console.cloud.google.com/dataflow/jobs/{region}/{job}?project={project}"


def _has_package_image(options: PipelineOptions) -> bool:
    """Whether the workers have an image that holds this package."""
    image = options.view_as(WorkerOptions).sdk_container_image
    return image is not None and not _BEAM_IMAGE.fullmatch(image)


def _bring_code(api: Api, options: PipelineOptions, job: str, needs_image: bool) -> None:
    """Looks at the image of the workers, or has this package staged for Beam's."""
    worker, setup = options.view_as(WorkerOptions), options.view_as(SetupOptions)
    if worker.sdk_container_image:
        _check_image(api, worker.sdk_container_image)
    if needs_image and not _has_package_image(options):
        raise UsageError(
            f"--sdk_container_image is missing: the workers of '{job}' need TensorFlow; build docker/trainer.Dockerfile"
        )
    if _has_package_image(options):
        return
    if worker.use_public_ips is False:
        _LOGGER.warning(
            "WARNING: workers without public addresses can install nothing, unless their network has a Cloud NAT; "
            "build %s, and name it by --sdk_container_image", _RECIPE,
        )  # fmt: skip
    if setup.setup_file:
        return
    setup_file = Path(__file__).resolve().parent.parent / "setup.py"
    if options.view_as(GoogleCloudOptions).template_location or not setup_file.is_file():
        raise UsageError(f"--sdk_container_image is missing: the workers need this package; build {_RECIPE}")
    setup.setup_file = str(setup_file)


def machine_cores(machine: str) -> int | None:
    """The cores of a type of machine, by its name: 4 of e2-standard-4; None, where that does not say."""
    custom = re.search(r"(?:^|-)custom-(\d+)-\d+(?:-ext)?$", machine)
    named = custom or re.fullmatch(r"[a-z0-9-]+-(\d+)(?:-[a-z]+)?", machine)  # of a2-highgpu-1g it is the GPUs
    return int(named[1]) if named else None


def _check_image(api: Api, image: str) -> None:
    beam, python = beam_version.__version__, ".".join(platform.python_version_tuple()[:2])
    found_beam: str | None
    found_python: str | None
    if named := _BEAM_IMAGE.fullmatch(image):
        found_python, found_beam = named.groups()
    else:
        found = checks.find_image(api, image, _RECIPE)
        if found is None:
            _LOGGER.warning(
                "WARNING: which versions image %s has could not be looked up: not in Artifact Registry", image
            )
            return
        found_python, found_beam = found.labels.get(checks.PYTHON_LABEL), found.labels.get(checks.BEAM_LABEL)
        if not found_python or not found_beam:
            raise UserError(
                f"image {image} does not say which Beam and Python it holds; build it from {_RECIPE}, or "
                f"give it the labels {checks.BEAM_LABEL} and {checks.PYTHON_LABEL}"
            )
    if (found_beam, found_python) != (beam, python):
        raise UserError(
            f"image {image} has Beam {found_beam} and Python {found_python}, this program has Beam {beam} and Python "
            f"{python}; take an image that was built from the same commit, or this program's versions"
        )


@contextlib.contextmanager
def submitting(options: PipelineOptions) -> Iterator[Callable[[], None]]:
    """Has signals that tell this process to stop wait from when Dataflow is asked to make a job until it is known.

    Yields:
        What lets them through, or raises for one that came; `wait` calls it when it can cancel the job.
    """
    cloud = options.view_as(GoogleCloudOptions)
    submit = DataflowApplicationClient.submit_job_description
    request: StopRequest | None = None

    def hold_and_submit(client: DataflowApplicationClient, job: object) -> object:
        nonlocal request
        request = held.enter_context(stop_request())
        try:
            return submit(client, job)
        except (KeyboardInterrupt, Terminated):  # told so once more
            _LOGGER.warning(
                "WARNING: job %s may have been submitted; it goes on then, and costs; look for it in the console: "
                "https://console.cloud.google.com/dataflow/jobs?project=%s", cloud.job_name, cloud.project,
            )  # fmt: skip
            raise

    def let_through() -> None:
        held.close()
        if request is not None and request.is_made:
            request.obey()

    with contextlib.ExitStack() as held:
        held.callback(setattr, DataflowApplicationClient, "submit_job_description", submit)
        DataflowApplicationClient.submit_job_description = hold_and_submit
        yield let_through


def wait(result: PipelineResult, options: PipelineOptions, let_through: Callable[[], None]) -> str:
    """Says where a job is to be seen, and waits for its end; who breaks the wait off cancels the job.

    Args:
        result: of the job.
        options: of the job.
        let_through: from `submitting`.

    Returns:
        The state in which it ended.

    Raises:
        UserError: the service tells nothing of it any more.
    """
    cloud = options.view_as(GoogleCloudOptions)
    console = _console(result.job_id(), cloud.region, cloud.project)
    _LOGGER.info("submitted: %s; Ctrl-C cancels it", console)
    try:
        let_through()
        for _ in range(_LOOKS):
            try:
                return result.wait_until_finish()
            except AssertionError:  # of Beam, whose thread that asks the service has died
                time.sleep(_PAUSE_SECONDS)
    except (KeyboardInterrupt, Terminated):
        _cancel(result, console)
        raise
    raise UserError(f"the job was lost sight of, and goes on: {console}; give the command again once it has ended")


def _cancel(result: PipelineResult, console: str) -> None:
    """Cancels a job and waits until its workers have stopped: until then they write."""
    _LOGGER.info("cancels the job, and waits until its workers have stopped: until then they write")
    is_told = False
    try:
        result.cancel()
        is_told = True
        end = time.monotonic() + _STOP_SECONDS
        while not PipelineState.is_terminal(result.state):
            if time.monotonic() > end:
                raise TimeoutError(f"it is still there after {_STOP_SECONDS:.0f} s")
            time.sleep(1)
    except BaseException as error:
        is_ours = not isinstance(error, Exception)
        why = "interrupted once more" if is_ours else one_line(error)
        is_left = "was told to stop, and may go on" if is_told else "could not be cancelled, goes on, and costs"
        _LOGGER.warning("WARNING: the job %s (%s); see to it in its console: %s", is_left, why, console)
        if is_ours:
            raise


def explain(error: Exception) -> UserError | None:
    """An error of Beam's or Google's on the way to Dataflow, or of a job there, in one line; None for any other."""
    if isinstance(error, DataflowRuntimeException):
        if error.result.state == PipelineState.CANCELLED:
            return UserError("the job was cancelled; give the command again to go on")
        said = str(error).strip().splitlines()[-1]
        why = "it does not say why" if said == "None" else said
        return UserError(f"the job failed on Dataflow: {why}; its console, named above, has the log")
    if isinstance(error, DataflowJobAlreadyExistsError):
        return UserError(
            f"a job writes there already: {one_line(error).partition(' If you want')[0]} Wait for it, or cancel it"
        )
    if isinstance(error, (GoogleAPIError, GoogleAuthError, OSError, RuntimeError, ParseError)):
        is_refused = isinstance(error, GoogleAPICallError) and error.code not in MAY_PASS
        again = "" if is_refused else "; try again"
        return UserError(f"Dataflow cannot be given the job, or be asked about it: {one_line(error)}{again}")
    return None


def describe(options: PipelineOptions) -> str:
    """What was chosen, for a person: where, what machines, with what on them."""
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    threads = options.view_as(DebugOptions).number_of_worker_harness_threads
    cores = machine_cores(worker.machine_type)
    brings = worker.sdk_container_image or f"Beam's image, and {options.view_as(SetupOptions).setup_file}"
    return "\n".join(
        [
            f"dataflow    {cloud.job_name} in {cloud.region}, paid for by {cloud.project}",
            f"workers     up to {worker.max_num_workers} of {worker.machine_type}"
            + (f" ({cores} cores each)" if cores else "")
            + f", {threads} threads a process",
            f"image       {brings}",
            f"staged in   {cloud.staging_location}",
        ]
    )


def cores(options: PipelineOptions) -> int:
    """The cores of all workers of a prepared job together, as far as their type says."""
    worker = options.view_as(WorkerOptions)
    return worker.max_num_workers * (machine_cores(worker.machine_type) or 1)
