r"""Trains on machines of Google Cloud: makes them, lets them train, and has them deleted at the end.

    python -m trainer.launch --config=configs/koalarization.py --data=gs://BUCKET/data --workdir=gs://BUCKET/run \
        --machine=a2-highgpu-8g --count=1 --spot
    python -m trainer.launch status --workdir=gs://BUCKET/run
    python -m trainer.launch logs --workdir=gs://BUCKET/run --follow
    python -m trainer.launch stop --workdir=gs://BUCKET/run

Each machine installs NVIDIA's driver, fetches the image and runs `trainer.train`, on all GPUs of all machines together.
One that is stopped for maintenance or taken away is started again, and the run goes on from its last checkpoint. When
it is finished, has failed three times one after the other, or --max_hours have passed, all machines delete
themselves; the same command goes on with a run that is not finished. They train without the program that made them.

Before anything is made it looks whether data and machines share a region, and at permissions, quotas of GPUs, the
image, the configuration and the run; --dry_run ends there, and shows the requests to Compute Engine.
docs/google-cloud.md says which roles are needed.
"""

import logging
import math
import re
import sys
from collections.abc import Sequence

from absl import flags

from pipeline import cli, gs
from pipeline.errors import UsageError, UserError

try:
    from cloud import checks
    from cloud.api import Api
    from cloud.compute import Compute
except ImportError as error:
    sys.exit(f"error: trainer.launch needs {error.name}; install koalarization[launch]")
from trainer.launch import job, machines
from trainer.launch.logs import Line, Logs

_LOGGER = logging.getLogger("trainer.launch")
_SERVICES = ("compute.googleapis.com", "logging.googleapis.com", "storage.googleapis.com")
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z0-9-]+")  # with the domain that some have
_LINES = 100  # of a log that are shown at first


def main(argv: Sequence[str]) -> None:
    """Does what a command line names, or else makes machines that train."""
    if len(argv) > 1 and argv[1] in _COMMANDS:
        _COMMANDS[argv[1]]([argv[0], *argv[2:]])
        return
    if len(argv) > 1 and not argv[1].startswith("-"):
        raise UsageError(f"unknown command {argv[1]}: choose {', '.join(_COMMANDS)}, or give options to launch")
    _launch(argv)


def _launch(argv: Sequence[str]) -> None:
    values = _launch_flags(argv)
    cli.parse_flags(values, argv, __doc__)
    cli.require(values, "data", "workdir", "machine")
    for name in ("data", "workdir"):
        gs.check_directory(name, values[name].value)
    if math.isnan(values.max_hours):
        raise UsageError("--max_hours=nan is no number of hours")
    try:
        from trainer.launch import choose  # TensorFlow, for which the other commands need not wait
    except ImportError as error:
        raise UserError(f"trainer.launch needs {error.name}; install koalarization[launch,trainer]") from error
    api, compute = _log_in(values.project)
    wishes = choose.Wishes(
        zone=values.zone, machine=values.machine, count=values.count, spot=values.spot, max_hours=values.max_hours,
        image=values.image, account=values.service_account_email, subnetwork=values.subnetwork,
        public_ips=values.use_public_ips,
    )  # fmt: skip
    checks.check_services(api, compute.project, _SERVICES)
    checks.check_clock(api)
    machines.refuse_second(compute, values.workdir)
    chosen = choose.choose(api, compute, wishes, values.config, values.data, values.workdir)
    _LOGGER.info("%s", job.describe(chosen))
    if values.dry_run:
        print(job.show(chosen))
        return
    for group in machines.refuse_second(compute, values.workdir):  # once more: another launch may have come since
        _LOGGER.info("deletes %s in %s, which is left without machines", group.name, group.zone)
        compute.delete(group)
    machines.make(compute, Logs(api, chosen.project, chosen.name), chosen)
    _LOGGER.info("all machines run; training goes on without this program. To see and to stop it:")
    for command, more in (("logs", " --follow"), ("status", ""), ("stop", "")):
        _LOGGER.info(
            "  python -m trainer.launch %s --project=%s --workdir=%s%s", command, chosen.project, chosen.workdir, more
        )


def _launch_flags(argv: Sequence[str]) -> flags.FlagValues:
    values = _flags()
    cli.define_config(values, argv)
    flags.DEFINE_string("data", None, "The directory of a dataset on Cloud Storage.", flag_values=values)
    flags.DEFINE_string("machine", None, "The type of the machines, as a2-highgpu-8g.", flag_values=values)
    flags.DEFINE_integer(
        "count", 1, "How many machines train together.", lower_bound=1, upper_bound=1000, flag_values=values
    )
    flags.DEFINE_boolean(
        "spot", False, "Cheap machines, which may be taken away at any time and are then made anew.", flag_values=values
    )
    flags.DEFINE_float(
        "max_hours", 24.0, "When all machines are deleted, whatever they do.", lower_bound=0.01, upper_bound=2000.0,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "zone", None, "Of the machines, as us-central1-a; else one near the data that has them.", flag_values=values
    )
    flags.DEFINE_string(
        "image", None, "Of the container; else REGION-docker.pkg.dev/PROJECT/koalarization/trainer:main.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "service_account_email", None, "As whom the machines run; else Compute Engine's default.", flag_values=values
    )
    flags.DEFINE_string(
        "subnetwork", None, "The subnetwork of the machines, by name or path; else the default network.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "use_public_ips", True, "Without, machines reach Google alone, if their subnetwork lets them.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("dry_run", False, "Looks, shows the requests, and makes nothing.", flag_values=values)
    return values


def _status(argv: Sequence[str]) -> None:
    """Shows the machines of a run and what they said last; without --workdir, of all runs of the project."""
    values = _flags()
    cli.parse_flags(values, argv, _status.__doc__)
    if values.workdir:
        gs.check_directory("workdir", values.workdir)
    api, compute = _log_in(values.project)
    name = job.group_name(values.workdir) if values.workdir else f"{job.PREFIX}.*"
    groups, hidden = compute.groups(name)
    if not groups:
        print(_nothing_there(compute, values.workdir))
    if hidden:
        _LOGGER.warning("WARNING: there may be others, which cannot be seen: %s", hidden)
    for group in groups:
        print(f"{group.description}: {group.name} in {group.zone}")
        lines = _last_lines(Logs(api, compute.project, group.name))
        for machine in compute.machines(group.name, group.zone):
            print(f"  {machines.describe(machine)}  {lines.get(machine.name, '')}".rstrip())


def _last_lines(logs: Logs) -> dict[str, Line]:
    """What each machine said last; none, where that cannot be seen."""
    try:
        return {line.machine: line for line in logs.last(_LINES)}
    except UserError as error:
        _LOGGER.warning("WARNING: what the machines said cannot be seen: %s", error)
        return {}


def _logs(argv: Sequence[str]) -> None:
    """Shows what the machines of a run said last: time in UTC, number of the machine, text."""
    values = _flags()
    flags.DEFINE_boolean("follow", False, "Goes on with what they say, until interrupted.", flag_values=values)
    cli.parse_flags(values, argv, _logs.__doc__)
    cli.require(values, "workdir")
    gs.check_directory("workdir", values.workdir)
    api, compute = _log_in(values.project)
    name = job.group_name(values.workdir)
    logs = Logs(api, compute.project, name)
    lines = logs.last(_LINES)
    for line in lines:
        print(line)
    if not lines and not any(compute.groups(name)):
        print(_nothing_there(compute, values.workdir))
    elif values.follow:
        for line in logs.follow(lines):
            print(line, flush=True)
    elif not lines:
        print(f"machines that train in {values.workdir} have said nothing yet")


def _stop(argv: Sequence[str]) -> None:
    """Deletes the machines of a run, which save its state before; the launch that made them goes on from there."""
    values = _flags()
    cli.parse_flags(values, argv, _stop.__doc__)
    cli.require(values, "workdir")
    gs.check_directory("workdir", values.workdir)
    _, compute = _log_in(values.project)
    name = job.group_name(values.workdir)
    groups, hidden = compute.groups(name)
    for group in groups:
        _LOGGER.info("deletes the machines of %s in %s", group.name, group.zone)
        compute.delete(group)
    if hidden:
        raise UserError(f"machines of {values.workdir} may be left where that cannot be seen: {hidden}; try again")
    for template in compute.templates(f"{name}-[0-9]+"):  # of launches before
        compute.delete_template(template)
    if not groups:
        _LOGGER.info("%s", _nothing_there(compute, values.workdir))


def _nothing_there(compute: Compute, directory: str | None) -> str:
    """Says that no machines train in a directory, or anywhere, and where they do: a name may be mistyped."""
    others = sorted(group.description for group in compute.groups(f"{job.PREFIX}.*")[0]) if directory else []
    where = f"; they do in {', '.join(others)}" if others else ""
    return f"no machines train in {directory or f'project {compute.project}'}{where}"


def _log_in(project: str | None) -> tuple[Api, Compute]:
    """Google's APIs, and Compute Engine in the project that pays.

    Raises:
        UsageError: none is named, and the credentials come with none.
    """
    api = Api()
    if not (found := project or api.project):
        raise UsageError("--project is missing: the ID of the Google Cloud project that pays for the machines")
    if not _PROJECT.fullmatch(found):
        raise UsageError(f"--project={found} is no ID of a project: small letters, digits and hyphens")
    return api, Compute(found, api.credentials)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The directory of the run on Cloud Storage.", flag_values=values)
    flags.DEFINE_string("project", None, "The Google Cloud project; else that of your credentials.", flag_values=values)
    return values


_COMMANDS = {"status": _status, "logs": _logs, "stop": _stop}

if __name__ == "__main__":
    cli.launch(main)
