"""Beam's embedded engine as this project runs it, and what its workers need."""

import contextlib
import ctypes
import shlex
import signal
import threading
from collections.abc import Iterator

import grpc
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners import PipelineRunner, create_runner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult

from pipeline.errors import UserError

_EMBEDDED = ("FnApiRunner", "SwitchingDirectRunner")
_M_ARENA_MAX = -8  # of glibc's malloc.h


def create(options: PipelineOptions, worker_log: str) -> PipelineRunner:
    """The engine that `--runner` names.

    Args:
        options: from `runner.parse_options`.
        worker_log: a file for what worker processes of the embedded engine print.
    """
    name = options.view_as(StandardOptions).runner
    return EmbeddedRunner(worker_log) if name in _EMBEDDED else create_runner(name)


class EmbeddedRunner(FnApiRunner):
    """Beam's embedded engine, changed in two points.

    Threads: without the flush of unfinished outputs every second. That runs in a thread of its own beside the one that
    writes the outputs, with no lock between them: a step that yields elements for longer than a second has some of them
    lost or torn apart (Beam 2.77, data_plane.py, `TimeBasedBufferingClosableOutputStream`).

    Processes: what they print goes to a file, for each tells of its own start, and of an error that the driver reports
    as well.
    """

    def __init__(self, worker_log: str):
        super().__init__()
        self._worker_log = worker_log

    def run_via_runner_api(
        self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> PipelineResult:
        """Runs a pipeline; called by Beam."""
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.EMBEDDED_PYTHON_GRPC:
                environment.payload = b'{"data_buffer_time_limit_ms": -1}'  # 0 would be taken for "not given"
            elif environment.urn == python_urns.SUBPROCESS_SDK:  # its payload is a shell's command
                environment.payload += f" 2>>{shlex.quote(self._worker_log)}".encode()
        return super().run_via_runner_api(pipeline_proto, options)


@contextlib.contextmanager
def watch_workers() -> Iterator[None]:
    """Ends the block when a worker process dies, for which Beam might wait forever.

    Raises:
        UserError: one died.
    """
    before, main, lost = threading.excepthook, threading.get_ident(), threading.Event()

    def hook(failure: threading.ExceptHookArgs) -> None:
        if "Worker subprocess exited" in str(failure.exc_value):
            if not lost.is_set():
                lost.set()
                signal.pthread_kill(main, signal.SIGINT)
        elif not isinstance(failure.exc_value, grpc.RpcError):  # a connection that was lost with the worker
            before(failure)

    threading.excepthook = hook
    try:
        yield
    except BaseException as error:
        if lost.is_set() or "Channel closed prematurely" in str(error):
            raise UserError(
                "a worker process was killed, or ran out of memory; start the job again, where memory is short with a "
                "smaller --direct_num_workers"
            ) from error
        raise
    finally:
        threading.excepthook = before


def limit_arenas() -> None:
    """Has threads share their memory: glibc would give dozens of Beam's each a share that it hardly gives back.

    Without another libc's word for it, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 2)
