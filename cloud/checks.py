"""Looks for what would make a job or a machine fail, or cost more than it need, before it is asked for."""

import dataclasses
import datetime
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cloud.api import Api, Refused
from pipeline.errors import UserError

_LOGGER = logging.getLogger(__name__)
_CLOCK_OFF = datetime.timedelta(minutes=2)  # of a machine's time
_PROJECTS = "https://cloudresourcemanager.googleapis.com/v3/projects"
_ACCOUNTS = "https://iam.googleapis.com/v1/projects/-/serviceAccounts"
_SERVICES = "https://serviceusage.googleapis.com/v1/projects"
_BUCKETS = "https://storage.googleapis.com/storage/v1/b"
# https://cloud.google.com/storage/docs/locations
_DUAL_REGIONS = {
    "ASIA1": ("asia-northeast1", "asia-northeast2"),
    "EUR4": ("europe-north1", "europe-west4"),
    "NAM4": ("us-central1", "us-east1"),
}
_MULTI_REGIONS = {"ASIA": "asia-", "EU": "europe-", "US": "us-"}
_NOT_IN_EU = ("europe-west2", "europe-west6")  # the multi-region, which is of the Union
_BUCKET_PERMISSIONS = {
    "storage.buckets.get": "roles/storage.legacyBucketReader",  # what stages files looks at the bucket first
    **dict.fromkeys(
        ("storage.objects.create", "storage.objects.delete", "storage.objects.get", "storage.objects.list"),
        "roles/storage.objectAdmin",
    ),
}
# The least that an account needs on a bucket, and what has it, too: the legacy ones come with a role in its project.
_WRITE_ROLES = (
    "roles/storage.objectAdmin", "roles/storage.objectUser", "roles/storage.admin", "roles/storage.legacyObjectOwner",
)  # fmt: skip
_READ_ROLES = ("roles/storage.objectViewer", "roles/storage.legacyObjectReader", *_WRITE_ROLES)
_EVERYBODY = {"allUsers", "allAuthenticatedUsers"}
# The least with which an image can be fetched, and what has it, too.
IMAGE_ROLES = (
    "roles/artifactregistry.reader", "roles/artifactregistry.writer", "roles/artifactregistry.admin",
    "roles/editor", "roles/owner",
)  # fmt: skip
_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1", "docker.distribution.manifest.list.v2", "oci.image.manifest.v1",
        "docker.distribution.manifest.v2",
    )
)  # fmt: skip
_ARCHITECTURE = "amd64"  # of the machines
_IMAGE = re.compile(r"([\w.-]+\.(?:pkg\.dev|gcr\.io)|gcr\.io)/([\w./-]+?)(?::([\w.-]+))?(?:@(sha256:[0-9a-f]{64}))?")
BEAM_LABEL, PYTHON_LABEL = "org.koalarization.beam", "org.koalarization.python"
TENSORFLOW_LABEL = "org.koalarization.tensorflow"


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
        raise UserError(f"project {project} cannot be looked at: {error}") from error
    for permission, role in needed.items():
        if permission not in found.get("permissions", ()):
            raise UserError(
                f"you lack {permission} in project {project}, which {role} has: gcloud projects add-iam-policy-binding "
                f"{project} --member={api.member} --role={role}"
            )


def check_services(api: Api, project: str, names: Sequence[str]) -> None:
    """Looks whether APIs are enabled in a project.

    Raises:
        UserError: one is not. What may not be looked at is logged.
    """
    try:
        found = api.get(
            f"{_SERVICES}/{project}/services:batchGet", names=[f"projects/{project}/services/{name}" for name in names]
        )
    except Refused as error:
        _LOGGER.info("which APIs are enabled in project %s could not be looked up: %s", project, error)
        return
    for service in found.get("services", ()):
        if service.get("state") == "DISABLED":
            name = service["name"].rpartition("/")[2]
            raise UserError(f"{name} is not enabled: gcloud services enable {name} --project={project}")


def check_clock(api: Api) -> None:
    """Looks whether this machine's clock is right, by which the end of a job is counted.

    Args:
        api: which has answered.

    Raises:
        UserError: it is off by minutes.
    """
    if abs(api.ahead) > _CLOCK_OFF:
        minutes = api.ahead.total_seconds() / 60
        raise UserError(
            f"the clock of this machine is {abs(minutes):.0f} minutes {'ahead of' if minutes > 0 else 'behind'} "
            "Google's, and --max_hours would be counted by it; set it right"
        )


def default_account(api: Api, project: str) -> str:
    """The service account of machines for which none is named.

    Raises:
        UserError: the project cannot be looked at.
    """
    try:
        number = api.get(f"{_PROJECTS}/{project}")["name"].rpartition("/")[2]
    except Refused as error:
        raise UserError(f"project {project} cannot be looked at: {error}; or name --service_account_email") from error
    return f"{number}-compute@developer.gserviceaccount.com"


def check_account(api: Api, account: str) -> None:
    """Looks whether whoever is logged in may let machines run as a service account.

    Raises:
        UserError: it is not there, or may not be used.
    """
    permission = "iam.serviceAccounts.actAs"
    try:
        found = api.post(f"{_ACCOUNTS}/{account}:testIamPermissions", {"permissions": [permission]})
    except Refused as error:
        raise UserError(f"service account {account} cannot be looked at: {error}") from error
    if permission not in found.get("permissions", ()):
        raise UserError(
            f"you lack {permission} on {account}: gcloud iam service-accounts add-iam-policy-binding {account} "
            f"--member={api.member} --role=roles/iam.serviceAccountUser"
        )


@dataclasses.dataclass(frozen=True)
class AccountRoles:
    """The roles that the policies of a project, and of a bucket, give a service account, as whom machines run.

    It may have others all the same, by a folder, an organization or a group.

    Attributes:
        account: its address.
        where: it has them, in words.
        grant: the command that gives it one, without whom and which.
        found: the roles; None, where they may not be looked at.
        why: they may not.
    """

    account: str
    where: str
    grant: str
    found: frozenset[str] | None
    why: str = ""

    def warn_without(self, roles: Sequence[str]) -> None:
        """Warns if it has none of some roles, of which the first is the least that works."""
        if self.found is None:
            _LOGGER.info("%s", self._unknown(roles))
        elif self.found.isdisjoint(roles):
            _LOGGER.warning("WARNING: %s", self._lacking(roles))

    def require(self, roles: Sequence[str]) -> None:
        """Looks for one of some roles, of which the first is the least that works.

        Warns where that may not be seen, and of an account with a role of somebody's own making, which may do as well.

        Raises:
            UserError: it has none of them.
        """
        if self.found is None:
            _LOGGER.warning("WARNING: %s; it needs it", self._unknown(roles))
        elif self.found.isdisjoint(roles):
            own = [role for role in self.found if not role.startswith("roles/")]
            if not own:
                raise UserError(self._lacking(roles))
            _LOGGER.warning("WARNING: %s, unless %s will do", self._lacking(roles), min(own))

    def _unknown(self, roles: Sequence[str]) -> str:
        return f"whether {self.account} has {roles[0]} {self.where} could not be looked up: {self.why}"

    def _lacking(self, roles: Sequence[str]) -> str:
        return (
            f"{self.account}, as whom the machines run, lacks {roles[0]} {self.where}: {self.grant} "
            f"--member=serviceAccount:{self.account} --role={roles[0]} --condition=None"
        )


def find_roles(api: Api, project: str, account: str) -> AccountRoles:
    """The roles of a service account in a project, as far as its policy tells."""
    where, grant = f"in project {project}", f"gcloud projects add-iam-policy-binding {project}"
    try:
        policy = api.post(f"{_PROJECTS}/{project}:getIamPolicy", {})
    except Refused as error:
        return AccountRoles(account, where, grant, None, str(error))
    return AccountRoles(account, where, grant, _roles(policy, {f"serviceAccount:{account}"}))


def check_account_objects(
    api: Api, project: str, roles: AccountRoles, written: Iterable[str], read: Iterable[str]
) -> None:
    """Looks whether a service account may use buckets; warns, where that may not be seen.

    Args:
        api: who asks.
        project: whose buckets they are taken for.
        roles: those that the account has there.
        written: names of buckets that it is to write to, and read.
        read: names of those that it is to read.

    Raises:
        UserError: it may not.
    """
    needed = dict.fromkeys(read, _READ_ROLES) | dict.fromkeys(written, _WRITE_ROLES)
    for bucket in sorted(needed):
        _find_bucket_roles(api, bucket, project, roles).require(needed[bucket])


def _find_bucket_roles(api: Api, bucket: str, project: str, roles: AccountRoles) -> AccountRoles:
    found, why = None, roles.why
    if roles.found is not None:
        members = {f"serviceAccount:{roles.account}", *_EVERYBODY}
        kinds = ("viewer", "editor", "owner")
        members |= {f"project{role.title()}:{project}" for role in kinds if f"roles/{role}" in roles.found}
        try:
            found = roles.found | _roles(api.get(f"{_BUCKETS}/{bucket}/iam"), members)
        except Refused as error:
            why = str(error)
    grant = f"gcloud storage buckets add-iam-policy-binding gs://{bucket}"
    return AccountRoles(roles.account, f"on gs://{bucket}", grant, found, why)


def _roles(policy: Mapping[str, Any], members: set[str]) -> frozenset[str]:
    """The roles that a policy gives to any of some members."""
    return frozenset(each["role"] for each in policy.get("bindings", ()) if members & set(each.get("members", ())))


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
        """Whether a region can read it without crossing a border; of a location that is not known, yes."""
        if places := self.places or _DUAL_REGIONS.get(self.location):
            return region in places
        if self.region:
            return region == self.region
        if self.location == "EU" and region in _NOT_IN_EU:
            return False
        return region.startswith(_MULTI_REGIONS.get(self.location, ""))

    @property
    def near(self) -> str:
        """The regions that are in it, in words."""
        if places := self.places or _DUAL_REGIONS.get(self.location):
            return " or ".join(places)
        return self.region or f"one of {_MULTI_REGIONS.get(self.location, '')}..."


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
        raise UserError(
            f"gs://{bucket.name} lies in {bucket.location.lower()}, but the work would be done in {region}: all of its "
            f"bytes would cross regions, which is slow and costs; choose another region ({bucket.near}), or bucket"
        )


def check_objects(api: Api, bucket: str) -> None:
    """Looks whether whoever is logged in may write to a bucket.

    Raises:
        UserError: a permission is missing.
    """
    found = api.get(f"{_BUCKETS}/{bucket}/iam/testPermissions", permissions=list(_BUCKET_PERMISSIONS))
    for permission, role in _BUCKET_PERMISSIONS.items():
        if permission not in found.get("permissions", ()):
            raise UserError(
                f"you lack {permission} on gs://{bucket}: gcloud storage buckets add-iam-policy-binding gs://{bucket} "
                f"--member={api.member} --role={role}"
            )


class Image(NamedTuple):
    """A container image in Artifact Registry.

    Attributes:
        labels: what it says of itself.
        pinned: its name with the digest of what is there now, whatever its tag will name later.
    """

    labels: dict[str, str]
    pinned: str


def find_image(api: Api, image: str, recipe: str) -> Image | None:
    """Looks at a container image in Artifact Registry, or in Container Registry; in any other None.

    Args:
        api: who asks.
        image: its name.
        recipe: the Dockerfile that it can be built from.

    Raises:
        UserError: it is not there, or for other machines.
    """
    named = _IMAGE.fullmatch(image)
    if named is None:
        return None
    host, name, tag, digest = named.groups()
    base = f"https://{host}/v2/{name}"
    try:
        reference = f"{base}/manifests/{digest or tag or 'latest'}"
        digest = digest or api.headers(reference, accept=_MANIFESTS)["Docker-Content-Digest"]
        manifest = api.get(reference, accept=_MANIFESTS)
        if "manifests" in manifest:  # one for each architecture
            platforms = {each["platform"]["architecture"]: each["digest"] for each in manifest["manifests"]}
            own = platforms.get(_ARCHITECTURE) or platforms[min(platforms)]
            manifest = api.get(f"{base}/manifests/{own}", accept=_MANIFESTS)
        config = api.get(f"{base}/blobs/{manifest['config']['digest']}")
        architecture = config["architecture"]
    except (Refused, LookupError, ValueError) as error:
        raise UserError(f"image {image} cannot be looked at: {error}; build it from {recipe}") from error
    if architecture != _ARCHITECTURE:
        raise UserError(
            f"image {image} is for {architecture}, the machines are {_ARCHITECTURE}: build it from {recipe} with "
            f"--platform=linux/{_ARCHITECTURE}"
        )
    return Image(config.get("config", {}).get("Labels") or {}, f"{host}/{name}@{digest}")
