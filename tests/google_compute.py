"""Doubles of Compute Engine, of its machines' metadata server, and of Cloud Logging.

A machine of the double is the real startup script, in a process of its own, with a container runtime that is a double.
"""

import contextlib
import datetime
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import tensorflow as tf

from tests import container_runtime
from tests.google_apis import Api, Refusal
from tests.google_project import NUMBER, PROJECT

ZONES = ("us-central1-a", "us-central1-b", "us-central1-f", "us-east1-b", "europe-west4-a")
TYPES = {
    "e2-standard-4": [],
    "a2-highgpu-8g": [{"guestAcceleratorType": "nvidia-tesla-a100", "guestAcceleratorCount": 8}],
    "a3-highgpu-8g": [{"guestAcceleratorType": "nvidia-h100-80gb", "guestAcceleratorCount": 8}],
}


IMAGE = f"us-central1-docker.pkg.dev/{PROJECT}/koalarization/trainer:main"
PERMISSIONS = {
    "compute.instanceTemplates.create", "compute.instanceGroupManagers.create", "compute.instanceGroupManagers.delete",
    "compute.instanceGroupManagers.update", "compute.instances.create",
}  # fmt: skip


def prepare(project):
    """Gives a project what training needs: permissions, roles, and an image."""
    project.permissions["project"] |= PERMISSIONS
    project.roles = ["roles/compute.instanceAdmin.v1", "roles/logging.logWriter"]
    project.images[IMAGE.partition("/")[2]] = {"org.koalarization.tensorflow": tf.__version__}


class Logging(Api):
    """Cloud Logging.

    Attributes:
        entries: all that were written, in their order.
        refusal: what is answered in place of taking one.
        hidden: what is answered in place of showing them.
    """

    def __init__(self):
        super().__init__("logging", "v2", entries_write=self._write, entries_list=self._list)
        self.entries, self.refusal, self.hidden = [], None, None
        self._lock = threading.Lock()

    def said(self):
        """All messages."""
        return [entry["jsonPayload"]["message"] for entry in self.entries]

    def _write(self, found, body):
        if self.refusal:
            raise self.refusal
        with self._lock:
            for entry in body["entries"]:
                moment = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%S.%f}789Z"
                own = {"logName": body["logName"], "resource": body["resource"], "insertId": str(len(self.entries))}
                self.entries.append({"timestamp": moment, **own, **entry})
        return {}

    def _list(self, found, body):
        """As filters are written here: any of some logs, and machines by a regular expression, and a time."""
        form = r'\((.+)\) AND jsonPayload\.instance\.name =~ "([^"]+)"(?: AND timestamp >= "([^"]+)")?'
        logs, machines, since = re.fullmatch(form, body["filter"]).groups()
        if self.hidden:
            raise self.hidden
        names = re.findall(r'logName = "([^"]+)"', logs)
        assert " OR ".join(f'logName = "{name}"' for name in names) == logs
        assert body["resourceNames"] == [f"projects/{PROJECT}"]
        chosen = [
            entry for entry in self.entries
            if entry["logName"] in names and re.search(machines, entry["jsonPayload"]["instance"]["name"])
            and entry["timestamp"] >= (since or "")
        ]  # fmt: skip
        if body["orderBy"] == "timestamp desc":
            chosen.reverse()
        if not body.get("pageToken"):  # as the API answers when it has not looked through all yet
            return {"nextPageToken": "0"}
        start = int(body["pageToken"])
        end = start + body["pageSize"]
        more = {"nextPageToken": str(end)} if end < len(chosen) else {}
        return {"entries": chosen[start:end], **more} if chosen else {}


class Metadata(http.server.ThreadingHTTPServer):
    """The metadata server of one machine.

    Attributes:
        refused: what was asked that it does not have.
    """

    daemon_threads = True

    def __init__(self, name, zone, attributes):
        super().__init__(("127.0.0.1", 0), _MetadataHandler)
        self.refused = []
        token = {"access_token": "a-token", "expires_in": 3599, "token_type": "Bearer"}
        self.values = {
            "project/project-id": PROJECT,
            "instance/id": "4711",
            "instance/name": name,
            "instance/zone": f"projects/{NUMBER}/zones/{zone}",
            "instance/hostname": f"{name}.{zone}.c.{PROJECT}.internal",
            "instance/service-accounts/default/token": json.dumps(token),
            **{f"instance/attributes/{key}": value for key, value in attributes.items()},
        }
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"127.0.0.1:{self.server_address[1]}"


class _MetadataHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        value = self.server.values.get(self.path.removeprefix("/computeMetadata/v1/"))
        if value is None or self.headers.get("Metadata-Flavor") != "Google":
            self.server.refused.append(self.path)
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(value.encode())))
        self.end_headers()
        self.wfile.write(value.encode())


class Machine:
    """A machine that runs the startup script.

    Args:
        name: as Compute Engine has it.
        attributes: its metadata.
        folder: for what it keeps.
        environment: how to reach the network.
        zone: where it is.
    """

    def __init__(self, name, attributes, folder, environment, zone=ZONES[0]):
        self.name, self.folder = name, Path(folder)
        self._metadata = Metadata(name, zone, attributes)
        programs = self.folder / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        container_runtime.install(programs)
        (self.folder / "tmp").mkdir(exist_ok=True)
        for name in ("startup", "shutdown"):
            (self.folder / f"{name}.sh").write_text(attributes[f"{name}-script"])
        self._environment = {
            **os.environ, **environment, "PATH": f"{programs}:{os.environ['PATH']}", "MACHINE": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"), "GCE_METADATA_HOST": self._metadata.address,
        }  # fmt: skip
        self._process = None
        self.boot()

    def boot(self):
        """Starts the script as the machine does when it starts."""
        for marker in ("stopping", "docker-gone"):
            (self.folder / marker).unlink(missing_ok=True)
        with (self.folder / "serial.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["bash", self.folder / "startup.sh"], env=self._environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self):
        """What came to the serial port."""
        return (self.folder / "serial.log").read_text()

    @property
    def refused(self):
        return self._metadata.refused

    def shut_down(self, seconds=30, docker_first=False):
        """Ends it as a machine that is stopped or taken away ends: its shutdown script, Docker, then all the rest.

        Args:
            seconds: that the script may take.
            docker_first: Docker is quicker, and ends the container as it ends itself; else it leaves it alone.
        """
        (self.folder / "stopping").touch()
        if docker_first:
            container_runtime.stop(self.folder, 10)
            (self.folder / "docker-gone").touch()
        script = ["bash", self.folder / "shutdown.sh"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(script, env=self._environment, timeout=seconds, check=not docker_first)
        (self.folder / "docker-gone").touch()
        time.sleep(2)  # in which the startup script is alone
        self.kill()

    def kill(self):
        """Ends all of its processes; some are in groups of their own, all in the session of the script."""
        container_runtime.send(self.folder, signal.SIGKILL)
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(process.name)) == self._process.pid:
                    os.kill(int(process.name), signal.SIGKILL)
        self._process.wait()

    def delete(self):
        """Ends it, with its disk."""
        self.kill()
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)


class Compute(Api):
    """Compute Engine.

    Attributes:
        quotas: limit and usage by metric, of each region.
        global_quotas: the same of all regions together.
        errors: code and message with which machines do not come.
        stuck: names of those that do not; None for all.
        refusals: what methods answer in place of doing anything, by their ID.
        lapses: the same, each of a list once.
        unreachable: zones of which nothing can be seen.
        deaf: groups that are to be deleted are not, though that is promised.
        failure: code and message with which the next group ends.
        late: how often an operation is asked for before it is done.
        start: makes a machine from its name, metadata and zone; or None, and machines are but names.
        templates: as they are, by name.
        groups: as they are, by zone and name.
        made: machines that were made, by name, in the order of their making.
        deleted: names of groups.
    """

    def __init__(self, start=None):
        super().__init__(
            "compute", "v1", machineTypes_aggregatedList=self._types, regions_get=self._region,
            projects_get=lambda found, body: {"name": PROJECT, "quotas": quotas(self.global_quotas)},
            instanceTemplates_insert=self._insert_template, instanceTemplates_delete=self._delete_template,
            instanceTemplates_list=self._list_templates,
            instanceGroupManagers_insert=self._insert_group, instanceGroupManagers_delete=self._delete_group,
            instanceGroupManagers_createInstances=self._create, instanceGroupManagers_aggregatedList=self._groups,
            instanceGroupManagers_get=lambda found, body: self._shown(self._group(found)),
            instanceGroupManagers_list=self._groups_of, zones_list=self._zones,
            instanceGroupManagers_listManagedInstances=self._list, zoneOperations_get=self._operation,
            globalOperations_get=self._operation,
        )  # fmt: skip
        self.start = start
        self.quotas = {"NVIDIA_A100_GPUS": (16, 0), "PREEMPTIBLE_NVIDIA_A100_GPUS": (8, 0)}
        self.global_quotas = {"GPUS_ALL_REGIONS": (16, 0)}
        self.lapses, self.stuck = {}, None
        self._ending = {}  # groups by the operation that deletes them, with their keys
        self.errors, self.refusals, self.late, self.failure, self.deaf = [], {}, 1, None, False
        self.templates, self.groups, self.made, self.deleted, self.unreachable = {}, {}, [], [], ()
        self._waited = {}
        self._lock = threading.RLock()

    def preempt(self, name):
        """Takes a machine away, and makes it anew, as groups do."""
        (group,) = (each for each in self.groups.values() if name in each["machines"])
        group["machines"][name].shut_down()
        group["machines"][name].delete()
        group["machines"][name] = self._start(group, name)

    def _answer(self, verb, target, body):
        path = target.partition("?")[0]
        method = self._find(verb, path)
        if method and (refusal := self.refusals.get(method[0]["id"])):
            raise refusal
        if method and self.lapses.get(method[0]["id"]):
            raise self.lapses[method[0]["id"]].pop()
        with self._lock:
            return super()._answer(verb, target, body)

    def _types(self, found, body):
        (name,) = re.fullmatch(r'name = "([^"]+)"', found["filter"]).groups()
        own = {"name": name, "guestCpus": 4, "accelerators": TYPES.get(name, [])}
        return {
            "items": {
                f"zones/{zone}": {"machineTypes": [own]}
                if name in TYPES
                else {"warning": {"code": "NO_RESULTS_ON_PAGE"}}
                for zone in ZONES
            }
        }

    def _region(self, found, body):
        return {"name": found["region"], "quotas": quotas(self.quotas)}

    def _insert_template(self, found, body):
        if body["name"] in self.templates:
            raise Refusal(409, f"The resource 'instanceTemplates/{body['name']}' already exists", "ALREADY_EXISTS")
        properties = body["properties"]
        _check_maintenance(properties["machineType"], properties["scheduling"])
        self.templates[body["name"]] = body
        return self._begin()

    def _delete_template(self, found, body):
        name = found["instanceTemplate"]
        if name not in self.templates:
            raise Refusal(404, f"The resource 'instanceTemplates/{name}' was not found", "NOT_FOUND")
        if name in [group["template"] for group in self.groups.values()]:
            raise Refusal(400, f"The instance_template resource {name} is already being used", "INVALID_USAGE")
        del self.templates[name]
        return self._begin()

    def _list_templates(self, found, body):
        (pattern,) = re.fullmatch(r'name eq "([^"]+)"', found["filter"]).groups()
        names = [name for name in self.templates if re.fullmatch(pattern, name)]
        return {"items": [{"name": name} for name in names]} if names else {}

    def _insert_group(self, found, body):
        template = body["instanceTemplate"].rpartition("/")[2]
        assert body["instanceTemplate"] == f"projects/{PROJECT}/global/instanceTemplates/{template}"
        key = found["zone"], body["name"]
        if key in self.groups:
            raise Refusal(409, f"{body['name']} already exists", "alreadyExists")
        if template not in self.templates:
            raise Refusal(404, f"{template} was not found", "NOT_FOUND")
        assert body["targetSize"] == 0
        self.groups[key] = {
            "zone": found["zone"],
            "body": body,
            "template": template,
            "machines": {},
            "made": time.time(),
        }
        return self._begin()

    def _create(self, found, body):
        group = self._group(found)
        for each in body["instances"]:
            assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", each["name"])
            assert each["name"] not in group["machines"]
            is_stuck = self.errors and (self.stuck is None or each["name"] in self.stuck)
            group["machines"][each["name"]] = None if is_stuck else self._start(group, each["name"])
        return self._begin()

    def _start(self, group, name):
        items = self.templates[group["template"]]["properties"]["metadata"]["items"]
        self.made.append(name)
        return self.start(name, {item["key"]: item["value"] for item in items}, group["zone"]) if self.start else name

    def _delete_group(self, found, body):
        group = self._group(found)
        self.deleted.append(found["instanceGroupManager"])
        for machine in group["machines"].values():
            if hasattr(machine, "shut_down"):
                threading.Thread(target=lambda each=machine: (each.shut_down(), each.delete()), daemon=True).start()
        operation = self._begin()
        if not self.deaf:
            self._ending[operation["name"]] = (found["zone"], found["instanceGroupManager"]), group
            threading.Timer(1.0, self._end, [operation["name"]]).start()  # if nobody waits for it
        return operation

    def _end(self, operation):
        """A group is gone only when its deletion is done."""
        with self._lock:
            key, group = self._ending.pop(operation, (None, None))
            if key and self.groups.get(key) is group:  # and no later one of its name
                del self.groups[key]

    def _group(self, found):
        group = self.groups.get((found["zone"], found["instanceGroupManager"]))
        if group is None:
            raise Refusal(404, f"{found['instanceGroupManager']} was not found", "NOT_FOUND")
        return group

    def _groups(self, found, body):
        (pattern,) = re.fullmatch(r'name eq "([^"]+)"', found["filter"]).groups()
        items = {f"zones/{zone}": {"warning": {"code": "NO_RESULTS_ON_PAGE"}} for zone in ZONES}
        for (zone, name), group in self.groups.items():
            if re.fullmatch(pattern, name):
                items[f"zones/{zone}"] = {"instanceGroupManagers": [self._shown(group)]}
        for zone in self.unreachable:
            items[f"zones/{zone}"] = {"warning": {"code": "UNREACHABLE", "message": f"{zone} is not reachable"}}
        return {"items": items}

    def _zones(self, found, body):
        return {"items": [{"name": zone} for zone in ZONES]}

    def _groups_of(self, found, body):
        if found["zone"] in self.unreachable:
            raise Refusal(503, f"{found['zone']} is not reachable", "backendError")
        named = self._groups(found, body)["items"][f"zones/{found['zone']}"]
        return {"items": named.get("instanceGroupManagers", [])}

    def _shown(self, group):
        made = datetime.datetime.fromtimestamp(group["made"], datetime.timezone.utc)
        return {
            **{key: group["body"][key] for key in ("name", "description", "instanceTemplate")},
            "creationTimestamp": made.isoformat(timespec="milliseconds"),
        }

    def _list(self, found, body):
        errors = {"errors": {"errors": [{"code": code, "message": message} for code, message in self.errors]}}
        return {
            "managedInstances": [
                {
                    "name": name, "currentAction": "NONE" if machine else "CREATING",
                    **({"instanceStatus": "RUNNING"} if machine else {}),
                    "lastAttempt": errors if self.errors and not machine else {},
                }
                for name, machine in self._group(found)["machines"].items()
            ]
        }  # fmt: skip

    def _begin(self):
        name = f"operation-{len(self._waited)}"
        self._waited[name] = 0
        return {"name": name, "status": "RUNNING"}

    def _operation(self, found, body):
        self._waited[found["operation"]] += 1
        done = self._waited[found["operation"]] > self.late
        if not done:
            return {"name": found["operation"], "status": "RUNNING"}
        self._end(found["operation"])
        if not self.failure:
            return {"name": found["operation"], "status": "DONE"}
        (code, message), self.failure = self.failure, None
        error = {"error": {"errors": [{"code": code, "message": message}]}}
        return {
            "name": found["operation"], "status": "DONE", "httpErrorStatusCode": 403, "httpErrorMessage": "FORBIDDEN",
            **error,
        }  # fmt: skip


def _check_maintenance(machine, scheduling):
    """What may become of a machine when its host is to be maintained, by its type.

    https://cloud.google.com/compute/docs/instances/host-maintenance-overview
    """
    action, is_spot = scheduling.get("onHostMaintenance", "MIGRATE"), scheduling["provisioningModel"] == "SPOT"
    if machine.startswith("e2-") and action == "TERMINATE" and not is_spot:
        raise Refusal(400, "e2 instances do not support onHostMaintenance=TERMINATE unless they are preemptible", "")
    if (TYPES[machine] or is_spot) and action != "TERMINATE":
        raise Refusal(400, "Instances with guest accelerators do not support live migration", "badRequest")


def quotas(values):
    """As the API has them."""
    return [{"metric": name, "limit": limit, "usage": usage} for name, (limit, usage) in values.items()]
