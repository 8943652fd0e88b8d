"""A job on Dataflow: what is chosen where nothing is said, a look at what would make it fail, and what it will cost.

All of it before the job is submitted. Options that are given are left as they are.
"""

import datetime
import math
import platform
import re
from pathlib import Path

from apache_beam import version as beam_version
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)

from beam_jobs import gcs
from cloud import checks
from cloud.api import Api
from pipeline.errors import UsageError, UserError

RUNNER = "DataflowRunner"
_MACHINE = "e2-standard-4"  # to be had everywhere; a worker needs some 0.3 GB for each of its threads
_THREADS = 2  # of each process, of which a worker has one for each core: one reads or writes while one computes
_MOST_WORKERS = 50
_BEAM_IMAGE = re.compile(r"(?:.*/)?beam_python(\d+\.\d+)_sdk:([\w.]+)")
_USER_PERMISSIONS = {
    "dataflow.jobs.create": "roles/dataflow.developer",
    "dataflow.jobs.get": "roles/dataflow.developer",
}
_WORKER_ROLES = ("roles/dataflow.worker", "roles/editor", "roles/owner")


def is_named(options: PipelineOptions) -> bool:
    """Whether a job is to run on Dataflow."""
    return options.view_as(StandardOptions).runner == RUNNER


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
        UserError: a bucket in another region, a role that is missing, or an image of other versions.
    """
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    if cloud.template_location and needs_image:
        raise UsageError(f"--template_location={cloud.template_location}: '{job}' has no template; leave it out")
    for path in (*paths, output):
        if not gcs.is_path(path):
            raise UsageError(f"{path} cannot be reached from Dataflow; copy it to a bucket, and name it as gs://...")
    api = Api()
    cloud.project = cloud.project or api.project
    if not cloud.project:
        raise UsageError("--project is missing: the ID of the Google Cloud project that pays for the job")
    buckets = {gcs.split(path)[0]: path for path in (*paths, output)}
    found = {name: checks.find_bucket(api, name) for name in buckets}
    own = found[gcs.split(output)[0]]
    cloud.region = cloud.region or (own and own.region)
    if not cloud.region:
        raise UsageError(f"--region is missing: where the job is to run; near {output}, which lies in no single region")
    _choose(options, job, output, units, needs_image)
    for bucket in filter(None, found.values()):
        checks.check_region(bucket, cloud.region)
    checks.check_objects(api, gcs.split(output)[0])
    if not cloud.template_location:  # it is then Dataflow's launcher who asks, and the job is there already
        checks.check_permissions(api, cloud.project, _USER_PERMISSIONS)
        account = cloud.service_account_email or checks.default_account(api, cloud.project)
        checks.check_account(api, cloud.project, account, _WORKER_ROLES)
    if worker.sdk_container_image:
        _check_image(api, worker.sdk_container_image)


def _choose(options: PipelineOptions, job: str, output: str, units: int, needs_image: bool) -> None:
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    setup, debug = options.view_as(SetupOptions), options.view_as(DebugOptions)
    cloud.temp_location = cloud.temp_location or f"{output}/job/dataflow"
    cloud.staging_location = cloud.staging_location or cloud.temp_location
    cloud.job_name = cloud.job_name or f"koalarization-{job}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    version = re.sub(r"[^a-z0-9_-]", "_", beam_version.__version__)
    cloud.labels = [*(cloud.labels or []), "application=koalarization", f"job={job}", f"beam={version}"]
    worker.machine_type = worker.machine_type or _MACHINE
    debug.number_of_worker_harness_threads = debug.number_of_worker_harness_threads or _THREADS
    cores = machine_cores(worker.machine_type) or 1
    worker.max_num_workers = worker.max_num_workers or min(_MOST_WORKERS, math.ceil(units / cores))
    if worker.sdk_container_image or setup.setup_file:
        return
    if needs_image:
        raise UsageError(
            f"--sdk_container_image is missing: the workers of '{job}' need TensorFlow; name an image that has this "
            "package with its extras worker, gcp and trainer"
        )
    setup_file = Path(__file__).resolve().parent.parent / "setup.py"
    if not setup_file.is_file():
        raise UsageError("--sdk_container_image is missing: the workers need this package; build an image, and name it")
    setup.setup_file = str(setup_file)


def machine_cores(machine: str) -> int | None:
    """The cores of a type of machine, by its name: 4 of e2-standard-4; None, where that does not say."""
    named = re.search(r"-(\d+)$", machine)
    return int(named[1]) if named else None


def _check_image(api: Api, image: str) -> None:
    beam, python = beam_version.__version__, ".".join(platform.python_version_tuple()[:2])
    found_beam: str | None
    found_python: str | None
    if named := _BEAM_IMAGE.fullmatch(image):
        found_python, found_beam = named.groups()
    else:
        labels = checks.image_labels(api, image)
        found_python, found_beam = labels.get(checks.PYTHON_LABEL), labels.get(checks.BEAM_LABEL)
        if not found_python or not found_beam:
            raise UserError(
                f"image {image} does not say which Beam and Python it holds; build it from docker/beam.Dockerfile, or "
                f"give it the labels {checks.BEAM_LABEL} and {checks.PYTHON_LABEL}"
            )
    if (found_beam, found_python) != (beam, python):
        raise UserError(
            f"image {image} has Beam {found_beam} and Python {found_python}, this program has Beam {beam} and Python "
            f"{python}; take an image that was built from the same commit, or this program's versions"
        )


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
