"""Beam's embedded engine as this project runs it: no element lost, and no process of a worker left behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners import PipelineRunner, create_runner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    GrpcServer,
    GrpcWorkerHandler,
    StateServicer,
    WorkerHandler,
)
from apache_beam.runners.runner import PipelineResult
from google.protobuf import json_format, text_format

from pipeline.errors import UserError

_EMBEDDED = ("FnApiRunner", "SwitchingDirectRunner")
_PROCESS_URN = "koalarization:environment:process:v1"
_WORKER = "apache_beam.runners.worker.sdk_worker_main"
# Who stops a job means the driver, which ends its workers itself. (A `preexec_fn` would fork, which gRPC complains of.)
_DEAF_SHELL = ("sh", "-c", 'trap "" INT TERM HUP; exec "$@"', "sh")
_POLL_SECONDS = 0.2
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

    Streams, of the driver and of workers in threads: without the flush of what is unfinished every second. It runs in a
    thread of its own beside the one that writes, with no lock between them: a step that yields elements for longer than
    a second has some of them lost or torn apart (Beam 2.77, `TimeBasedBufferingClosableOutputStream`).

    Processes: see `_ProcessWorker`.
    """

    def __init__(self, worker_log: str):
        super().__init__()
        self._worker_log = worker_log

    def run_via_runner_api(
        self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> PipelineResult:
        """Runs a pipeline; called by Beam."""
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                environment.urn, environment.payload = _PROCESS_URN, self._worker_log.encode()
        before, worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = worker_handlers.DATA_BUFFER_TIME_LIMIT_MS, 0  # never
        try:
            return super().run_via_runner_api(pipeline_proto, options)
        finally:
            worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = before


@WorkerHandler.register_environment(_PROCESS_URN, bytes)
class _ProcessWorker(GrpcWorkerHandler):
    """A worker in a process of its own.

    Other than with Beam's, a process that dies ends the job, which else might wait for it forever; a job that fails
    ends the process, which else would go on with its work; and what the process prints goes to a file.
    """

    def __init__(
        self, log: bytes, state: StateServicer, provision_info: ExtendedProvisionInfo, grpc_server: GrpcServer
    ):
        super().__init__(state, provision_info, grpc_server)
        self._log = log.decode()
        self._closing = threading.Event()

    def start_worker(self) -> None:
        """Called by Beam."""
        control = text_format.MessageToString(self.control_api_service_descriptor())
        options = json_format.MessageToJson(self.provision_info.provision_info.pipeline_options)
        environment = {
            "CONTROL_API_SERVICE_DESCRIPTOR": control, "PIPELINE_OPTIONS": options, "WORKER_ID": self.worker_id
        }  # fmt: skip
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [*_DEAF_SHELL, sys.executable, "-m", _WORKER], env={**os.environ, **environment}, stderr=log
            )
        threading.Thread(target=self._watch, name="watch-worker", daemon=True).start()

    def _watch(self) -> None:
        status = self._process.wait()
        while not self._closing.wait(_POLL_SECONDS):  # again and again: work may be given to it yet
            with contextlib.suppress(RuntimeError):  # work that is given to it right now
                self.control_conn.abort(self._death(status))

    def _death(self, status: int) -> UserError:
        if status < 0:
            return UserError(
                f"a worker process was ended by {signal.Signals(-status).name}, as when memory runs out; start the job "
                "again, if need be with a smaller --direct_num_workers"
            )
        with open(self._log, errors="replace") as log:
            said = [line.strip() for line in log if line.strip()] or ["it said nothing"]
        return UserError(f"a worker process ended with status {status}: {said[-1]}")

    def close(self) -> None:
        """Called by Beam at the end of the job."""
        self._closing.set()
        if sys.exc_info()[0] is not None:  # a job that failed does not wait for the rest of its work
            self._process.kill()
        super().close()

    def stop_worker(self) -> None:
        """Called by Beam when the worker has been told that no more work will come."""
        self._process.wait()


def limit_arenas() -> None:
    """Has threads share their memory: glibc would give dozens of Beam's each a share that it hardly gives back.

    Without another libc's word for it, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 2)
