"""A double of Dataflow: takes a job as its API is described, and runs what was staged for it where nothing else is."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.google_apis import Api

# What a worker does with the pipeline that it is handed, on Beam's embedded engine.
_RUN = """
import json, sys
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
import beam_jobs

assert beam_jobs.__file__.startswith(sys.argv[2]), beam_jobs.__file__
worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0  # see beam_jobs/engine.py
with open(sys.argv[1], "rb") as file:
    pipeline = beam_runner_api_pb2.Pipeline.FromString(file.read())
for environment in pipeline.components.environments.values():
    environment.urn, environment.payload = "beam:env:embedded_python:v1", b""
    del environment.dependencies[:]
result = FnApiRunner().run_via_runner_api(pipeline, PipelineOptions(["--direct_num_workers=1"]))
assert result.wait_until_finish() in (None, "DONE")
counters = result.metrics().query(MetricsFilter().with_namespace("pictures"))["counters"]
print(json.dumps({counter.key.metric.name: counter.result for counter in counters}))
"""
_ACTIVE = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING")


class Dataflow(Api):
    """Dataflow.

    Attributes:
        jobs: as they were created.
        said: what the workers said that failed.
    """

    def __init__(self, folder):
        super().__init__(
            "dataflow", "v1b3", projects_jobs_aggregated=self._aggregated,
            projects_locations_jobs_create=self._create, projects_locations_jobs_get=self._get,
            projects_locations_jobs_update=self._update, projects_locations_jobs_messages_list=self._messages,
            projects_locations_jobs_getMetrics=self._metrics,
        )  # fmt: skip
        self.jobs, self.said = [], ""
        self.cloud = None  # the storage in which things are staged
        self.failure = None  # what workers say in place of doing anything; "" for nothing at all, for ever
        self.slow = 0.0  # seconds from when a job is there until its submitter hears of it
        self._folder = Path(folder)
        self._state = "JOB_STATE_PENDING"
        self._counters = {}

    def _create(self, found, job):
        if self.jobs and self.jobs[-1]["name"] == job["name"] and self._state in _ACTIVE:
            return {**self._describe(), "clientRequestId": self.jobs[-1]["clientRequestId"]}
        self.jobs.append(job)
        self._state = "JOB_STATE_PENDING"
        threading.Thread(target=self._run, args=(job,), daemon=True).start()
        time.sleep(self.slow)
        return self._describe()

    def _describe(self):
        job = self.jobs[-1]
        place = {"location": "us-central1", "projectId": "a-project"}
        return {"id": "a-job", "name": job["name"], "currentState": self._state, **place}

    def _aggregated(self, found, body):
        assert "name" not in found, "jobs are not filtered by name"  # so the description of the method
        assert found["filter"] == "ACTIVE"
        return {"jobs": [self._describe()] if self.jobs and self._state in _ACTIVE else []}

    def _get(self, found, body):
        return self._describe()

    def _update(self, found, body):
        self._state = "JOB_STATE_CANCELLED"
        return self._describe()

    def _messages(self, found, body):
        if not self.failure:
            return {}
        message = {"id": "1", "time": "2026-01-01T00:00:00Z", "messageImportance": "JOB_MESSAGE_ERROR"}
        return {"jobMessages": [{**message, "messageText": self.failure}]}

    def _metrics(self, found, body):
        context = {"namespace": "pictures", "step": "s1"}
        return {
            "metrics": [
                {"name": {"origin": "user", "name": name, "context": {**context, **tentative}}, "scalar": number}
                for name, number in self._counters.items()
                for tentative in ({}, {"tentative": "true"})
            ]
        }

    def _run(self, job):
        self._state = "JOB_STATE_RUNNING"
        if self.failure is not None:
            time.sleep(1)
            self._state = "JOB_STATE_FAILED" if self.failure else self._state
            return
        try:
            self._counters = json.loads(self._run_staged(job).splitlines()[-1])
            self._state = "JOB_STATE_DONE"
        except subprocess.CalledProcessError as error:
            self.said = f"{error.cmd}: {error.stderr}"
            self._state = "JOB_STATE_FAILED"
        except Exception as error:
            self.said = repr(error)
            self._state = "JOB_STATE_FAILED"

    def check_job(self, job):
        """Looks whether a job is one that the API allows."""
        self._check("Job", job, "job")

    def check_template(self, metadata):
        """Looks whether the description of a template is one that the API allows."""
        self._check("TemplateMetadata", metadata, "template")

    def staged(self, job):
        """The names of the files that were staged for a job, and where they lie in the bucket."""
        (pool,) = job["environment"]["workerPools"]
        return {package["name"]: package["location"].split("/", 2)[2] for package in pool.get("packages", ())}

    def _run_staged(self, job):
        """Runs a job as a worker of its image does: installs what was staged, and runs the pipeline."""
        bucket = self.cloud.client().bucket("bucket")
        for name, location in self.staged(job).items():
            bucket.blob(location).download_to_filename(self._folder / name)
        url = job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
        bucket.blob(url.removeprefix("gs://bucket/")).download_to_filename(self._folder / "pipeline.pb")
        (self._folder / "run.py").write_text(_RUN)
        packages = [self._folder / name for name in self.staged(job) if name.endswith(".tar.gz")]
        if packages:
            own = str(self._folder / "environment")
            python = self._environment(self._folder / "environment", *packages)
        else:  # for an image of one's own stands what is here
            python, own = sys.executable, os.getcwd()
        variables = {**self.cloud.environment, "PYTHONPATH": "" if packages else own}
        return self._call(python, "run.py", "pipeline.pb", own, **variables)

    def _environment(self, folder, *packages):
        """A Python with what Beam's image holds, and with packages that were staged."""
        lock = Path("requirements.lock").read_text()
        pinned = re.findall(r"^([\w.-]+==[^ \\\n]+(?: ; [^\\\n]+)?)", lock, re.MULTILINE)
        (self._folder / "constraints.txt").write_text("\n".join(pinned))
        uv = (sys.executable, "-m", "uv")
        self._call(*uv, "venv", "--quiet", "--python", sys.executable, folder)
        python = folder / "bin/python"
        install = (*uv, "pip", "install", "--quiet", "--python", python, "--constraints", "constraints.txt")
        self._call(*install, "apache-beam[gcp]", "setuptools")
        self._call(*install, "--no-build-isolation", *packages)
        return python

    def _call(self, *command, **variables):
        environment = {**os.environ, "PYTHONPATH": "", **variables}
        options = {"cwd": self._folder, "env": environment, "check": True, "capture_output": True, "text": True}
        return subprocess.run([str(part) for part in command], **options).stdout
