"""Compute Engine: types of machines, quotas, and groups of machines that it keeps up."""

import concurrent.futures
import contextlib
import datetime
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from google.api_core.exceptions import (
    Conflict,
    GoogleAPICallError,
    GoogleAPIError,
    NotFound,
    ServerError,
    TooManyRequests,
)
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud import compute_v1
from google.protobuf.json_format import ParseError
from requests.exceptions import ChunkedEncodingError, ConnectionError, RequestException, Timeout

from pipeline.errors import UserError, one_line

_SECONDS = 600.0  # that an operation may take
_AT_ONCE = 16  # zones that are asked
# For what can be asked twice: one answer that is lost must not cost machines that were hard to get.
_PATIENT = Retry(
    if_exception_type(TooManyRequests, ServerError, TransportError, ChunkedEncodingError, ConnectionError, Timeout),
    initial=0.5, maximum=10.0, timeout=120.0,
)  # fmt: skip
_NOTHING = "NO_RESULTS_ON_PAGE"  # what a zone says in which there is none
_PREFIX = re.compile(r"^(?:\d{3} )?[A-Z]+ https://\S+: ")  # what Google's client puts before what the service says


def region_of(zone: str) -> str:
    """The region of a zone: us-central1 of us-central1-a."""
    return zone.rpartition("-")[0]


class MachineType(NamedTuple):
    """A type of machine.

    Attributes:
        name: as a2-highgpu-8g.
        gpus: how many GPUs each has.
        gpu_type: theirs, as nvidia-tesla-a100; "" where there is none.
    """

    name: str
    gpus: int
    gpu_type: str


class Group(NamedTuple):
    """A group of machines.

    Attributes:
        name: of the group.
        zone: where it is.
        description: what its maker wrote there.
        template: the name of what its machines are made from.
        made: when it was made, with a time zone.
    """

    name: str
    zone: str
    description: str
    template: str
    made: datetime.datetime


class Machine(NamedTuple):
    """A machine of a group.

    Attributes:
        name: which it keeps when it is made anew.
        status: as Compute Engine has it, RUNNING; "" for none yet.
        action: what the group does with it, as CREATING; NONE where nothing is to be done.
        errors: code and message of each error of the last attempt to make it.
    """

    name: str
    status: str
    action: str
    errors: tuple[tuple[str, str], ...]


class Compute:
    """Compute Engine in one project.

    All methods raise `UserError` for what the service refuses, or when it cannot be reached.

    Args:
        project: its ID.
        credentials: of whoever asks.
    """

    def __init__(self, project: str, credentials: Credentials) -> None:
        self.project = project
        self._types = compute_v1.MachineTypesClient(credentials=credentials)
        self._regions = compute_v1.RegionsClient(credentials=credentials)
        self._projects = compute_v1.ProjectsClient(credentials=credentials)
        self._zones = compute_v1.ZonesClient(credentials=credentials)
        self._templates = compute_v1.InstanceTemplatesClient(credentials=credentials)
        self._groups = compute_v1.InstanceGroupManagersClient(credentials=credentials)

    def machine_types(self, name: str) -> dict[str, MachineType]:
        """The zones that have a type of machine, and the type in each; empty for one that does not exist."""
        request = compute_v1.AggregatedListMachineTypesRequest(project=self.project, filter=f'name = "{name}"')
        found = {}
        with _asking(f"types of machines in project {self.project} cannot be looked up"):
            for scope, types in self._types.aggregated_list(request=request, retry=_PATIENT):
                for each in types.machine_types:
                    gpus = sum(own.guest_accelerator_count for own in each.accelerators)
                    gpu_type = each.accelerators[0].guest_accelerator_type if each.accelerators else ""
                    found[scope.removeprefix("zones/")] = MachineType(each.name, gpus, gpu_type)
        return found

    def quotas(self, region: str) -> dict[str, tuple[float, float]]:
        """What the quotas of a region, and of all regions together, allow, and what of that is used, by metric."""
        with _asking(f"quotas of project {self.project} in {region} cannot be looked up"):
            own = self._regions.get(project=self.project, region=region, retry=_PATIENT)
            of_all = self._projects.get(project=self.project, retry=_PATIENT)
        return {each.metric: (each.limit, each.usage) for each in (*of_all.quotas, *own.quotas)}

    def groups(self, pattern: str) -> tuple[list[Group], str]:
        """The groups whose whole names match a regular expression, and why there may be others; "" if there are none.

        A zone that does not answer hides what is in it, and it may hide all others from who asks for all at once.
        """
        try:
            return self._all_groups(pattern)
        except Unavailable:
            raise
        except UserError:  # there was no answer, again and again
            return self._groups_by_zone(pattern)

    def _groups_by_zone(self, pattern: str) -> tuple[list[Group], str]:
        with _asking(f"zones of project {self.project} cannot be looked up"):
            zones = [each.name for each in self._zones.list(project=self.project, retry=_PATIENT)]

        def ask(zone: str) -> tuple[list[Group], str]:
            request = compute_v1.ListInstanceGroupManagersRequest(
                project=self.project, zone=zone, filter=f'name eq "{pattern}"'
            )
            try:
                with _asking(zone):
                    return [_group(each, zone) for each in self._groups.list(request=request, retry=None)], ""
            except UserError as error:
                return [], str(error)

        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = list(pool.map(ask, zones))
        return [group for groups, _ in answers for group in groups], "; ".join(why for _, why in answers if why)

    def _all_groups(self, pattern: str) -> tuple[list[Group], str]:
        request = compute_v1.AggregatedListInstanceGroupManagersRequest(
            project=self.project, filter=f'name eq "{pattern}"'
        )
        found, hidden = [], []
        with _asking(f"machines of project {self.project} cannot be looked up"):
            for scope, groups in self._groups.aggregated_list(request=request, retry=_PATIENT):
                if groups.warning.code not in ("", _NOTHING):
                    hidden.append(f"{scope}: {groups.warning.message}")
                found += [_group(each, scope.removeprefix("zones/")) for each in groups.instance_group_managers]
        return found, "; ".join(hidden)

    def group(self, name: str, zone: str) -> Group | None:
        """The group of a name in a zone; None, if there is none."""
        with _asking(f"machines of {name} cannot be looked up"):
            try:
                found = self._groups.get(project=self.project, zone=zone, instance_group_manager=name, retry=_PATIENT)
            except NotFound:
                return None
        return _group(found, zone)

    def machines(self, group: str, zone: str) -> list[Machine]:
        """The machines of a group; none, if there is no group."""
        with _asking(f"machines of {group} cannot be looked up"):
            try:
                found = list(
                    self._groups.list_managed_instances(
                        project=self.project, zone=zone, instance_group_manager=group, retry=_PATIENT
                    )
                )
            except NotFound:
                return []
        return sorted(
            Machine(
                each.name or each.instance.rpartition("/")[2], each.instance_status, each.current_action,
                tuple((error.code, error.message) for error in each.last_attempt.errors.errors),
            )
            for each in found
        )  # fmt: skip

    def create(self, requests: Iterable[Any]) -> None:
        """Makes a template, a group and its machines, one after the other; the machines are then on their way.

        Args:
            requests: Google's own, for all of them.

        Raises:
            UserError: there is one of that name, of which nothing was changed; or as for all methods.
        """
        for request in requests:
            with _asking("machines cannot be made"):
                self._create(request)

    def _create(self, request: Any) -> None:
        try:
            if isinstance(request, compute_v1.InsertInstanceTemplateRequest):
                _wait(self._templates.insert(request=request))
            elif isinstance(request, compute_v1.InsertInstanceGroupManagerRequest):
                _wait(self._groups.insert(request=request))
            else:
                _wait(self._groups.create_instances(request=request))
        except Conflict as error:
            raise UserError(
                f"{_said(error)}: somebody makes the same at this moment; try again in some minutes"
            ) from error

    def delete(self, group: Group) -> None:
        """Deletes a group with all of its machines, and its template; what is not there is fine."""
        with _asking(f"{group.name} cannot be deleted"), contextlib.suppress(NotFound):
            _wait(
                self._groups.delete(
                    project=self.project, zone=group.zone, instance_group_manager=group.name, retry=_PATIENT
                )
            )
        self.delete_template(group.template)

    def templates(self, pattern: str) -> list[str]:
        """The templates whose whole names match a regular expression."""
        request = compute_v1.ListInstanceTemplatesRequest(project=self.project, filter=f'name eq "{pattern}"')
        with _asking(f"templates of project {self.project} cannot be looked up"):
            return [each.name for each in self._templates.list(request=request, retry=_PATIENT)]

    def delete_template(self, name: str) -> None:
        """Deletes a template; one that is not there is fine."""
        with _asking(f"template {name} cannot be deleted"), contextlib.suppress(NotFound):
            _wait(self._templates.delete(project=self.project, instance_template=name, retry=_PATIENT))


class Unavailable(UserError):
    """Compute Engine's refusal.

    Attributes:
        reason: a code, as QUOTA_EXCEEDED; "" where it gives none.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def _group(found: compute_v1.InstanceGroupManager, zone: str) -> Group:
    made = datetime.datetime.fromisoformat(found.creation_timestamp)
    return Group(found.name, zone, found.description, found.instance_template.rpartition("/")[2], made)


def _said(error: GoogleAPICallError) -> str:
    return _PREFIX.sub("", one_line(error))


def _wait(operation: Any) -> None:
    """Waits for the end of an operation."""
    try:
        operation.result(timeout=_SECONDS, retry=_PATIENT)
    except GoogleAPICallError as error:
        for each in operation.error.errors:  # which the exception leaves out
            raise Unavailable(each.message, each.code) from error
        raise


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    """Gives the errors of Google's client the class of everyone else's.

    Raises:
        Unavailable: for what the service refuses.
        UserError: it cannot be reached.
    """
    try:
        yield
    except GoogleAPICallError as error:
        reasons = [each.get("reason", "") for each in error.errors if isinstance(each, dict)]
        raise Unavailable(f"{what}: {_said(error)}", (error.reason or "".join(reasons[:1]))) from error
    except Unavailable as error:
        raise Unavailable(f"{what}: {error}", error.reason) from error
    except (
        GoogleAPIError, GoogleAuthError, RequestException, TimeoutError, concurrent.futures.TimeoutError, ParseError,
    ) as error:  # fmt: skip
        raise UserError(f"{what}: {one_line(error)}; try again") from error
