"""The command that makes machines for training, with Google's APIs in doubles and machines that are but names."""

import copy
import datetime
import json
import re
import time

import pytest
import tensorflow as tf

from cloud import api, compute
from cloud.compute import Machine
from pipeline import cli, config
from pipeline.errors import UserError
from tests import cloud_storage
from tests.google_apis import Refusal
from tests.google_compute import IMAGE, ZONES, Compute, Logging, prepare
from tests.google_project import ACCOUNT, PROJECT, Project
from tests.programs import error_of
from trainer import workdir
from trainer.launch import job, machines
from trainer.launch.__main__ import main

RUN = "gs://bucket/run"
NAME = job.group_name(RUN)
ZONE = "us-central1-a"


@pytest.fixture(scope="module")
def running(tmp_path_factory, compact_dataset):
    logging = Logging()

    def start(name, metadata, zone):
        if not logging.refusal:
            say(logging, name, f"machine {name[-1]} starts", log="koalarization")
        return name

    compute = Compute(start)
    project = Project(compute, logging)
    folder = tmp_path_factory.mktemp("cloud")
    with (
        cloud_storage.running(folder, "bucket", "far-away", "near", services=project.services) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for bucket in ("bucket", "far-away", "near"):
            blob = server.client().bucket(bucket).blob("data/dataset.json")
            blob.upload_from_filename(f"{compact_dataset.directory}/dataset.json")
        project.locations |= {"far-away": "EUROPE-WEST4", "near": "US-CENTRAL1"}
        project.compute, project.logging = compute, logging
        compute.late = 0  # which takes the client a second each time
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
        patch.setattr(machines, "_LOOK_SECONDS", 0.01)
        patch.setattr(machines, "_HEAR_SECONDS", 0.01)
        yield project


@pytest.fixture
def project(running):
    """A project in which all is as it should be, for a test to change."""
    before = copy.deepcopy(running.permissions), running.compute.quotas, running.compute.global_quotas
    before += (running.bucket_roles,)
    running.images.clear()
    prepare(running)
    for each in (running.compute.calls, running.compute.made, running.compute.deleted, running.logging.entries):
        each.clear()
    yield running
    running.permissions, running.compute.quotas, running.compute.global_quotas, running.bucket_roles = before
    running.disabled, running.own_bucket_roles = set(), {}
    running.compute.late = 0
    running.compute.errors, running.compute.refusals, running.compute.unreachable = [], {}, ()
    running.compute.stuck, running.compute.lapses = None, {}
    running.logging.refusal = running.logging.hidden = None
    running.compute.groups.clear()
    running.compute.templates.clear()
    assert running.refused() == []


def say(logging, machine, *texts, log="gcplogs-docker-driver"):
    for text in texts:
        body = {
            "logName": f"projects/{PROJECT}/logs/{log}", "resource": {"type": "gce_instance"},
            "entries": [{"jsonPayload": {"instance": {"name": machine}, "message": text}}],
        }  # fmt: skip
        logging._write({}, body)


def launched(*more):
    options = ["--config=configs/demo.py", "--data=gs://bucket/data", f"--workdir={RUN}", f"--project={PROJECT}"]
    return cli.run(main, ["launch", *options, "--config.batch_size=8", *more])


def requested(compute):
    """Bodies of what was asked to be made, by method."""
    return {method.removeprefix("compute."): body for method, _, body in compute.calls if body is not None}


def test_what_is_asked_of_compute_engine(project, capsys, tmp_path):
    project.compute.late = 1
    assert launched("--machine=a2-highgpu-8g", "--count=2", "--config.batch_size=32", "--max_hours=10") == 0
    template, group, created = requested(project.compute).values()
    properties = template["properties"]
    assert properties["machineType"] == "a2-highgpu-8g"
    assert properties["serviceAccounts"] == [
        {
            "email": ACCOUNT,
            "scopes": [f"https://www.googleapis.com/auth/{each}" for each in
                       ("devstorage.read_write", "logging.write", "compute")],
        }
    ]  # fmt: skip
    scheduling = dict(properties["scheduling"])
    end = datetime.datetime.strptime(scheduling.pop("terminationTime"), "%Y-%m-%dT%H:%M:%SZ")
    hours = (end - datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)).total_seconds() / 3600
    assert hours == pytest.approx(10.25, abs=0.02)
    assert scheduling == {
        "provisioningModel": "STANDARD", "automaticRestart": True, "onHostMaintenance": "TERMINATE",
        "instanceTerminationAction": "DELETE",
    }  # fmt: skip
    (disk,) = properties["disks"]
    assert disk["initializeParams"]["sourceImage"] == "projects/cos-cloud/global/images/family/cos-stable"
    (network,) = properties["networkInterfaces"]
    assert (network["network"], network["nicType"]) == ("global/networks/default", "GVNIC")
    assert network["accessConfigs"] == [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}]
    metadata = {item["key"]: item["value"] for item in properties["metadata"]["items"]}
    assert metadata["koalarization-image"] == f"{IMAGE.rpartition(':')[0]}@sha256:{'c' * 64}"
    assert metadata["koalarization-arguments"].splitlines() == ["--data=gs://bucket/data", f"--workdir={RUN}"]
    (tmp_path / "config.py").write_text(metadata["koalarization-config"])
    sent, expected = config.load(str(tmp_path / "config.py")), config.load("configs/demo.py")
    config.check(sent, "it")
    expected.batch_size = 32
    assert workdir.to_json(sent) == workdir.to_json(expected)
    assert (metadata["koalarization-count"], metadata["koalarization-gpus"]) == ("2", "8")
    assert int(metadata["koalarization-end"]) == pytest.approx(
        end.replace(tzinfo=datetime.timezone.utc).timestamp() - 900, abs=1
    )
    assert metadata["shutdown-script"] == "#!/bin/bash\ndocker stop --time=25 trainer\n"
    assert not any(secret in json.dumps(template) for secret in ("a-token", "a-refresh-token", "a-secret"))
    assert group["targetSize"] == 0
    assert group["instanceLifecyclePolicy"] == {"defaultActionOnFailure": "REPAIR"}
    assert created == {"instances": [{"name": f"{NAME}-0"}, {"name": f"{NAME}-1"}]}
    assert project.compute.made == [f"{NAME}-0", f"{NAME}-1"]
    told = capsys.readouterr().err
    for part in (
        "zone us-central1-a was chosen of those near the data that have a2-highgpu-8g: us-central1-a, us-central1-b",
        "2 of a2-highgpu-8g, 8 nvidia-tesla-a100 each, in us-central1-a; standard; --spot is cheaper",
        "at most 20.5 machine hours, paid for by a-project", "2 of 2 machines run", "2 of 2 machines are heard",
        f"trainer.launch stop --project={PROJECT}",
    ):  # fmt: skip
        assert part in told


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(project, capsys):
    options = ["--machine=e2-standard-4", "--zone=us-central1-b", "--spot", "--subnetwork=mine", "--nouse_public_ips"]
    assert launched(*options, "--dry_run") == 0
    shown = capsys.readouterr().out
    assert requested(project.compute) == {}
    assert launched(*options) == 0
    bodies = [json.loads(part.partition("\n")[2]) for part in shown.split("POST ")[1:]]
    for body, sent in zip(bodies, requested(project.compute).values(), strict=True):
        assert without_end(body) == without_end(sent)
    lines = [line for line in shown.splitlines() if line.startswith("POST")]
    base = f"POST https://compute.googleapis.com/compute/v1/projects/{PROJECT}"
    zone = f"{base}/zones/us-central1-b/instanceGroupManagers"
    assert lines == [f"{base}/global/instanceTemplates", zone, f"{zone}/{NAME}/createInstances"]
    (network,) = bodies[0]["properties"]["networkInterfaces"]
    assert network == {"nicType": "GVNIC", "subnetwork": "regions/us-central1/subnetworks/mine"}
    assert bodies[0]["properties"]["scheduling"]["provisioningModel"] == "SPOT"
    assert bodies[0]["properties"]["scheduling"]["automaticRestart"] is False


def without_end(body):
    """What two launches have in common: they end at different times."""
    body = json.loads(re.sub(rf"{NAME}-\d{{16}}", "TEMPLATE", json.dumps(body)))
    if "properties" in body:
        body["properties"]["scheduling"].pop("terminationTime")
        items = body["properties"]["metadata"]["items"]
        body["properties"]["metadata"]["items"] = [item for item in items if item["key"] != "koalarization-end"]
    return body


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--machine=a9-none"], "--machine=a9-none is no type of machine"),
        (["--machine=e2-standard-4", "--zone=mars-a"], "--zone=mars-a has no e2-standard-4; choose one of us-"),
        (
            ["--machine=e2-standard-4", "--zone=europe-west4-a"],
            "gs://bucket lies in us-central1, but the work would be done in europe-west4",
        ),
        (["--machine=a2-highgpu-8g", "--count=3"], "batch_size is 8, which 24 replicas cannot share equally"),
        (["--machine=a2-highgpu-8g", "--config.accumulation_steps=3"], "accumulation_steps is 3, into which"),
        (["--machine=e2-standard-4", "--config.precision=double"], "precision is 'double'; choose one of"),
        (["--machine=e2-standard-4", "--data=/data"], "--data=/data is no directory of a bucket; name one as gs://"),
        (["--machine=e2-standard-4", "--data=gs://bucket/no"], "gs://bucket/no is no dataset"),
        (["--machine=e2-standard-4", "--workdir=gs://none/run"], "there is no bucket gs://none; make it"),
        (["--machine=e2-standard-4", f"--image={IMAGE}-none"], "build it from docker/trainer.Dockerfile"),
        (["--machine=e2-standard-4", "--max_hours=0"], "max_hours"),
        (["--machine=e2-standard-4", "--max_hours=nan"], "--max_hours=nan is no number of hours"),
        (["--machine=e2-standard-4", "--project=../x"], "--project=../x is no ID of a project"),
        (["--data=gs://bucket/data"], "--machine is missing: The type of the machines"),
        (["--machine=e2-standard-4", "--data=gs://far-away/data"], "no zone near the data (gs://bucket in us-central1, gs://"),
        (["--machine=e2-standard-4", "--project=other"], "project other cannot be looked at"),
        (["--machine=e2-standard-4", "--workdir=gs://"], "--workdir=gs:// is no directory of a bucket"),
        (["--machine=e2-standard-4", "--workdir=gs://bucket/a\nb"], "--workdir=gs://bucket/a\\nb is no directory"),
        (["--machine=e2-standard-4", "--config.model.name=none"], "model.name is 'none'; choose one of"),
        (["--machine=e2-standard-4", "--config.learning_rates=(1e-3,)"], "must be of the same length"),
        (["--machine=e2-standard-4", "--config.features=stored"], "features is 'stored', but gs://bucket/data has"),
        (["--machine=e2-standard-4", "--config.model.feature_weights=/w.h5"], "which the machines cannot reach; copy"),
        (["--machine=e2-standard-4", "--config.model.feature_weights=gs://bucket/no.h5"], "which is no file; name"),
        (["--machine=e2-standard-4", "--config.strategy=foo"], "strategy is 'foo'; choose one of auto"),
        (["--machine=e2-standard-4", "--count=2", "--config.strategy=mirrored"], "strategy is 'mirrored', but"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_before_anything_is_made(project, capsys, options, said):
    assert launched(*options) in (1, 2)
    assert said in error_of(capsys)
    assert requested(project.compute) == {}


def test_an_answer_that_is_no_json_is_one_line(project, capsys, monkeypatch):
    broken = 200, {"Content-Type": "application/json"}, b"{"
    monkeypatch.setattr(Compute, "__call__", lambda *_: broken)
    for name in ("status", "stop"):
        assert command(name, f"--workdir={RUN}") == 1
        assert re.search("zones of project a-project cannot be looked up: .*; try again", error_of(capsys))


@pytest.mark.parametrize(
    ("what", "permission", "said"),
    [
        (
            "project",
            "compute.instanceGroupManagers.delete",
            "in project a-project, which roles/compute.instanceAdmin.v1",
        ),
        (
            "project",
            "compute.instanceGroupManagers.update",
            "in project a-project, which roles/compute.instanceAdmin.v1",
        ),
        ("project", "compute.instances.create", "in project a-project, which roles/compute.instanceAdmin.v1 has"),
        ("account", "iam.serviceAccounts.actAs", f"on {ACCOUNT}: gcloud iam"),
    ],
)
def test_a_missing_permission_is_named_before_anything_is_made(project, capsys, what, permission, said):
    project.permissions[what] -= {permission}
    assert launched("--machine=e2-standard-4") == 1
    assert f"you lack {permission} {said}" in error_of(capsys)
    assert requested(project.compute) == {}


def test_machines_that_could_not_delete_themselves_are_refused(project, capsys):
    project.roles = ["roles/editor"]
    assert launched("--machine=e2-standard-4", "--dry_run") == 0
    capsys.readouterr()
    project.roles = ["roles/compute.admin", "roles/logging.admin"]
    assert launched("--machine=e2-standard-4", "--dry_run") == 0
    assert "WARNING: " in (said_ := capsys.readouterr().err)
    assert f"{ACCOUNT}, as whom the machines run, lacks roles/artifactregistry.reader" in said_
    project.roles = ["roles/logging.logWriter"]
    assert launched("--machine=e2-standard-4") == 1
    assert error_of(capsys).startswith(
        f"error: {ACCOUNT}, as whom the machines run, lacks roles/compute.instanceAdmin.v1 in project a-project: "
    )
    assert requested(project.compute) == {}
    project.roles = ["roles/compute.admin"]
    assert launched("--machine=e2-standard-4") == 1
    assert f"{ACCOUNT}, as whom the machines run, lacks roles/logging.logWriter in" in error_of(capsys)
    project.roles, project.bucket_roles = ["roles/compute.admin", "roles/logging.admin"], {}
    assert launched("--machine=e2-standard-4") == 1
    assert f"{ACCOUNT}, as whom the machines run, lacks roles/storage.objectAdmin on gs://bucket: " in error_of(capsys)
    assert requested(project.compute) == {}
    project.roles = None
    assert launched("--machine=e2-standard-4", "--dry_run") == 0
    told = capsys.readouterr().err
    assert (
        f"WARNING: whether {ACCOUNT} has roles/compute.instanceAdmin.v1 in project a-project could not be looked up: "
        in told
    )
    assert "; it needs it\n" in told


def test_data_that_machines_could_not_read_is_refused(project, capsys):
    project.own_bucket_roles = {"near": {}}
    options = ("--machine=e2-standard-4", "--data=gs://near/data", "--dry_run")
    assert launched(*options) == 1
    assert f"{ACCOUNT}, as whom the machines run, lacks roles/storage.objectViewer on gs://near: " in error_of(capsys)
    for member in (f"serviceAccount:{ACCOUNT}", "allUsers"):
        project.own_bucket_roles = {"near": {"roles/storage.objectViewer": member}}
        assert launched(*options) == 0


def test_an_image_that_cannot_train_is_refused(project, capsys):
    project.images[IMAGE.partition("/")[2]] = {"org.koalarization.beam": "2.77.0"}
    assert launched("--machine=e2-standard-4") == 1
    assert f"image {IMAGE} is none to train with; build one from docker/trainer.Dockerfile" in error_of(capsys)
    project.images[IMAGE.partition("/")[2]] = {"org.koalarization.tensorflow": "2.11.0"}
    assert launched("--machine=e2-standard-4") == 1
    assert f"image {IMAGE} has TensorFlow 2.11.0, this program has {tf.__version__}; take an image" in error_of(capsys)
    assert launched("--machine=e2-standard-4", "--image=docker.io/me/trainer:1") == 1
    assert "image docker.io/me/trainer:1 is not in Artifact Registry" in error_of(capsys)


def test_an_api_that_is_not_enabled(project, capsys):
    project.disabled = {"compute.googleapis.com"}
    for method in ("instanceGroupManagers.aggregatedList", "machineTypes.aggregatedList"):
        project.compute.refusals[f"compute.{method}"] = Refusal(403, "has not been used before", "accessNotConfigured")
    assert launched("--machine=e2-standard-4") == 1
    assert "compute.googleapis.com is not enabled: gcloud services enable" in error_of(capsys)


@pytest.mark.parametrize(
    ("quotas", "options", "said"),
    [
        (
            {"NVIDIA_A100_GPUS": (16, 9)},
            [],
            "16 NVIDIA_A100_GPUS in us-central1, 9 of them are in use, and 8 are needed",
        ),
        (
            {"NVIDIA_A100_GPUS": (0, 0)},
            ["--spot"],
            "4 PREEMPTIBLE_NVIDIA_A100_GPUS in us-central1, 0 of them are in use",
        ),
        (
            {"NVIDIA_A100_GPUS": (0, 0), "PREEMPTIBLE_NVIDIA_A100_GPUS": (8, 0)},
            ["--max_hours=168"],  # longer than a week, with what is added at the end
            "0 NVIDIA_A100_GPUS in us-central1, 0 of them are in use",
        ),
        (
            {"NVIDIA_A100_GPUS": (8, 0)},
            ["--count=2"],
            "8 NVIDIA_A100_GPUS in us-central1, 0 of them are in use, and 1",
        ),
        ({"GPUS_ALL_REGIONS": (4, 0)}, [], "4 GPUS_ALL_REGIONS, 0 of them are in use, and 8 are needed"),
    ],
)
def test_a_full_quota_is_seen_before_anything_is_made(project, capsys, quotas, options, said):
    project.compute.quotas = {"NVIDIA_A100_GPUS": (16, 0), "PREEMPTIBLE_NVIDIA_A100_GPUS": (4, 0), **quotas}
    project.compute.global_quotas = {"GPUS_ALL_REGIONS": quotas.get("GPUS_ALL_REGIONS", (16, 0))}
    assert launched("--machine=a2-highgpu-8g", "--config.batch_size=16", *options) == 1
    line = error_of(capsys)
    assert f"project a-project may use {said}" in line
    assert "ask for more at https://console.cloud.google.com/iam-admin/quotas?project=a-project" in line
    assert requested(project.compute) == {}


@pytest.mark.parametrize(
    ("quotas", "machine"),
    [
        ({"NVIDIA_A100_GPUS": (0, 0), "PREEMPTIBLE_NVIDIA_A100_GPUS": (8, 0)}, "a2-highgpu-8g"),  # either will do
        ({"NVIDIA_A100_GPUS": (8, 0), "PREEMPTIBLE_NVIDIA_A100_GPUS": (0, 0)}, "a2-highgpu-8g"),
        ({}, "a3-highgpu-8g"),  # of which there is no quota to see
    ],
)
def test_a_quota_with_room_is_no_obstacle(project, quotas, machine):
    project.compute.quotas = quotas
    assert launched(f"--machine={machine}", "--spot", "--dry_run") == 0


def test_of_h100_the_api_shows_one_quota_alone(project, capsys):
    project.compute.quotas = {"PREEMPTIBLE_NVIDIA_H100_GPUS": (4, 0)}
    assert launched("--machine=a3-highgpu-8g", "--dry_run") == 0
    capsys.readouterr()
    assert launched("--machine=a3-highgpu-8g", "--spot", "--dry_run") == 1
    assert "may use 4 PREEMPTIBLE_NVIDIA_H100_GPUS in us-central1" in error_of(capsys)


@pytest.mark.parametrize("weights", ["none", "imagenet"])
def test_weights_that_no_file_holds_are_no_obstacle(project, weights):
    assert launched("--machine=e2-standard-4", f"--config.model.feature_weights={weights}", "--dry_run") == 0


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        (
            "ZONE_RESOURCE_POOL_EXHAUSTED",
            "The zone does not have enough\nresources.",
            "us-central1-a has no a2-highgpu-8g to give at the moment; try --zone=us-central1-b: The zone does not",
        ),
        (
            "QUOTA_EXCEEDED",
            "Quota 'SSD_TOTAL_GB' exceeded. Limit: 500.0 in region us-central1.",
            "a quota of a-project is full; ask for more, or try another region: Quota 'SSD_TOTAL_GB' exceeded.",
        ),
        (
            "PERMISSIONS_ERROR",
            "Required 'compute.disks.create' permission (when acting as '1@cloudservices.gserviceaccount.com')",
            "Required 'compute.disks.create' permission (when acting as '1@cloudservices.gserviceaccount.com') "
            "(PERMISSIONS_ERROR); 1@cloudservices.gserviceaccount.com needs roles/compute.instanceAdmin.v1 in project",
        ),
        ("QUOTA_EXCEEDED", "GPUS_ALL_REGIONS exceeded globally.", "a quota of a-project is full; ask for more: G"),
        (
            "RESOURCE_NOT_FOUND",
            "The resource 'projects/a-project/global/networks/default' was not found",
            "a-project has no network 'default'; make one, as docs/google-cloud.md shows, and name its --subnetwork: T",
        ),
        (
            "CONDITION_NOT_MET",
            "Constraint constraints/compute.vmExternalIpAccess violated for project 1.",
            "a-project gives machines no addresses of the internet; try --nouse_public_ips, with a --subnetwork that",
        ),
        ("INVALID_FIELD_VALUE", "No such\nthing", "No such thing (INVALID_FIELD_VALUE)"),
    ],
)  # fmt: skip
def test_machines_that_do_not_come_are_one_line_and_leave_nothing(project, capsys, code, message, said):
    project.compute.errors = [(code, message)]
    assert launched("--machine=a2-highgpu-8g") == 1
    assert error_of(capsys).startswith(f"error: {said}")
    assert (project.compute.groups, project.compute.templates) == ({}, {})
    assert project.compute.deleted == [NAME]


def test_of_machines_that_do_not_all_come_none_is_left(project, capsys):
    project.compute.errors, project.compute.stuck = [("STOCKOUT", "none left")], (f"{NAME}-1",)
    assert launched("--machine=a2-highgpu-8g", "--count=2", "--config.batch_size=16") == 1
    assert "has no a2-highgpu-8g to give at the moment" in error_of(capsys)
    assert project.compute.made == [f"{NAME}-0"]
    assert (project.compute.groups, project.compute.templates) == ({}, {})


def test_every_zone_of_the_region_is_named_by_the_error_of_another(project, capsys):
    project.compute.errors = [("STOCKOUT", "none")]
    zone, tried = ZONE, []
    while zone not in tried:
        tried.append(zone)
        assert launched("--machine=a2-highgpu-8g", f"--zone={zone}") == 1
        zone = re.search(r"try --zone=(\S+):", error_of(capsys))[1]
    assert (zone, sorted(tried)) == (ZONE, [each for each in ZONES if each.startswith("us-central1-")])


def test_zones_of_other_regions_are_named_where_the_data_is_in_several(project, capsys):
    project.locations["bucket"] = "US"
    project.compute.errors = [("STOCKOUT", "none")]
    try:
        assert launched("--machine=a2-highgpu-8g", "--zone=us-central1-f", f"--image={IMAGE}") == 1
        assert "try --zone=us-east1-b: " in error_of(capsys)
    finally:
        project.locations["bucket"] = "US-CENTRAL1"


def test_an_answer_that_is_lost_costs_no_machines(project, monkeypatch):
    monkeypatch.setattr(compute, "_PATIENT", compute._PATIENT.with_delay(initial=0.01, maximum=0.01))
    lost = [Refusal(status, "not now", "backendError") for status in (429, 500, 502, 503)]
    methods = ("listManagedInstances", "get", "aggregatedList", "delete")
    project.compute.lapses = {f"compute.instanceGroupManagers.{each}": list(lost) for each in methods}
    project.compute.lapses |= {f"compute.{each}": list(lost) for each in ("zoneOperations.get", "globalOperations.get")}
    project.compute.late = 1
    assert launched("--machine=e2-standard-4") == 0
    assert list(project.compute.groups) == [(ZONE, NAME)]
    assert command("stop", f"--workdir={RUN}") == 0
    assert project.compute.groups == {}
    assert not any(project.compute.lapses.values())


def test_a_refusal_on_the_way_is_one_line_and_leaves_nothing(project, capsys):
    create = "compute.instanceGroupManagers.createInstances"
    for refusal, said in (
        (
            Refusal(403, "Quota 'INSTANCES' exceeded.", "quotaExceeded"),
            "a quota of a-project is full; ask for more, or",
        ),
        (Refusal(403, "Required 'compute.instances.create'", "forbidden"), "you need roles/compute.instanceAdmin.v1"),
    ):
        project.compute.refusals[create] = refusal
        assert launched("--machine=e2-standard-4") == 1
        line = error_of(capsys)
        assert said in line
        assert refusal.message in line
        assert "https://" not in line
    assert (project.compute.groups, project.compute.templates) == ({}, {})


def test_what_cannot_be_deleted_is_said(project, capsys):
    project.compute.errors = [("QUOTA_EXCEEDED", "full")]
    project.compute.refusals["compute.instanceGroupManagers.delete"] = Refusal(403, "not for you")
    assert launched("--machine=e2-standard-4") == 1
    said = capsys.readouterr().err
    left = (
        "machines may be left, which cost: python -m trainer.launch stop --project=a-project --workdir=gs://bucket/run"
    )
    assert f"WARNING: {NAME} cannot be deleted: not for you; {left}" in said
    assert said.splitlines()[-1].startswith("error: a quota of a-project is full")


def test_a_second_launch_is_refused_and_old_templates_are_deleted(project, capsys):
    project.compute.templates |= {f"{NAME}-1": {}, f"{NAME}-{10**17}": {}}
    assert launched("--machine=e2-standard-4") == 0
    assert f"{NAME}-1" not in project.compute.templates
    assert f"{NAME}-{10**17}" in project.compute.templates  # machines may still be made of it
    capsys.readouterr()
    assert launched("--machine=e2-standard-4", "--zone=us-central1-b") == 1
    assert error_of(capsys).startswith(f"error: machines train in {RUN} already, in us-central1-a")
    project.compute.groups.clear()  # as at the end of a run
    assert launched("--machine=e2-standard-4", "--max_hours=9") == 0


def test_a_zone_that_cannot_be_seen_is_not_taken_for_an_empty_one(project, capsys):
    assert launched("--machine=e2-standard-4") == 0
    project.compute.unreachable = (ZONE,)
    for again in (lambda: launched("--machine=e2-standard-4"), lambda: command("stop", f"--workdir={RUN}")):
        capsys.readouterr()
        assert again() == 1
        assert "zones/us-central1-a: us-central1-a is not reachable; try again" in error_of(capsys)
    assert len(project.compute.made) == len(project.compute.templates) == 1
    assert list(project.compute.groups) == [(ZONE, NAME)]
    assert command("status", f"--workdir={RUN}") == 0
    assert "WARNING: there may be others, which cannot be seen: zones/us-central1-a: us" in capsys.readouterr().err


def test_a_zone_that_cannot_be_seen_keeps_nobody_from_deleting_machines_in_another(project, capsys, monkeypatch):
    assert launched("--machine=e2-standard-4") == 0
    project.compute.unreachable = ("europe-west4-a",)
    assert command("stop", f"--workdir={RUN}") == 1
    assert f"error: machines of {RUN} may be left where that cannot be seen: zones/europe" in capsys.readouterr().err
    assert (project.compute.groups, project.compute.templates) == ({}, {})
    monkeypatch.setattr(machines, "refuse_second", lambda *_: [])  # as when it is lost sight of a moment later
    assert launched("--machine=e2-standard-4", "--max_hours=9") == 0
    assert list(project.compute.groups) == [(ZONE, NAME)]


def test_zones_are_asked_one_by_one_when_one_hides_all_others(project, capsys, monkeypatch):
    assert launched("--machine=e2-standard-4") == 0
    monkeypatch.setattr(compute, "_PATIENT", compute._PATIENT.with_delay(0.01, 0.01).with_timeout(0.1))
    project.compute.refusals["compute.instanceGroupManagers.aggregatedList"] = Refusal(503, "later", "backendError")
    assert command("status") == 0
    assert f"{NAME}-0  RUNNING" in capsys.readouterr().out
    project.compute.unreachable = ("europe-west4-a",)
    assert command("stop", f"--workdir={RUN}") == 1
    assert "may be left where that cannot be seen: europe-west4-a: " in error_of(capsys)
    assert (project.compute.groups, project.compute.templates) == ({}, {})


def test_a_group_whose_time_is_over_makes_way_when_its_machines_could_not_be_made_anew(project, capsys):
    assert launched("--machine=e2-standard-4", "--max_hours=9") == 0
    (group,) = project.compute.groups.values()
    group["machines"] = dict.fromkeys(group["machines"])  # taken away, and no room for others
    assert launched("--machine=e2-standard-4") == 1
    assert error_of(capsys).startswith(f"error: machines train in {RUN} already")
    for ago, status in ((600, 1), (3600, 0)):  # the machines have a quarter of an hour to be deleted
        _end_before(project.compute, ago)
        assert launched("--machine=e2-standard-4", "--dry_run") == status
    assert launched("--machine=e2-standard-4") == 0


def _end_before(compute, seconds):
    """Makes the time of the one group end so many seconds ago."""
    (group,) = compute.groups.values()
    end = int((time.time() - seconds) * 1e6)
    compute.templates = {f"{NAME}-{end}": compute.templates.pop(group["template"])}
    group["template"] = f"{NAME}-{end}"
    group["body"]["instanceTemplate"] = f"projects/{PROJECT}/global/instanceTemplates/{NAME}-{end}"


def test_machines_that_are_not_heard_are_deleted(project, capsys, monkeypatch):
    monkeypatch.setattr(machines, "_SILENT", datetime.timedelta(0))
    say(project.logging, f"{NAME}-0", "of a launch before")
    project.logging.refusal = Refusal(503, "not now")
    assert launched("--machine=e2-standard-4") == 1
    line = error_of(capsys)
    assert line.startswith(f"error: {NAME}-0 runs but says nothing in 0 minutes: it reaches no API of Google's")
    assert f"{ACCOUNT} lacks roles/logging.logWriter, or the project keeps no logs" in line
    assert (project.compute.groups, project.compute.templates) == ({}, {})


def test_each_machine_must_be_heard(project, capsys, monkeypatch):
    monkeypatch.setattr(machines, "_SILENT", datetime.timedelta(0))
    start = project.compute.start
    monkeypatch.setattr(project.compute, "start", lambda name, *more: start(name, *more) if name[-1] == "0" else name)
    assert launched("--machine=e2-standard-4", "--count=2") == 1
    assert error_of(capsys).startswith(f"error: {NAME}-1 runs but says nothing in 0 minutes")
    assert (project.compute.groups, project.compute.templates) == ({}, {})


def test_logs_that_do_not_answer_for_a_while_cost_no_machines(project, capsys, monkeypatch):
    answers, since = ["a quota is full", "not now"], machines.Logs.since

    def answer(logs, moment):
        if answers:
            raise UserError(answers.pop())
        return since(logs, moment)

    monkeypatch.setattr(machines.Logs, "since", answer)
    assert launched("--machine=e2-standard-4") == 0
    assert answers == []
    assert list(project.compute.groups) == [(ZONE, NAME)]


def test_a_wrong_clock_is_refused_before_anything_is_made(project, capsys, monkeypatch):
    ahead = datetime.timedelta(hours=9)
    monkeypatch.setattr(api.Api, "ahead", property(lambda self: ahead, lambda self, value: None), raising=False)
    assert launched("--machine=e2-standard-4") == 1
    assert error_of(capsys).startswith("error: the clock of this machine is 540 minutes ahead of Google's")
    assert project.compute.groups == {}


def test_logs_that_do_not_answer_at_all_cost_no_machines(project, capsys, monkeypatch):
    def fail(logs, moment):
        raise UserError("not now")

    monkeypatch.setattr(machines, "_SILENT", datetime.timedelta(seconds=0.1))
    monkeypatch.setattr(machines.Logs, "since", fail)
    assert launched("--machine=e2-standard-4") == 0
    assert "WARNING: whether the machines are heard cannot be seen: not now" in capsys.readouterr().err
    assert list(project.compute.groups) == [(ZONE, NAME)]


def test_machines_are_shown_without_what_they_said_where_that_cannot_be_seen(project, capsys):
    assert launched("--machine=e2-standard-4") == 0
    project.logging.hidden = Refusal(403, "not for you")
    capsys.readouterr()
    assert cli.run(main, ["launch", "status", f"--workdir={RUN}", f"--project={PROJECT}"]) == 0
    shown = capsys.readouterr()
    assert f"{NAME}-0  RUNNING" in shown.out
    assert "WARNING: what the machines said cannot be seen: " in shown.err


def test_a_launch_by_whom_may_not_read_logs_says_so(project, capsys):
    project.logging.hidden = Refusal(403, "not for you")
    assert launched("--machine=e2-standard-4") == 0
    assert "WARNING: whether the machines are heard cannot be seen: " in capsys.readouterr().err


@pytest.fixture
def both_looked(monkeypatch):
    """Two launches at the same time: neither saw the other."""
    monkeypatch.setattr(machines, "refuse_second", lambda *_: [])


REFUSALS = {
    "instanceTemplates.insert": Refusal(503, "later", "backendError"),
    "instanceGroupManagers.insert": Refusal(403, "Quota", "quotaExceeded"),
    "instanceGroupManagers.createInstances": Refusal(400, "no", "invalid"),
}


@pytest.mark.parametrize("method", [*REFUSALS, None])
@pytest.mark.parametrize("zone", [ZONE, "us-central1-b"])
def test_a_launch_that_comes_second_leaves_the_first_ones_machines(project, capsys, both_looked, method, zone):
    assert launched("--machine=e2-standard-4", "--max_hours=9") == 0
    templates = list(project.compute.templates)
    if method:
        project.compute.refusals[f"compute.{method}"] = REFUSALS[method]
    assert launched("--machine=e2-standard-4", f"--zone={zone}") == 1
    said = error_of(capsys)
    assert said
    if not method:
        assert ("; try again in some minutes" if zone == ZONE else "; wait for them, or stop them") in said
    assert (list(project.compute.groups), list(project.compute.templates)) == ([(ZONE, NAME)], templates)
    assert len(project.compute.groups[ZONE, NAME]["machines"]) == 1


def test_a_group_without_machines_makes_way_when_it_is_old(project, capsys):
    assert launched("--machine=e2-standard-4", "--max_hours=9") == 0
    project.compute.groups[ZONE, NAME]["machines"].clear()  # as when their time was over and they were deleted
    assert launched("--machine=e2-standard-4", "--zone=us-central1-b") == 1  # or as when they are being made
    project.compute.groups[ZONE, NAME]["made"] -= 1000
    assert launched("--machine=e2-standard-4", "--zone=us-central1-b", "--dry_run") == 0
    assert list(project.compute.groups) == [(ZONE, NAME)]
    assert launched("--machine=e2-standard-4", "--zone=us-central1-b") == 0
    assert list(project.compute.groups) == [("us-central1-b", NAME)]
    assert f"deletes {NAME} in us-central1-a, which is left without machines" in capsys.readouterr().err


def test_machines_that_do_not_all_come_in_time(project, capsys, monkeypatch):
    monkeypatch.setattr(machines, "_MOST", datetime.timedelta(0))
    monkeypatch.setattr("cloud.compute.Compute.machines", lambda *_: [Machine(f"{NAME}-0", "STAGING", "CREATING", ())])
    assert launched("--machine=e2-standard-4") == 1
    assert error_of(capsys) == "error: after 0 minutes 0 of 1 machines run; try again"
    assert (project.compute.groups, project.compute.templates) == ({}, {})


def test_an_operation_that_fails_is_one_line_and_leaves_nothing(project, capsys):
    project.compute.failure = ("SERVICE_ACCOUNT_ACCESS_DENIED", "The user does not have access to service account")
    assert launched("--machine=e2-standard-4") == 1
    line = error_of(capsys)
    assert "does not have access to service account (SERVICE_ACCOUNT_ACCESS_DENIED); you need" in line
    assert (project.compute.groups, project.compute.templates) == ({}, {})


def test_machines_that_are_gone_before_they_ran(project, capsys, monkeypatch):
    monkeypatch.setattr("cloud.compute.Compute.machines", lambda *_: [])
    assert launched("--machine=e2-standard-4") == 1
    assert "the machines were deleted before each of them was heard" in error_of(capsys)


def test_machines_that_are_stopped_before_they_are_heard(project, capsys, monkeypatch):
    project.logging.refusal = Refusal(503, "not now")
    monkeypatch.setattr(machines.time, "sleep", lambda _: project.compute.groups.clear())
    assert launched("--machine=e2-standard-4") == 1
    assert "the machines were deleted before each of them was heard" in error_of(capsys)


def test_a_launch_that_is_interrupted_leaves_nothing_or_says_what(project, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cloud.compute.Compute.machines", interrupt)
    assert launched("--machine=e2-standard-4") == 130
    assert (project.compute.groups, project.compute.templates) == ({}, {})
    capsys.readouterr()
    monkeypatch.setattr("cloud.compute.Compute.delete", interrupt)
    assert launched("--machine=e2-standard-4") == 130
    assert "WARNING: machines may be left, which cost: python -m trainer.launch stop" in capsys.readouterr().err


def command(name, *options):
    return cli.run(main, ["launch", name, f"--project={PROJECT}", *options])


def without_time(text):
    """What is shown of a log, without its times."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", text)


def test_status_shows_machines_and_what_they_said_last(project, capsys):
    assert command("status") == 0
    assert capsys.readouterr().out == f"no machines train in project {PROJECT}\n"
    assert command("status", f"--workdir={RUN}") == 0
    assert capsys.readouterr().out == f"no machines train in {RUN}\n"
    assert launched("--machine=e2-standard-4", "--count=2") == 0
    say(project.logging, f"{NAME}-0", "epoch 1", "epoch 2")
    assert command("status") == 0
    lines = without_time(capsys.readouterr().out).splitlines()
    assert lines == [
        f"{RUN}: {NAME} in us-central1-a",
        f"  {NAME}-0  RUNNING  0 epoch 2",
        f"  {NAME}-1  RUNNING  1 machine 1 starts",
    ]
    project.compute.groups[ZONE, NAME]["machines"][f"{NAME}-1"] = None
    project.compute.errors = [("ZONE_RESOURCE_POOL_EXHAUSTED", "none left")]
    assert command("status", f"--workdir={RUN}/") == 0
    assert f"{NAME}-1  none, CREATING (ZONE_RESOURCE_POOL_EXHAUSTED)" in capsys.readouterr().out


def test_logs_are_those_of_the_run_in_their_order(project, capsys):
    assert launched("--machine=e2-standard-4") == 0
    project.logging.entries.clear()
    capsys.readouterr()
    assert command("logs", f"--workdir={RUN}") == 0
    assert capsys.readouterr().out == f"machines that train in {RUN} have said nothing yet\n"
    say(project.logging, f"{NAME}-0", "machine 0 of 2 starts", log="koalarization")
    say(project.logging, f"{NAME}-1", "hello")
    say(project.logging, f"{NAME}x-1", "of another run")
    say(project.logging, f"{NAME}-1", "noise", log="syslog")
    assert command("logs", f"--workdir={RUN}") == 0
    shown = capsys.readouterr().out
    assert without_time(shown).splitlines() == ["0 machine 0 of 2 starts", "1 hello"]
    assert shown.startswith(f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:}")


def test_logs_are_followed_until_interrupted(project, capsys, monkeypatch):
    say(project.logging, f"{NAME}-0", *map(str, range(3)))
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 4:
            raise KeyboardInterrupt
        if len(pauses) == 2:
            say(project.logging, f"{NAME}-0", "later", *map(str, range(100, 100 + 2500)))

    monkeypatch.setattr("trainer.launch.logs.time.sleep", sleep)
    monkeypatch.setattr("trainer.launch.logs._PAGE", 1000)
    assert command("logs", f"--workdir={RUN}", "--follow") == 130
    texts = [line.split(" ")[3] for line in capsys.readouterr().out.splitlines()]
    assert texts == ["0", "1", "2", "later", *map(str, range(100, 2600))]


def test_stop_deletes_machines_and_template(project, capsys):
    assert launched("--machine=e2-standard-4") == 0
    assert command("stop", f"--workdir={RUN}") == 0
    assert (project.compute.groups, project.compute.templates, project.compute.deleted) == ({}, {}, [NAME])
    assert launched("--machine=e2-standard-4", "--max_hours=9") == 0
    project.compute.groups.clear()  # as at the end of a run, which leaves the template
    assert command("stop", f"--workdir={RUN}") == 0
    assert project.compute.templates == {}
    assert f"no machines train in {RUN}" in capsys.readouterr().err
    assert command("stop", f"--workdir={RUN}") == 0


def test_a_mistyped_directory_is_no_silence_about_machines(project, capsys):
    for name in ("stop", "status", "logs"):
        assert command(name, "--workdir=gs:/bucket/run") == 2
        assert "--workdir=gs:/bucket/run is no directory of a bucket; name one as gs://" in error_of(capsys)
    assert launched("--machine=e2-standard-4") == 0
    for name, *more in (("stop",), ("status",), ("logs",), ("logs", "--follow")):
        capsys.readouterr()
        assert command(name, "--workdir=gs://bucket/rn", *more) == 0
        assert f"no machines train in gs://bucket/rn; they do in {RUN}\n" in "".join(capsys.readouterr())


def test_an_option_that_a_shell_left_empty_is_refused(capsys):
    assert launched("--machine=e2-standard-4", "--service_account_email=") == 2
    assert error_of(capsys).startswith("error: --service_account_email= is empty; give it a value, or leave it out")


def test_help_and_what_is_missing(capsys):
    assert cli.run(main, ["launch", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in ("--max_hours", "--dry_run", "trainer.launch status", "(default: '24.0')"):
        assert part in shown
    assert cli.run(main, ["launch", "stop"]) == 2
    assert "--workdir is missing" in error_of(capsys)
    assert cli.run(main, ["launch", "stats"]) == 2
    assert "unknown command stats: choose status, logs, stop, or give options to launch" in error_of(capsys)
    assert cli.run(main, ["launch", "logs", "--help"]) == 0
    assert "--follow" in capsys.readouterr().out


def documented(name):
    """The commands of trainer.launch that a page shows, without what begins them."""
    with open(name) as file:
        text = file.read().replace("\\\n", " ")
    found = re.findall(r"^\.venv/bin/python -m trainer\.launch ([^#\n]+)", text, re.MULTILINE)
    values = {
        "koalarization@PROJECT.iam.gserviceaccount.com": ACCOUNT,
        "PROJECT": PROJECT,
        "BUCKET": "bucket",
    }
    return [
        [re.sub("|".join(map(re.escape, values)), lambda m: values[m[0]], each) for each in line.split()]
        for line in found
    ]


@pytest.mark.parametrize("page", ["README.md", "docs/google-cloud.md"])
def test_the_commands_of_the_pages_work(project, page):
    commands = documented(page)
    assert commands
    for arguments in commands:
        if "--follow" in arguments:
            arguments.remove("--follow")
        assert cli.run(main, ["launch", *arguments]) == 0, arguments
    launches = [each for each in commands if each[0].startswith("--")]
    assert len(launches) == 1
    assert len(project.compute.made) == 1
