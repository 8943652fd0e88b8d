"""Looks for what would make a job or a machine fail, or cost more than it need, before it is asked for."""

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloud.api import Api, Refused
from pipeline.errors import UserError

_LOGGER = logging.getLogger(__name__)
_PROJECTS = "https://cloudresourcemanager.googleapis.com/v3/projects"
_ACCOUNTS = "https://iam.googleapis.com/v1/projects/-/serviceAccounts"
_BUCKETS = "https://storage.googleapis.com/storage/v1/b"
# https://cloud.google.com/storage/docs/locations
_DUAL_REGIONS = {
    "ASIA1": ("asia-northeast1", "asia-northeast2"),
    "EUR4": ("europe-north1", "europe-west4"),
    "NAM4": ("us-central1", "us-east1"),
}
_MULTI_REGIONS = {"ASIA": "asia-", "EU": "europe-", "US": "us-"}
_OBJECTS = ("storage.objects.create", "storage.objects.delete", "storage.objects.get", "storage.objects.list")
_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1", "docker.distribution.manifest.list.v2", "oci.image.manifest.v1",
        "docker.distribution.manifest.v2",
    )
)  # fmt: skip
_IMAGE = re.compile(r"([\w.-]+\.(?:pkg\.dev|gcr\.io)|gcr\.io)/([\w./-]+?)(?::([\w.-]+)|@(sha256:[0-9a-f]{64}))?")
BEAM_LABEL, PYTHON_LABEL = "org.koalarization.beam", "org.koalarization.python"


def check_permissions(api: Api, project: str, needed: Mapping[str, str]) -> None:
    """Looks whether whoever is logged in may do what is needed in a project.

    Args:
        api: who asks.
        project: its ID.
        needed: permissions, and the role that has each.

    Raises:
        UserError: a permission is missing, or the project cannot be seen.
    """
    try:
        found = api.post(f"{_PROJECTS}/{project}:testIamPermissions", {"permissions": list(needed)})
    except Refused as error:
        raise UserError(f"project {project} cannot be looked at: {error}; look at its ID") from error
    for permission, role in needed.items():
        if permission not in found.get("permissions", ()):
            raise UserError(
                f"you lack {permission} in project {project}, which {role} has: gcloud projects add-iam-policy-binding "
                f"{project} --member=user:YOU --role={role}"
            )


def default_account(api: Api, project: str) -> str:
    """The service account of machines for which none is named.

    Raises:
        UserError: the project cannot be looked at.
    """
    number = api.get(f"{_PROJECTS}/{project}")["name"].rpartition("/")[2]
    return f"{number}-compute@developer.gserviceaccount.com"


def check_account(api: Api, project: str, account: str, roles: tuple[str, ...]) -> None:
    """Looks whether a service account may be used, and has a role.

    Args:
        api: who asks.
        project: in which it works.
        account: its address.
        roles: of which it must have one; the first is the least that works.

    Raises:
        UserError: it is not there, may not be used, or has none of the roles. Roles that cannot be seen are logged.
    """
    permission = "iam.serviceAccounts.actAs"
    try:
        found = api.post(f"{_ACCOUNTS}/{account}:testIamPermissions", {"permissions": [permission]})
    except Refused as error:
        raise UserError(f"service account {account} cannot be looked at: {error}; look at its address") from error
    if permission not in found.get("permissions", ()):
        raise UserError(
            f"you lack {permission} on {account}: gcloud iam service-accounts add-iam-policy-binding {account} "
            "--member=user:YOU --role=roles/iam.serviceAccountUser"
        )
    try:
        policy = api.post(f"{_PROJECTS}/{project}:getIamPolicy", {})
    except Refused as error:
        _LOGGER.info("whether %s has %s could not be looked up: %s", account, roles[0], error)
        return
    member = f"serviceAccount:{account}"
    if not any(each["role"] in roles and member in each.get("members", ()) for each in policy.get("bindings", ())):
        raise UserError(
            f"{account}, as whom the workers run, lacks {roles[0]} in project {project}: gcloud projects "
            f"add-iam-policy-binding {project} --member={member} --role={roles[0]}"
        )


class Bucket(NamedTuple):
    """A bucket and where it lies.

    Attributes:
        name: without gs://.
        location: as Cloud Storage has it: US-CENTRAL1, NAM4, US.
        places: the two regions of a dual region that was put together by its owner.
    """

    name: str
    location: str
    places: tuple[str, ...]

    @property
    def region(self) -> str | None:
        """The region, if it lies in one alone."""
        return self.location.lower() if "-" in self.location else None

    def is_in(self, region: str) -> bool:
        """Whether a region can read it without crossing a border."""
        if places := self.places or _DUAL_REGIONS.get(self.location):
            return region in places
        if self.region:
            return region == self.region
        return region.startswith(_MULTI_REGIONS.get(self.location, ""))


def find_bucket(api: Api, name: str) -> Bucket | None:
    """Looks at a bucket; None, and a line in the log, where that is not allowed.

    Raises:
        UserError: there is none.
    """
    try:
        found: dict[str, Any] = api.get(f"{_BUCKETS}/{name}", fields="location,customPlacementConfig")
    except Refused as error:
        if error.status == 404:
            raise UserError(
                f"there is no bucket gs://{name}; make it: gcloud storage buckets create gs://{name} --location=REGION"
            ) from error
        _LOGGER.info("where gs://%s lies could not be looked up: %s", name, error)
        return None
    places = found.get("customPlacementConfig", {}).get("dataLocations", ())
    return Bucket(name, found["location"].upper(), tuple(place.lower() for place in places))


def check_region(bucket: Bucket, region: str) -> None:
    """Looks whether a bucket and a job are in the same region.

    Raises:
        UserError: they are not.
    """
    if not bucket.is_in(region):
        near = bucket.region or "/".join(place.lower() for place in bucket.places or (bucket.location,))
        raise UserError(
            f"gs://{bucket.name} lies in {near}, but the work would be done in {region}: all of its bytes would cross "
            f"regions, which is slow and costs; choose --region={near}, or another bucket"
        )


def check_objects(api: Api, bucket: str) -> None:
    """Looks whether whoever is logged in may write to a bucket.

    Raises:
        UserError: a permission is missing.
    """
    found = api.get(f"{_BUCKETS}/{bucket}/iam/testPermissions", permissions=list(_OBJECTS))
    if missing := [permission for permission in _OBJECTS if permission not in found.get("permissions", ())]:
        raise UserError(
            f"you lack {missing[0]} on gs://{bucket}: gcloud storage buckets add-iam-policy-binding gs://{bucket} "
            "--member=user:YOU --role=roles/storage.objectAdmin"
        )


def image_labels(api: Api, image: str) -> dict[str, str]:
    """The labels of a container image in Artifact Registry.

    Raises:
        UserError: it is not there, or of another registry.
    """
    named = _IMAGE.fullmatch(image)
    if named is None:
        raise UserError(f"image {image} is not in Artifact Registry, as REGION-docker.pkg.dev/PROJECT/REPO/NAME:TAG")
    host, name, tag, digest = named.groups()
    base = f"https://{host}/v2/{name}"
    try:
        manifest = _manifest(api, base, digest or tag or "latest")
        if "manifests" in manifest:  # one for each architecture
            platforms = {each["platform"]["architecture"]: each["digest"] for each in manifest["manifests"]}
            manifest = _manifest(api, base, platforms["amd64"])
        config = api.get(f"{base}/blobs/{manifest['config']['digest']}")
    except (Refused, LookupError) as error:
        raise UserError(f"image {image} cannot be looked at: {error}; build it from docker/beam.Dockerfile") from error
    return config.get("config", {}).get("Labels") or {}


def _manifest(api: Api, base: str, reference: str) -> dict[str, Any]:
    return api.request("GET", f"{base}/manifests/{reference}", headers={"Accept": _MANIFESTS}).json()
