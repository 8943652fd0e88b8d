"""A Google Cloud project of one's own: who may do what in it, its images, and Dataflow."""

import json

from tests.google_apis import Api, Refusal

PROJECT, NUMBER = "a-project", "123456789"
ACCOUNT = f"{NUMBER}-compute@developer.gserviceaccount.com"


class Registry:
    """Artifact Registry: images by name and tag, with their labels."""

    host = "us-central1-docker.pkg.dev"

    def __init__(self):
        self.labels = {}
        self.architectures = {}  # by name, where it is another one

    def takes(self, host, verb, path):
        return host == self.host

    def __call__(self, verb, target, headers, body):
        """An index of platforms, a manifest of one, its configuration: as the Open Container Initiative has it."""
        _, _, rest = target.partition("/v2/")
        name, kind, reference = rest.rsplit("/", 2)
        labels = self.labels.get(f"{name}:{reference}" if kind == "manifests" and ":" not in reference else name)
        if labels is None:
            return 404, {"Content-Type": "application/json"}, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'
        self.labels[name] = labels  # of the digests below
        if verb == "HEAD":
            assert kind == "manifests"
            return 200, {"Docker-Content-Digest": "sha256:" + "c" * 64}, b""
        if kind == "blobs":
            architecture = self.architectures.get(name, "amd64")
            answer = {"architecture": architecture, "os": "linux", "config": {"Labels": labels}}
        elif ":" in reference:
            answer = {"config": {"digest": "sha256:" + "b" * 64}}
        else:
            platform = {"architecture": self.architectures.get(name, "amd64"), "os": "linux"}
            answer = {"manifests": [{"digest": "sha256:" + "a" * 64, "platform": platform}]}
        if kind == "manifests":
            assert "application/vnd.oci.image.index.v1+json" in headers["Accept"]
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


class Project:
    """What APIs say of a project.

    Attributes:
        permissions: that whoever asks has in the project, on its service account, and on its buckets.
        disabled: APIs.
        roles: of the service account; None, where they are not to be seen.
        bucket_roles: who has which on each bucket, by role; None, where that is not to be seen.
        own_bucket_roles: the same of buckets on which others have them, by name.
        images: labels by name and tag.
        architectures: by name, where it is not amd64.
        locations: of buckets, by name.
        services: what answers.
    """

    def __init__(self, *more):
        self.permissions = {
            "project": {
                "dataflow.jobs.cancel", "dataflow.jobs.create", "dataflow.jobs.get", "dataflow.jobs.list",
                "dataflow.messages.list", "dataflow.metrics.get",
            },
            "account": {"iam.serviceAccounts.actAs"},
            "bucket": {
                "storage.buckets.get", "storage.objects.create", "storage.objects.delete", "storage.objects.get",
                "storage.objects.list",
            },
        }  # fmt: skip
        self.disabled = set()
        self.roles = ["roles/dataflow.worker"]
        self.bucket_roles = {"roles/storage.objectAdmin": f"serviceAccount:{ACCOUNT}"}
        self.own_bucket_roles = {}
        self.locations = {"bucket": "US-CENTRAL1"}
        registry = Registry()
        self.images, self.architectures = registry.labels, registry.architectures
        self.services = [
            Api(
                "cloudresourcemanager", "v3", projects_testIamPermissions=self._test_project, projects_get=self._get,
                projects_getIamPolicy=self._policy,
            ),
            Api(
                "iam", "v1",
                projects_serviceAccounts_testIamPermissions=lambda _, body: self._test("account", body["permissions"]),
            ),
            Api("serviceusage", "v1", services_batchGet=self._services),
            Api(
                "storage", "v1", buckets_get=self._bucket,
                buckets_testIamPermissions=self._test_bucket, buckets_getIamPolicy=self._bucket_policy,
            ),
            registry,
            *more,
        ]  # fmt: skip

    def _test_project(self, found, body):
        if found["projectsId"] != PROJECT:
            raise Refusal(403, f"The caller does not have permission on {found['projectsId']}", "PERMISSION_DENIED")
        return self._test("project", body["permissions"])

    def _test_bucket(self, found, body):
        self._bucket(found, body)
        return self._test("bucket", found["permissions"])

    def _test(self, what, asked):
        return {"permissions": [each for each in asked if each in self.permissions[what]]}

    def _services(self, found, body):
        states = {True: "DISABLED", False: "ENABLED"}
        names = {name: name.rpartition("/")[2] for name in found["names"]}
        return {"services": [{"name": name, "state": states[own in self.disabled]} for name, own in names.items()]}

    def _get(self, found, body):
        return {"name": f"projects/{NUMBER}", "projectId": PROJECT}

    def _policy(self, found, body):
        if self.roles is None:
            raise Refusal(403, "The caller does not have permission", "PERMISSION_DENIED")
        return {"bindings": [{"role": role, "members": [f"serviceAccount:{ACCOUNT}"]} for role in self.roles]}

    def _bucket_policy(self, found, body):
        self._bucket(found, body)
        roles = self.own_bucket_roles.get(found["bucket"], self.bucket_roles)
        if roles is None:
            raise Refusal(403, "no storage.buckets.getIamPolicy", "forbidden")
        return {"bindings": [{"role": role, "members": [member]} for role, member in roles.items()]}

    def _bucket(self, found, body):
        if found["bucket"] not in self.locations:
            raise Refusal(404, "The specified bucket does not exist.", "NOT_FOUND")
        location = self.locations[found["bucket"]]
        return {"name": found["bucket"], "location": location, "softDeletePolicy": {"retentionDurationSeconds": "0"}}

    def refused(self):
        """What was asked of the APIs that they do not know."""
        return [line for service in self.services for line in getattr(service, "refused", ())]
