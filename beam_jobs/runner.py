"""Runs a pipeline on the engine that the options name, and says how it goes in a person's terms."""

import argparse
import collections
import contextlib
import copy
import difflib
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NoReturn

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    StandardOptions,
    TestOptions,
)
from apache_beam.runners import create_runner
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineResult
from apache_beam.transforms.environments import DockerEnvironment
from tqdm import tqdm

from beam_jobs import counters, engine, gcs
from beam_jobs.quiet import quiet, user_error
from pipeline import cli, gs
from pipeline.cli import Terminated
from pipeline.errors import UsageError, UserError, one_line

_LOGGER = logging.getLogger(__name__)
# Beam's own default starts by downloading a runner; this one is part of the Python package and uses every core.
_DEFAULTS = (
    "--runner=FnApiRunner",
    "--direct_running_mode=multi_threading",
    "--direct_num_workers=0",
    "--prism_log_level=warn",  # Prism tells of its own start and end
)
# These ask a job server which options it has.
_RUNNERS_WITH_OPTIONS_OF_THEIR_OWN = ("FlinkRunner", "PortableRunner", "PrismRunner", "SparkRunner")
# What Beam says of an engine that it cannot find, download or reach.
_NO_ENGINE = re.compile(r"(Unable to fetch remote|Unable to parse binary URL|java\.net\.ConnectException).*")
_CONNECT_SECONDS = 5.0
_POLL_SECONDS = 0.5
_REST = 20  # times what a look takes is waited until the next: remote storage is slow to ask, and paid for
_LOG_SECONDS = 60.0  # between lines, where there is no terminal for a bar


class TemplateWritten(Exception):
    """The job was not run, but written down for Dataflow to run."""


def parse_options(argv: Sequence[str]) -> PipelineOptions:
    """Reads Beam's options; without `--runner`, all cores of this machine and no download.

    Raises:
        UsageError: an option that Beam does not know, a value that it does not take, or an engine that is not there.
    """
    options = PipelineOptions([*_DEFAULTS, *argv])
    unknown: list[str] = []
    known: list[str] = []

    def inspect(parser: argparse.ArgumentParser) -> None:
        parser.error = _refuse  # type: ignore[method-assign]  # argparse would print all of Beam's options
        unknown.extend(parser.parse_known_args(list(argv))[1])
        known.extend(name for action in parser._actions for name in action.option_strings)

    options.get_all_options(add_extra_args_fn=inspect, retain_unknown_options=True)
    runner, workers = options.view_as(StandardOptions).runner, options.view_as(DirectOptions).direct_num_workers
    try:
        # Beam takes a name in any case, with or without its ending, or with its module; here it is that of the class.
        runner = type(create_runner(runner)).__name__
    except (ValueError, ImportError, AttributeError) as error:
        raise UsageError(f"--runner={runner} cannot be used: {one_line(error)}") from error
    options.view_as(StandardOptions).runner = runner
    template = options.view_as(GoogleCloudOptions).template_location
    if template and not is_dataflow(options):
        raise UsageError(f"--template_location={template} is for --runner=DataflowRunner")
    empty = [argument[2:-1] for argument in argv if re.fullmatch(r"--\w+=", argument)]
    if empty and not template:  # Dataflow's launcher leaves some empty
        raise cli.empty(empty[0])
    if options.view_as(TestOptions).dry_run:
        raise UsageError("this job has no --dry_run")
    if workers < 0:
        raise UsageError(f"--direct_num_workers={workers}; choose a number from 1, or 0 for all cores")
    if unknown and runner not in _RUNNERS_WITH_OPTIONS_OF_THEIR_OWN:
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1, cutoff=0.8)
        raise UsageError(f"unknown option {unknown[0]}" + (f": did you mean {near[0]}?" if near else ""))
    prism = options.view_as(PrismRunnerOptions).prism_location
    if runner == "PrismRunner" and prism and "://" not in prism and not os.path.isfile(prism):
        raise UsageError(f"--prism_location={prism} is no file; 'make engines' builds .engines/prism")
    FileSystems.set_options(options)
    return options


def check_credentials(options: PipelineOptions, *paths: str) -> None:
    """Looks for what paths of Cloud Storage need, before anything is asked of it.

    Raises:
        UserError: there are no credentials.
    """
    for path in paths:
        if gs.is_path(path) and not options.view_as(GoogleCloudOptions).no_auth:
            gcs.check_credentials(path)


def prepare(
    options: PipelineOptions, job: str, output: str, inputs: Sequence[str], units: int, needs_image: bool = False
) -> None:
    """Looks for what would make a job fail before anything is spent on it, and chooses what its engine needs.

    Args:
        options: from `parse_options`.
        job: what it does, in a word.
        output: its directory, absolute.
        inputs: what it reads.
        units: into how many pieces its work is divided.
        needs_image: its workers need more than can be installed when they start.

    Raises:
        UsageError: options that are missing or do not fit.
        UserError: something that is not there, or that is not allowed.
    """
    check_output(options, output)
    check_credentials(options, output, *inputs)
    if is_dataflow(options):
        _dataflow().prepare(options, job, output, [*inputs], units, needs_image)
        _LOGGER.info("%s", _dataflow().describe(options))


def is_dataflow(options: PipelineOptions) -> bool:
    """Whether a job is to run on Dataflow."""
    return options.view_as(StandardOptions).runner == "DataflowRunner"


def cores(options: PipelineOptions) -> int:
    """On how many cores a job runs: those of this machine, or of Dataflow's workers."""
    if is_dataflow(options):
        return _dataflow().cores(options)
    return os.cpu_count() or 1


def check_output(options: PipelineOptions, output: str) -> None:
    """Refuses an output that the workers cannot write to: they would write into their containers, which are deleted.

    Raises:
        UsageError: a local path, and workers that run in containers.
    """
    runner = options.view_as(StandardOptions).runner
    if "://" not in output and _runs_in_containers(options, runner):
        local = ", or workers of this machine with --environment_type=LOOPBACK or EXTERNAL"
        raise UsageError(
            f"{output} is local, but the workers of {runner} run in containers; name a remote directory"
            f"{'' if is_dataflow(options) else local}"
        )


def _runs_in_containers(options: PipelineOptions, runner: str) -> bool:
    if named := options.view_as(PortableOptions).environment_type:
        return named == "DOCKER"
    engine_ = create_runner(runner)
    if not isinstance(engine_, PortableRunner):
        return runner == "DataflowRunner"
    # By where the engine runs; a copy, since it writes that into the options.
    return isinstance(engine_.default_environment(copy.deepcopy(options)), DockerEnvironment)


def check_servers(options: PipelineOptions) -> None:
    """Looks for the servers that the options name: Beam would wait for them, for ever and without a word.

    Raises:
        UserError: nothing listens there.
    """
    named = options.view_as(PortableOptions)
    job, pool = named.job_endpoint, named.environment_config
    if not _listens(job):
        raise UserError(f"nothing listens on --job_endpoint={job}; start the job server, as with 'make flink'")
    # What is local to the engine is so to this program only where the engine runs here.
    if named.environment_type == "EXTERNAL" and _is_local(job) and _is_local(pool) and not _listens(pool):
        raise UserError(
            f"nothing listens on --environment_config={pool}; start the worker pool: python -m "
            f"apache_beam.runners.worker.worker_pool_main --service_port={pool.rpartition(':')[2]}"
        )


def _is_local(address: str | None) -> bool:
    return address is not None and address.startswith(("localhost:", "127.0.0.1:"))


def _listens(address: str | None) -> bool:
    """Whether a server takes connections; true of what is no HOST:PORT, of which Beam has other forms."""
    named = re.fullmatch(r"([\w.-]+):(\d+)", address or "")
    if named is None:
        return True
    try:
        socket.create_connection((named[1], int(named[2])), _CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError):  # of a port or a name that cannot be
        return False
    return True


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"Beam option {message}")


def run(
    build: Callable[[beam.Pipeline], None],
    options: PipelineOptions,
    progress: Callable[[], int],
    total: int,
    title: str,
    unit: str = "shard",
) -> collections.Counter[str]:
    """Builds and runs a pipeline to its end.

    Args:
        build: adds the transforms.
        options: from `parse_options`.
        progress: counts the finished shards; called now and then from another thread.
        total: how many there will be.
        title: of the progress bar.
        unit: what is counted.

    Returns:
        The job's own counters, by name.

    Raises:
        UserError: raised in a worker, an engine that cannot be started, or the job did not succeed.
        TemplateWritten: the options ask for no more.
    """
    name = options.view_as(StandardOptions).runner
    engine.limit_arenas()
    with (
        quiet(),
        _progress_bar(progress, total, title, unit),
        tempfile.NamedTemporaryFile() as worker_log,
        _submitting(options) as let_through,
    ):
        submitted = False
        try:
            pipeline = beam.Pipeline(engine.create(options, worker_log.name), options)
            build(pipeline)
            submitted = True
            result = pipeline.run()
            if template := options.view_as(GoogleCloudOptions).template_location:
                raise TemplateWritten(template)
            state = _wait(result, options, let_through)
            found = counters.read(result)
        except (UserError, TemplateWritten):
            raise
        except Exception as error:
            if message := user_error(str(error)):
                raise UserError(message) from error
            if failure := _NO_ENGINE.search(str(error)):
                raise UserError(
                    f"--runner={name} cannot be started: {failure[0]}; the README's section on engines has commands "
                    "that work"
                ) from error
            if submitted and is_dataflow(options) and (explained := _dataflow().explain(error)):
                raise explained from error
            sys.stderr.write(worker_log.read().decode(errors="replace"))
            raise
    if state not in (None, "DONE"):
        raise UserError(f"the job ended in state {state} on {name}")
    return found


def _dataflow() -> ModuleType:
    from beam_jobs import dataflow  # of the extra gcp

    return dataflow


def _submitting(options: PipelineOptions) -> contextlib.AbstractContextManager[Callable[[], None]]:
    return _dataflow().submitting(options) if is_dataflow(options) else contextlib.nullcontext(lambda: None)


def _wait(result: PipelineResult, options: PipelineOptions, let_through: Callable[[], None]) -> str | None:
    """Waits for the end; a wait that is broken off ends the job, which would go on wherever its engine runs."""
    if is_dataflow(options):
        return _dataflow().wait(result, options, let_through)
    try:
        return result.wait_until_finish()
    except (KeyboardInterrupt, Terminated):
        with contextlib.suppress(Exception):  # it may have ended, or its engine
            result.cancel()
        raise


def describe_speed(done: int, total: int, seconds: float) -> str:
    """How fast a job was, by what it did itself; the rest stood there before."""
    if done == 0:
        return f"all of it stood there and was checked, in {seconds:.0f} s"
    some = "" if done == total else f"{done} of {total} done now, the others stood there; "
    return f"{some}{done / seconds:.1f} images/s in {seconds:.0f} s"


@contextlib.contextmanager
def _progress_bar(progress: Callable[[], int], total: int, title: str, unit: str) -> Iterator[None]:
    """Shows finished shards while the block runs: a bar on a terminal, else a line now and then."""
    done = threading.Event()
    with tqdm(total=total, unit=unit, desc=title, disable=None) as bar:

        def show() -> None:
            if bar.disable:
                _LOGGER.info("%s: %d of %d %ss", title, progress(), total, unit)
            else:
                bar.update(progress() - bar.n)

        def watch() -> None:
            shortest = pause = _LOG_SECONDS if bar.disable else _POLL_SECONDS
            while not done.wait(pause):
                start = time.monotonic()
                with contextlib.suppress(OSError):  # storage that fails now may answer next time
                    show()
                pause = max(shortest, _REST * (time.monotonic() - start))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
            bar.update(total - bar.n)
        finally:
            done.set()
            thread.join()
