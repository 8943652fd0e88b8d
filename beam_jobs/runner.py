"""Runs a pipeline on the engine that the options name, and says how it goes in a person's terms."""

import argparse
import contextlib
import ctypes
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TextIO

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, PortableOptions, StandardOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners import PipelineRunner, create_runner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult
from tqdm import tqdm

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
_EMBEDDED = ("FnApiRunner", "SwitchingDirectRunner")
# Where the workers of an engine run if no --environment_type is given; on this machine, but for these.
_ENVIRONMENTS = {"DataflowRunner": "DOCKER", "PortableRunner": "DOCKER", "SparkRunner": "DOCKER"}
_M_ARENA_MAX = -8  # of glibc's malloc.h
_POLL_SECONDS = 0.5
# An error crosses from a worker to here as text, whatever the engine.
_USER_ERROR = re.compile(rf"{UserError.__module__}\.{UserError.__name__}: (.*?)(?: \[while running .*)?$", re.MULTILINE)


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
    _limit_arenas()
    with _quiet(), _progress_bar(progress, total, title):
        try:
            pipeline = beam.Pipeline(_create_engine(options), options)
            build(pipeline)
            state = pipeline.run().wait_until_finish()
        except UserError:
            raise
        except Exception as error:
            if message := _USER_ERROR.search(str(error)):
                raise UserError(message[1]) from error
            raise
    if state not in (None, "DONE"):
        raise UserError(f"the job ended in state {state} on {options.view_as(StandardOptions).runner}")


def _limit_arenas() -> None:
    """Has threads share their memory: glibc would give dozens of Beam's each a share that it hardly gives back.

    Without another libc's word for it, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 2)


class _EmbeddedRunner(FnApiRunner):
    """Beam's embedded engine without its flush of unfinished outputs every second.

    That runs in a thread of its own beside the one that writes the outputs, with no lock between them: a step that
    yields elements for longer than a second has some of them lost or torn apart (Beam 2.77, data_plane.py,
    `TimeBasedBufferingClosableOutputStream`).
    """

    def run_via_runner_api(
        self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> PipelineResult:
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.EMBEDDED_PYTHON_GRPC:
                environment.payload = b'{"data_buffer_time_limit_ms": -1}'  # 0 would be taken for "not given"
        return super().run_via_runner_api(pipeline_proto, options)


def _create_engine(options: PipelineOptions) -> PipelineRunner:
    name = options.view_as(StandardOptions).runner
    return _EmbeddedRunner() if name in _EMBEDDED else create_runner(name)


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


class _Noise:
    """Tells Beam's stack traces of an error that is reported as one line from everything else.

    With the first such error the other workers fail too, each in a way of its own.
    """

    def __init__(self) -> None:
        self._failed = False

    def is_trace(self, text: str) -> bool:
        """Whether a printed or logged text is such a stack trace."""
        self._failed = self._failed or _USER_ERROR.search(text) is not None
        return self._failed and "Traceback (most recent call last)" in text


class _NoTraces(logging.Filter):
    """Drops log records of such stack traces."""

    def __init__(self, noise: _Noise):
        super().__init__()
        self._noise = noise

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._noise.is_trace(logging.Formatter().format(record))


class _TracelessStream:
    """A text stream that drops such stack traces: Beam's worker prints them besides logging them."""

    def __init__(self, stream: TextIO, noise: _Noise):
        self._stream = stream
        self._noise = noise
        self._dropped = False

    def write(self, text: str) -> int:
        end_of_dropped, self._dropped = self._dropped and text == "\n", self._noise.is_trace(text)
        return len(text) if self._dropped or end_of_dropped else self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Beam's stack traces of a user's mistake from logs and terminal while the block runs."""
    noise = _Noise()
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)  # it warns of stopping its server
    handlers, filter_ = list(logging.getLogger().handlers), _NoTraces(noise)
    for handler in handlers:
        handler.addFilter(filter_)
    try:
        with contextlib.redirect_stderr(_TracelessStream(sys.stderr, noise)):  # type: ignore[type-var]
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(filter_)
