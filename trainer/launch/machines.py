"""The machines of a training job: made together or not at all, and what keeps them from coming in one sentence."""

import datetime
import logging
import re
import time

from cloud.api import Refused
from cloud.compute import Compute, Group, Machine, Unavailable
from pipeline.errors import UserError
from trainer.launch import job
from trainer.launch.job import Job
from trainer.launch.logs import Logs

_LOGGER = logging.getLogger(__name__)
_LOOK_SECONDS = 5.0
_HEAR_SECONDS = 15.0  # a minute's quota of reading logs is small
_MOST = datetime.timedelta(minutes=15)  # that machines may take to come; nobody waits for those of an older group
_SILENT = datetime.timedelta(minutes=10)  # that they may take until their script begins, which is the first it says
_NO_CAPACITY = ("ZONE_RESOURCE_POOL_EXHAUSTED", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "STOCKOUT")
_NO_PERMISSION = (
    "PERMISSION_DENIED", "PERMISSIONS_ERROR", "IAM_PERMISSION_DENIED", "SERVICE_ACCOUNT_ACCESS_DENIED", "forbidden",
)  # fmt: skip
_NO_ADDRESSES = "constraints/compute.vmExternalIpAccess"  # of an organization
_GONE = "the machines were deleted before each of them was heard: stopped, or at their end already; see their logs"
_ACTING_AS = re.compile(r"when acting as '([^']+)'")  # the account of Google's that makes the machines of a group


def refuse_second(compute: Compute, workdir: str) -> list[Group]:
    """Refuses a second job in a directory.

    Returns:
        Groups there whose machines are all gone.

    Raises:
        UserError: machines train there, or are being made, or that cannot be seen.
    """
    groups, hidden = compute.groups(job.group_name(workdir))
    for group in groups:
        if not _is_left_over(compute, group):
            raise UserError(
                f"machines train in {workdir} already, in {group.zone}: 'python -m trainer.launch status' shows them, "
                "'stop' stops them"
            )
    if hidden:
        raise UserError(f"whether machines train in {workdir} already cannot be seen: {hidden}; try again")
    return groups


def _is_left_over(compute: Compute, group: Group) -> bool:
    """Whether nobody trains in a group, and it is not being made, so that nobody is there to delete it."""
    now = datetime.datetime.now(datetime.timezone.utc)
    machines = compute.machines(group.name, group.zone)
    if any(machine.status for machine in machines):
        return False
    # After its time it makes none any more, where there was no room for those that were taken away.
    return now > job.end_of(group.template) + job.GRACE if machines else now > group.made + _MOST


def make(compute: Compute, logs: Logs, chosen: Job) -> None:
    """Makes the machines of a job, all or none, and waits until they run and have said so.

    Raises:
        UserError: they cannot be made, or are not heard.
    """
    _delete_old_templates(compute, chosen.name)
    try:
        compute.create(job.requests(chosen))
        _check_alone(compute, chosen)
        _wait(compute, chosen)
        _listen(compute, logs, chosen)
    except BaseException as error:
        _delete(compute, chosen)
        if isinstance(error, Unavailable):
            raise _explain(chosen, error.reason, str(error)) from error
        raise


def _delete_old_templates(compute: Compute, name: str) -> None:
    """Deletes what former launches have left: of templates whose time is over no machine is made any more."""
    for template in compute.templates(f"{name}-[0-9]+"):
        if job.end_of(template) < datetime.datetime.now(datetime.timezone.utc):
            compute.delete_template(template)


def _check_alone(compute: Compute, chosen: Job) -> None:
    """Looks for a group of the same name in another zone, which was made at the same time.

    Raises:
        UserError: there is one.
    """
    for group in compute.groups(chosen.name)[0]:
        if group.zone != chosen.zone:
            raise UserError(
                f"machines are made for {chosen.workdir} in {group.zone} already; wait for them, or stop them"
            )


def _delete(compute: Compute, chosen: Job) -> None:
    """Deletes what this launch has made, which its template tells, or says that it may be there."""
    stop = f"python -m trainer.launch stop --project={chosen.project} --workdir={chosen.workdir}"
    try:
        _LOGGER.info("deletes what was made")
        group = compute.group(chosen.name, chosen.zone)
        if group and group.template == chosen.template:
            compute.delete(group)
        compute.delete_template(chosen.template)
    except UserError as error:
        _LOGGER.warning("WARNING: %s; machines may be left, which cost: %s", error, stop)
    except BaseException:
        _LOGGER.warning("WARNING: machines may be left, which cost: %s", stop)
        raise


def _wait(compute: Compute, chosen: Job) -> None:
    end, before = time.monotonic() + _MOST.total_seconds(), -1
    while True:
        machines = compute.machines(chosen.name, chosen.zone)
        if errors := [error for machine in machines for error in machine.errors]:
            raise _explain(chosen, *errors[0])
        if not machines:
            raise UserError(_GONE)
        running = sum(machine.status == "RUNNING" for machine in machines)
        if running != before:
            _LOGGER.info("%d of %d machines run", running, chosen.count)
            before = running
        if running == chosen.count:
            return
        if time.monotonic() > end:
            raise UserError(
                f"after {_MOST.total_seconds() / 60:.0f} minutes {running} of {chosen.count} machines run; try again"
            )
        time.sleep(_LOOK_SECONDS)


def _listen(compute: Compute, logs: Logs, chosen: Job) -> None:
    """Waits until each machine has said something: whom nobody hears reaches no API to delete itself by, either."""
    silent = {f"{chosen.name}-{index}" for index in range(chosen.count)}
    end = time.monotonic() + _SILENT.total_seconds()
    _LOGGER.info("waits until each machine has said so in its log; Ctrl-C deletes them all")
    while True:
        group = compute.group(chosen.name, chosen.zone)
        if group is None or group.template != chosen.template:
            raise UserError(_GONE)
        try:
            silent -= {line.machine for line in logs.since(group.made)}
        except UserError as error:
            if isinstance(error, Refused) or time.monotonic() > end:
                _LOGGER.warning("WARNING: whether the machines are heard cannot be seen: %s", error)
                return
            _LOGGER.info("%s", error)  # it may pass
        if not silent:
            _LOGGER.info("%d of %d machines are heard", chosen.count, chosen.count)
            return
        if time.monotonic() > end:
            raise UserError(
                f"{min(silent)} runs but says nothing in {_SILENT.total_seconds() / 60:.0f} minutes: it reaches no API "
                "of Google's (name a --subnetwork with Private Google Access, or drop --nouse_public_ips), "
                f"{chosen.account} lacks roles/logging.logWriter, or the project keeps no logs (its sink _Default)"
            )
        time.sleep(_HEAR_SECONDS)


def _explain(chosen: Job, code: str, message: str) -> UserError:
    """An error of Compute Engine's in one sentence, with what to try next."""
    said = f"{' '.join(message.split())} ({code})" if code else " ".join(message.split())
    if code in _NO_CAPACITY:
        later = "try it later" if chosen.spot else "try --spot, or later"
        advice = f"try --zone={chosen.others[0]}" if chosen.others else later
        return UserError(f"{chosen.zone} has no {chosen.machine.name} to give at the moment; {advice}: {said}")
    if "quota" in code.lower():
        other = "" if "globally" in message else ", or try another region"
        return UserError(f"a quota of {chosen.project} is full; ask for more{other}: {said}")
    if code in _NO_PERMISSION:
        acting = _ACTING_AS.search(message)
        return UserError(
            f"{said}; {f'{acting[1]} needs' if acting else 'you need'} roles/compute.instanceAdmin.v1 in project "
            f"{chosen.project}, and roles/iam.serviceAccountUser on {chosen.account}"
        )
    if "networks/default" in message and not chosen.subnetwork:
        return UserError(
            f"{chosen.project} has no network 'default'; make one, as docs/google-cloud.md shows, and name its "
            f"--subnetwork: {said}"
        )
    if _NO_ADDRESSES in message:
        return UserError(
            f"{chosen.project} gives machines no addresses of the internet; try --nouse_public_ips, with a "
            f"--subnetwork that has Private Google Access: {said}"
        )
    return UserError(said)


def describe(machine: Machine) -> str:
    """The state of a machine, for a person."""
    doing = f", {machine.action}" if machine.action not in ("NONE", "") else ""
    failed = f" ({machine.errors[0][0]})" if machine.errors else ""
    return f"{machine.name}  {machine.status or 'none'}{doing}{failed}"
