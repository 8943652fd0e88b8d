"""A training job on machines of Google Cloud, and the requests that Compute Engine makes it of."""

import dataclasses
import datetime
import hashlib
import json
from importlib import resources
from typing import Any

from google.cloud import compute_v1

from cloud.compute import MachineType, region_of

PREFIX = "koalarization-train-"
GRACE = datetime.timedelta(minutes=15)  # after which machines that should have gone by themselves are deleted
_URL = "https://compute.googleapis.com/compute/v1/projects"
_SYSTEM = "projects/cos-cloud/global/images/family/cos-stable"  # brings Docker, and installs NVIDIA's driver
_DISK_GB = 100  # of which the image, unpacked twice while it is fetched, takes 20
_CONFIG = """import json

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(json.loads({!r}))
"""
# What is told to stop saves its state; a machine that is taken away has 30 seconds. Docker may leave containers alone.
_SHUTDOWN = "#!/bin/bash\ndocker stop --time=25 trainer\n"
# The least that works: datasets and runs, and the image; logs; and deleting the group.
_SCOPES = tuple(
    f"https://www.googleapis.com/auth/{each}" for each in ("devstorage.read_write", "logging.write", "compute")
)


def group_name(workdir: str) -> str:
    """The name of the machines that train in a directory: there are none twice, whoever asks for them."""
    return PREFIX + hashlib.blake2b(workdir.rstrip("/").encode(), digest_size=5).hexdigest()


def end_of(template: str) -> datetime.datetime:
    """When machines that are made from a template are to have ended, by its name."""
    return datetime.datetime.fromtimestamp(int(template.rpartition("-")[2]) / 1e6, datetime.timezone.utc)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of Compute Engine.

    Attributes:
        workdir: the directory of the run.
        project: that pays.
        zone: of the machines.
        others: zones near the data that have such machines, too, in the order in which to try them.
        machine: their type.
        count: how many.
        spot: whether they are cheap, and may be taken away at any time.
        end: when they are deleted at the latest, with a time zone.
        image: of the container.
        account: the service account as whom they run.
        subnetwork: its name in the region of the machines, or its path; None for the default network.
        public_ips: whether they can be reached from, and reach, the internet.
        config: the configuration, as JSON.
        arguments: of `trainer.train`, but for the configuration.
    """

    workdir: str
    project: str
    zone: str
    others: tuple[str, ...]
    machine: MachineType
    count: int
    spot: bool
    end: datetime.datetime
    image: str
    account: str
    subnetwork: str | None
    public_ips: bool
    config: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the group."""
        return group_name(self.workdir)

    @property
    def template(self) -> str:
        """The name of the template, which no other launch has, and which says until which microsecond it is of use."""
        return f"{self.name}-{int(self.end.timestamp() * 1e6)}"

    @property
    def region(self) -> str:
        """Of the zone."""
        return region_of(self.zone)


def describe(job: Job) -> str:
    """What will cost, for a person."""
    hours = (job.end + GRACE - datetime.datetime.now(datetime.timezone.utc)).total_seconds() / 3600
    gpus = f", {job.machine.gpus} {job.machine.gpu_type} each" if job.machine.gpus else ", without a GPU"
    model = "spot: cheaper, and made anew whenever they are taken away" if job.spot else "standard; --spot is cheaper"
    return "\n".join(
        [
            f"machines    {job.count} of {job.machine.name}{gpus}, in {job.zone}; {model}",
            f"costs       at most {job.count * hours:.1f} machine hours, paid for by {job.project}: deleted when the "
            f"run is finished, or {job.end:%Y-%m-%d %H:%M} UTC has passed",
            f"image       {job.image}",
            f"runs as     {job.account}",
            f"name        {job.name}",
        ]
    )


def requests(job: Job) -> list[Any]:
    """All that is asked of Compute Engine, in its order: a template, a group without machines, and its machines.

    The group makes machines anew that were taken away, under the same names.
    """
    return [
        compute_v1.InsertInstanceTemplateRequest(project=job.project, instance_template_resource=_template(job)),
        compute_v1.InsertInstanceGroupManagerRequest(
            project=job.project, zone=job.zone, instance_group_manager_resource=_group(job)
        ),
        compute_v1.CreateInstancesInstanceGroupManagerRequest(
            project=job.project,
            zone=job.zone,
            instance_group_manager=job.name,
            instance_group_managers_create_instances_request_resource=(
                compute_v1.InstanceGroupManagersCreateInstancesRequest(
                    instances=[compute_v1.PerInstanceConfig(name=f"{job.name}-{index}") for index in range(job.count)]
                )
            ),
        ),
    ]


def show(job: Job) -> str:
    """The requests as they are sent."""
    template, group, machines = requests(job)
    zone = f"{_URL}/{job.project}/zones/{job.zone}/instanceGroupManagers"
    parts = (
        (f"{_URL}/{job.project}/global/instanceTemplates", template.instance_template_resource),
        (zone, group.instance_group_manager_resource),
        (
            f"{zone}/{job.name}/createInstances",
            machines.instance_group_managers_create_instances_request_resource,
        ),
    )
    return "\n".join(f"POST {url}\n{json.dumps(_to_json(message), indent=1)}" for url, message in parts)


def _to_json(message: Any) -> dict[str, Any]:
    return json.loads(type(message).to_json(message, always_print_fields_with_no_presence=False))


def _template(job: Job) -> compute_v1.InstanceTemplate:
    labels = {"application": "koalarization", "job": "train"}
    metadata = {
        "startup-script": resources.files("trainer.launch").joinpath("startup.sh").read_text(),
        "shutdown-script": _SHUTDOWN,
        "koalarization-arguments": "\n".join(job.arguments),
        "koalarization-config": _CONFIG.format(job.config),
        "koalarization-count": str(job.count),
        "koalarization-end": str(int(job.end.timestamp())),
        "koalarization-gpus": str(job.machine.gpus),
        "koalarization-image": job.image,
    }
    properties = compute_v1.InstanceProperties(
        description=job.workdir,
        machine_type=job.machine.name,
        labels=labels,
        disks=[
            compute_v1.AttachedDisk(
                auto_delete=True,
                boot=True,
                initialize_params=compute_v1.AttachedDiskInitializeParams(
                    source_image=_SYSTEM, disk_size_gb=_DISK_GB, disk_type="pd-balanced", labels=labels
                ),
            )
        ],
        network_interfaces=[_network(job)],
        service_accounts=[compute_v1.ServiceAccount(email=job.account, scopes=_SCOPES)],
        scheduling=_scheduling(job),
        metadata=compute_v1.Metadata(items=[compute_v1.Items(key=key, value=metadata[key]) for key in metadata]),
    )
    return compute_v1.InstanceTemplate(name=job.template, description=job.workdir, properties=properties)


def _network(job: Job) -> compute_v1.NetworkInterface:
    network = compute_v1.NetworkInterface(nic_type="GVNIC")
    if job.subnetwork:
        is_path = "/" in job.subnetwork
        network.subnetwork = job.subnetwork if is_path else f"regions/{job.region}/subnetworks/{job.subnetwork}"
    else:
        network.network = "global/networks/default"
    if job.public_ips:
        network.access_configs = [compute_v1.AccessConfig(name="External NAT", type_="ONE_TO_ONE_NAT")]
    return network


def _scheduling(job: Job) -> compute_v1.Scheduling:
    """Machines with GPUs cannot move: they are stopped for maintenance and, unless they are spot, started again.

    https://cloud.google.com/compute/docs/instances/host-maintenance-overview
    """
    return compute_v1.Scheduling(
        provisioning_model="SPOT" if job.spot else "STANDARD",
        automatic_restart=not job.spot,
        on_host_maintenance="TERMINATE" if job.spot or job.machine.gpus else None,  # which others may not say
        instance_termination_action="DELETE",
        termination_time=(job.end + GRACE).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _group(job: Job) -> compute_v1.InstanceGroupManager:
    return compute_v1.InstanceGroupManager(
        name=job.name,
        description=job.workdir,
        base_instance_name=job.name,
        instance_template=f"projects/{job.project}/global/instanceTemplates/{job.template}",
        target_size=0,
        instance_lifecycle_policy=compute_v1.InstanceGroupManagerInstanceLifecyclePolicy(
            default_action_on_failure="REPAIR"
        ),
    )
