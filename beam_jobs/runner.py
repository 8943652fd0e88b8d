"""Runs a pipeline on the engine that the options name, and says how it goes in a person's terms."""

import argparse
import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, PortableOptions, StandardOptions
from apache_beam.runners import create_runner
from tqdm import tqdm

from beam_jobs import engine
from beam_jobs.quiet import quiet, user_error
from pipeline.errors import UsageError, UserError, one_line

# Beam's own default starts by downloading a runner; this one is part of the Python package and uses every core.
_DEFAULTS = (
    "--runner=FnApiRunner",
    "--direct_running_mode=multi_threading",
    "--direct_num_workers=0",
    "--prism_log_level=warn",  # Prism tells of its own start and end
)
# These ask a job server which options it has.
_RUNNERS_WITH_OPTIONS_OF_THEIR_OWN = ("FlinkRunner", "PortableRunner", "PrismRunner", "SparkRunner")
# Where the workers of an engine run if no --environment_type is given; on this machine, but for these.
_ENVIRONMENTS = {"DataflowRunner": "DOCKER", "PortableRunner": "DOCKER", "SparkRunner": "DOCKER"}
_POLL_SECONDS = 0.5


def parse_options(argv: Sequence[str]) -> PipelineOptions:
    """Reads Beam's options; without `--runner`, all cores of this machine and no download.

    Raises:
        UsageError: an option that Beam does not know, a value that it does not take, or an engine that is not there.
    """
    options = PipelineOptions([*_DEFAULTS, *argv])
    unknown: list[str] = []

    def inspect(parser: argparse.ArgumentParser) -> None:
        parser.error = _refuse  # type: ignore[method-assign]  # argparse would print all of Beam's options
        unknown.extend(parser.parse_known_args(list(argv))[1])

    options.get_all_options(add_extra_args_fn=inspect, retain_unknown_options=True)
    runner, workers = options.view_as(StandardOptions).runner, options.view_as(DirectOptions).direct_num_workers
    try:
        # Beam takes a name in any case, with or without its ending, or with its module; here it is that of the class.
        runner = type(create_runner(runner)).__name__
    except (ValueError, ImportError) as error:
        raise UsageError(f"--runner={runner} cannot be used: {one_line(error)}") from error
    options.view_as(StandardOptions).runner = runner
    if workers < 0:
        raise UsageError(f"--direct_num_workers={workers}; choose a number from 1, or 0 for all cores")
    if unknown and runner not in _RUNNERS_WITH_OPTIONS_OF_THEIR_OWN:
        raise UsageError(f"unknown option {unknown[0]}")
    return options


def check_output(options: PipelineOptions, output: str) -> None:
    """Refuses an output that the workers cannot write to: they would write into their containers, which are deleted.

    Raises:
        UsageError: a local path, and workers that run in containers.
    """
    runner = options.view_as(StandardOptions).runner
    environment = options.view_as(PortableOptions).environment_type or _ENVIRONMENTS.get(runner, "LOOPBACK")
    if environment == "DOCKER" and "://" not in output:
        raise UsageError(
            f"{output} is local, but the workers of {runner} run in containers; name a remote directory, or "
            "workers of this machine with --environment_type=LOOPBACK or EXTERNAL"
        )


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"Beam option {message}")


def run(
    build: Callable[[beam.Pipeline], None],
    options: PipelineOptions,
    progress: Callable[[], int],
    total: int,
    title: str,
) -> None:
    """Builds and runs a pipeline to its end.

    Args:
        build: adds the transforms.
        options: from `parse_options`.
        progress: counts the finished shards; called now and then from another thread.
        total: how many there will be.
        title: of the progress bar.

    Raises:
        UserError: raised in a worker, or the job did not succeed.
    """
    engine.limit_arenas()
    with quiet(), _progress_bar(progress, total, title), tempfile.NamedTemporaryFile() as worker_log:
        try:
            pipeline = beam.Pipeline(engine.create(options, worker_log.name), options)
            build(pipeline)
            with engine.watch_workers():
                state = pipeline.run().wait_until_finish()
        except UserError:
            raise
        except Exception as error:
            if message := user_error(str(error)):
                raise UserError(message) from error
            sys.stderr.write(worker_log.read().decode(errors="replace"))
            raise
    if state not in (None, "DONE"):
        raise UserError(f"the job ended in state {state} on {options.view_as(StandardOptions).runner}")


@contextlib.contextmanager
def _progress_bar(progress: Callable[[], int], total: int, title: str) -> Iterator[None]:
    """Shows finished shards on a terminal while the block runs."""
    done = threading.Event()
    with tqdm(total=total, unit="shard", desc=title, disable=None) as bar:

        def watch() -> None:
            while not done.wait(_POLL_SECONDS):
                bar.update(progress() - bar.n)

        thread = threading.Thread(target=watch, daemon=True)
        if not bar.disable:
            thread.start()
        try:
            yield
            bar.update(total - bar.n)
        finally:
            done.set()
            if thread.is_alive():
                thread.join()
