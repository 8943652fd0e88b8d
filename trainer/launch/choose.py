"""What a training job on Google Cloud is to be: what is chosen where nothing is said, and a look at what would fail."""

import dataclasses
import datetime
import logging
from collections.abc import Sequence

import tensorflow as tf
from ml_collections import ConfigDict

from cloud import checks, quotas
from cloud.api import Api
from cloud.compute import Compute, MachineType, region_of
from pipeline import gs, manifest
from pipeline.errors import UsageError, UserError
from trainer import loop, replicas, workdir
from trainer.checkpoints import Checkpoints
from trainer.launch.job import GRACE, Job
from trainer.models import extractor

_LOGGER = logging.getLogger(__name__)
_PERMISSIONS = dict.fromkeys(
    (
        "compute.instanceTemplates.create", "compute.instanceGroupManagers.create",
        "compute.instanceGroupManagers.update", "compute.instanceGroupManagers.delete", "compute.instances.create",
    ),
    "roles/compute.instanceAdmin.v1",
)  # fmt: skip
_RECIPE = "docker/trainer.Dockerfile"
_ABOVE = ("roles/editor", "roles/owner")
# The least that works, and what has it, too: without these, machines could not delete themselves, or say anything.
_ACCOUNT_ROLES = (
    ("roles/compute.instanceAdmin.v1", "roles/compute.admin", *_ABOVE),
    ("roles/logging.logWriter", "roles/logging.admin", *_ABOVE),
)


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a command line says of machines.

    Attributes:
        zone: of the machines, or None for one that has them, near the run.
        machine: their type.
        count: how many.
        spot: cheap ones, which may be taken away.
        max_hours: after which they are deleted.
        image: of the container, or None for the project's own.
        account: the service account as whom they run, or None for Compute Engine's own.
        subnetwork: its name, or None for the default network.
        public_ips: whether they have addresses of the internet.
    """

    zone: str | None
    machine: str
    count: int
    spot: bool
    max_hours: float
    image: str | None
    account: str | None
    subnetwork: str | None
    public_ips: bool


def choose(api: Api, compute: Compute, wishes: Wishes, config: ConfigDict, data: str, work_dir: str) -> Job:
    """Chooses what is not said, and looks for what would make the job fail.

    Args:
        api: who asks.
        compute: Compute Engine, in the project that pays.
        wishes: what is said.
        config: as it will be.
        data: a dataset on Cloud Storage.
        work_dir: the directory of the run there.

    Raises:
        UsageError: something is missing or cannot be.
        UserError: what would make the job fail.
    """
    project = compute.project
    _check_run(config, data, work_dir)
    machines = _find_machines(compute, wishes.machine)
    zone, *others = _choose_zones(api, machines, wishes, data, work_dir)
    region, machine = region_of(zone), machines[zone]
    _check_config(config, wishes.count, max(1, machine.gpus))
    checks.check_permissions(api, project, _PERMISSIONS)
    account = wishes.account or checks.default_account(api, project)
    checks.check_account(api, account)
    roles = checks.find_roles(api, project, account)
    for each in _ACCOUNT_ROLES:
        roles.require(each)
    read = [path for path in (data, extractor.find_file(config.model)) if path]
    checks.check_account_objects(api, project, roles, [gs.split(work_dir)[0]], [gs.split(path)[0] for path in read])
    roles.warn_without(checks.IMAGE_ROLES)  # which it may have on the repository alone
    image = wishes.image or f"{region}-docker.pkg.dev/{project}/koalarization/trainer:main"
    if machine.gpus:
        hours = wishes.max_hours + GRACE.total_seconds() / 3600
        quotas.check_gpus(compute, region, machine.gpu_type, wishes.count * machine.gpus, wishes.spot, hours)
    return Job(
        workdir=work_dir, project=project, zone=zone, others=tuple(others), machine=machine,
        count=wishes.count, spot=wishes.spot,
        end=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=wishes.max_hours),
        image=_pin_image(api, image), account=account, subnetwork=wishes.subnetwork,
        public_ips=wishes.public_ips, config=workdir.to_json(config),
        arguments=(f"--data={data}", f"--workdir={work_dir}"),
    )  # fmt: skip


def _check_run(config: ConfigDict, data: str, work_dir: str) -> None:
    if (weights := extractor.find_file(config.model)) is not None:
        if not gs.has_object(weights):
            raise UsageError(
                f"model.feature_weights is '{weights}', which the machines cannot reach; copy it to a bucket, and name "
                "it as gs://BUCKET/FILE"
            )
        extractor.check_weights(weights)
    dataset = manifest.read(data)
    loop.check_features(config, dataset, data)
    if Checkpoints(work_dir).steps():
        workdir.check(work_dir, config, dataset)


def _check_config(config: ConfigDict, machines: int, replicas_each: int) -> None:
    replicas.check_strategy(config.strategy, machines if machines > 1 else 0)
    replicas.check_batch(config.batch_size, machines * replicas_each)
    loop.check(config, machines * replicas_each)


def _find_machines(compute: Compute, name: str) -> dict[str, MachineType]:
    """A type of machine, by zone."""
    if found := compute.machine_types(name):
        return found
    raise UsageError(f"--machine={name} is no type of machine; 'gcloud compute machine-types list' names them")


def _choose_zones(api: Api, found: dict[str, MachineType], wishes: Wishes, data: str, work_dir: str) -> list[str]:
    """Looks for zones near the data that have a machine: the one to take, then those to try in its place."""
    buckets = [checks.find_bucket(api, name) for name in sorted({gs.split(path)[0] for path in (data, work_dir)})]
    near = sorted(zone for zone in found if all(bucket is None or bucket.is_in(region_of(zone)) for bucket in buckets))
    if wishes.zone is None:
        if not near:
            places = ", ".join(f"gs://{each.name} in {each.location.lower()}" for each in buckets if each)
            raise UserError(f"no zone near the data ({places}) has {wishes.machine}; it is in {_some(found)}")
        _LOGGER.info("zone %s was chosen of those near the data that have %s: %s", near[0], wishes.machine, _some(near))
    elif wishes.zone not in found:
        raise UsageError(f"--zone={wishes.zone} has no {wishes.machine}; choose one of {_some(near or found)}")
    else:
        for bucket in buckets:
            if bucket:
                checks.check_region(bucket, region_of(wishes.zone))
    zone = wishes.zone or near[0]
    # The others in a circle from it on, so that who tries one after the other comes to all.
    return [zone, *sorted((each for each in near if each != zone), key=lambda each: (each < zone, each))]


def _some(zones: Sequence[str] | dict[str, MachineType]) -> str:
    names = sorted(zones)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} others" if len(names) > 8 else "")


def _pin_image(api: Api, image: str) -> str:
    """The name of an image that will not change while machines come and go."""
    found = checks.find_image(api, image, _RECIPE)
    if found is None:  # others would be handed the token of the machines
        raise UserError(f"image {image} is not in Artifact Registry, where machines can fetch it; push it there")
    has = found.labels.get(checks.TENSORFLOW_LABEL)
    if not has:
        raise UserError(f"image {image} is none to train with; build one from {_RECIPE}")
    if has != tf.__version__:
        raise UserError(
            f"image {image} has TensorFlow {has}, this program has {tf.__version__}; take an image that was built from "
            "the same commit, or this program's version"
        )
    return found.pinned
