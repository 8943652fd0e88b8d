"""The machines of a training job: made together or not at all, and what keeps them from coming in one sentence."""

import logging
import time

from cloud.compute import Compute, Machine, Taken, Unavailable
from pipeline.errors import UserError
from trainer.launch import job
from trainer.launch.job import Job

_LOGGER = logging.getLogger(__name__)
_LOOK_SECONDS = 5.0
_MOST_SECONDS = 900.0  # that machines may take to come
_NO_CAPACITY = ("ZONE_RESOURCE_POOL_EXHAUSTED", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "STOCKOUT")
_NO_PERMISSION = ("PERMISSION_DENIED", "IAM_PERMISSION_DENIED", "SERVICE_ACCOUNT_ACCESS_DENIED", "forbidden")


def make(compute: Compute, chosen: Job) -> None:
    """Makes the machines of a job, all or none, and waits until they run.

    Raises:
        UserError: they cannot be made.
    """
    try:
        compute.create(job.requests(chosen))
        _wait(compute, chosen)
    except Taken as error:  # it is another launch's, and stays
        raise UserError(
            f"machines are made for {chosen.workdir} already ({error}); wait for them, or stop them"
        ) from error
    except BaseException as error:
        _delete(compute, chosen)
        if isinstance(error, Unavailable):
            raise _explain(compute, chosen, error.reason, str(error)) from error
        raise


def _delete(compute: Compute, chosen: Job) -> None:
    """Deletes what was made, or says that it is there."""
    _LOGGER.info("deletes what was made")
    stop = f"python -m trainer.launch stop --project={chosen.project} --workdir={chosen.workdir}"
    try:
        compute.delete(chosen.name, chosen.zone)
    except UserError as error:
        _LOGGER.warning("WARNING: %s; machines may be left, which cost: %s", error, stop)
    except BaseException:
        _LOGGER.warning("WARNING: machines may be left, which cost: %s", stop)
        raise


def _wait(compute: Compute, chosen: Job) -> None:
    end, before = time.monotonic() + _MOST_SECONDS, -1
    while True:
        machines = compute.machines(chosen.name, chosen.zone)
        if errors := [error for machine in machines for error in machine.errors]:
            raise _explain(compute, chosen, *errors[0])
        if not machines:
            raise UserError(
                "the machines were deleted before they ran: stopped, or at their end already; see their logs"
            )
        running = sum(machine.status == "RUNNING" for machine in machines)
        if running != before:
            _LOGGER.info("%d of %d machines run", running, chosen.count)
            before = running
        if running == chosen.count:
            return
        if time.monotonic() > end:
            raise UserError(
                f"after {_MOST_SECONDS / 60:.0f} minutes {running} of {chosen.count} machines run; try again"
            )
        time.sleep(_LOOK_SECONDS)


def _explain(compute: Compute, chosen: Job, code: str, message: str) -> UserError:
    """An error of Compute Engine's in one sentence, with what to try next."""
    said = f"{' '.join(message.split())} ({code})" if code else " ".join(message.split())
    if code in _NO_CAPACITY:
        zones = sorted(compute.machine_types(chosen.machine.name))
        near = [zone for zone in zones if zone.startswith(f"{chosen.region}-") and zone != chosen.zone]
        advice = f"try --zone={near[0]}" if near else "try it later" if chosen.spot else "try --spot, or later"
        return UserError(f"{chosen.zone} has no {chosen.machine.name} to give at the moment; {advice}: {said}")
    if "quota" in code.lower():
        other = "" if "globally" in message else ", or try another region"
        return UserError(f"a quota of {chosen.project} is full; ask for more{other}: {said}")
    if code in _NO_PERMISSION:
        return UserError(
            f"{said}; you need roles/compute.instanceAdmin.v1 in project {chosen.project}, and "
            f"roles/iam.serviceAccountUser on {chosen.account}"
        )
    return UserError(said)


def describe(machine: Machine) -> str:
    """The state of a machine, for a person."""
    doing = f", {machine.action}" if machine.action not in ("NONE", "") else ""
    failed = f" ({machine.errors[0][0]})" if machine.errors else ""
    return f"{machine.name}  {machine.status or 'none'}{doing}{failed}"
