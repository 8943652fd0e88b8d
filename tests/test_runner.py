import contextlib
import fcntl
import io
import itertools
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import traceback

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions
from apache_beam.runners.worker import data_plane

from beam_jobs import engine, quiet, runner
from beam_jobs.blocks import Block
from pipeline import cli
from pipeline.errors import UsageError, UserError
from tests.helpers import encoded, noise


def fail(_):
    raise UserError("the thing; do this")


def crash(_):
    raise ZeroDivisionError("a bug")


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def run(function, mode="multi_threading"):
    def build(pipeline):
        pipeline | beam.Create([1]) | beam.Map(function)

    options = runner.parse_options([f"--direct_running_mode={mode}"])
    runner.run(build, options, progress=lambda: 0, total=1, title="test")


def test_no_element_is_lost_in_a_step_that_yields_for_seconds(tmp_path):
    """Beam's own flush every second, from another thread, loses and tears apart what a step yields meanwhile."""
    count, seconds = tmp_path / "count", 3.5

    def emit(_):
        end = time.monotonic() + seconds
        for number in itertools.count():
            yield number % 7, Block("source", number, b"data" * 10)
            if time.monotonic() > end:
                (tmp_path / "emitted").write_text(str(number + 1))
                return

    def build(pipeline):
        emitted = pipeline | beam.Create([1]) | beam.FlatMap(emit).with_output_types(tuple[int, Block])
        sizes = emitted | beam.GroupByKey() | beam.MapTuple(lambda _, blocks: len(list(blocks)))
        sizes | beam.CombineGlobally(sum) | beam.Map(lambda total: count.write_text(str(total)))

    runner.run(build, runner.parse_options([]), progress=lambda: 0, total=1, title="test")
    assert count.read_text() == (tmp_path / "emitted").read_text()


def test_default_is_the_embedded_runner_on_all_cores():
    options = runner.parse_options([])
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert options.view_as(DirectOptions).direct_num_workers == 0  # all
    assert options.view_as(DirectOptions).direct_running_mode == "multi_threading"


@pytest.mark.parametrize("name", ["FnApiRunner", "fnapirunner", "FnApi", "DirectRunner", "direct"])
def test_the_embedded_engine_has_many_names(name):
    options = runner.parse_options([f"--runner={name}"])
    assert type(engine.create(options, "/dev/null")) is engine.EmbeddedRunner


def test_output_is_checked_whatever_the_case_of_the_runner():
    with pytest.raises(UsageError, match="/data is local, but the workers of PortableRunner run in containers"):
        runner.check_output(runner.parse_options(["--runner=portablerunner"]), "/data")


def test_beam_s_options_are_taken_as_they_are():
    options = runner.parse_options(["--direct_num_workers=3", "--temp_location", "gs://bucket/temp"])
    assert options.view_as(DirectOptions).direct_num_workers == 3
    assert runner.parse_options(["--runner=FlinkRunner", "--parallelism=4"]).view_as(StandardOptions).runner == (
        "FlinkRunner"
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--ouput=x"],
        ["stray"],
        ["--direct_num_workers=two"],
        ["--runner=Foo"],
        ["--runner="],
        ["--direct_num_workers=-1"],
        ["--dry_run=True"],  # Beam's own, which embed would take and not heed
    ],
)
def test_unknown_options_are_refused(argv, capsys):
    with pytest.raises(UsageError) as caught:
        runner.parse_options(argv)
    assert argv[0].split("=")[0] in str(caught.value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("argv", "refused"),
    [
        ([], False),
        (["--runner=PrismRunner"], False),
        (["--runner=PrismRunner", "--environment_type=DOCKER"], True),
        (["--runner=PortableRunner", "--job_endpoint=localhost:1"], True),
        (["--runner=PortableRunner", "--job_endpoint=localhost:1", "--environment_type=EXTERNAL"], False),
        (["--runner=FlinkRunner"], False),
        (["--runner=FlinkRunner", "--environment_type=DOCKER"], True),
        (["--runner=FlinkRunner", "--flink_master=cluster:8081"], True),
        (["--runner=SparkRunner"], False),
        (["--runner=SparkRunner", "--spark_master_url=spark://cluster:7077"], True),
    ],
)
def test_local_output_and_workers_in_containers(argv, refused):
    options = runner.parse_options(argv)
    runner.check_output(options, "gs://bucket/data")
    if refused:
        with pytest.raises(UsageError, match="/x is local, but the workers of .* run in containers"):
            runner.check_output(options, "/x")
    else:
        runner.check_output(options, "/x")


MODES = pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])


@MODES
def test_a_user_s_mistake_in_a_worker_is_one_line_without_traces(mode, capfd, caplog):
    with pytest.raises(UserError, match="^the thing; do this$"):
        run(fail, mode)
    assert capfd.readouterr().err == ""
    assert "Traceback" not in caplog.text


@MODES
def test_a_bug_in_a_worker_keeps_its_trace(mode, capfd):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        run(crash, mode)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_job_that_goes_well_says_nothing_of_its_workers(capfd):
    run(str, "multi_processing")
    assert capfd.readouterr().err == ""


def test_a_worker_that_is_killed_is_one_line(capfd):
    with pytest.raises(UserError, match="^a worker process was ended by SIGKILL, as when memory runs out; start"):
        run(die, "multi_processing")
    assert capfd.readouterr().err == ""


def test_log_handlers_and_stderr_are_as_they_were():
    before = [list(handler.filters) for handler in logging.getLogger().handlers], sys.stderr
    with pytest.raises(UserError):
        run(fail)
    assert ([list(handler.filters) for handler in logging.getLogger().handlers], sys.stderr) == before


def test_progress_bar_on_a_terminal(tmp_path):
    (tmp_path / "one.png").write_bytes(encoded(noise(40, 40)))
    command = [
        sys.executable, "-m", "beam_jobs.preprocess", "--config=configs/demo.py",
        f"--source=images:{tmp_path}/one.png", "--config.dataset.validation_fraction=0", f"--output={tmp_path}/out",
    ]  # fmt: skip
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    with subprocess.Popen(command, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    assert process.returncode == 0
    assert b"preprocess:   0%" in shown
    assert b"6/6" in shown
    assert b"1 train examples in 4 shards" in shown


def test_a_wait_that_is_broken_off_ends_the_job_wherever_it_runs():
    class Result:
        cancelled = False

        def wait_until_finish(self):
            raise KeyboardInterrupt

        def cancel(self):
            self.cancelled = True
            raise RuntimeError("it has ended by itself")

    result = Result()
    with pytest.raises(KeyboardInterrupt):
        runner._wait(result, runner.parse_options([]), lambda: None)
    assert result.cancelled


def held_back(error):
    """What is shown of a block in which a trace is printed, line by line, and which then ends with an error."""
    shown = io.StringIO()
    with contextlib.suppress(type(error)), contextlib.redirect_stderr(shown), quiet.quiet():
        try:
            raise ZeroDivisionError("a bug")
        except ZeroDivisionError:
            traceback.print_exc()
        sys.stderr.write("plain\n")
        raise error
    return shown.getvalue()


def test_traces_are_held_whole_and_shown_unless_the_error_is_one_line():
    assert held_back(UserError("a mistake")) == "plain\n"
    assert held_back(KeyboardInterrupt()) == "plain\n"
    for number in (signal.SIGTERM, signal.SIGINT):
        assert held_back(cli.told(number)) == "plain\n"
    late = cli.Terminated(signal.SIGTERM)
    late.moment += 10  # a trace from before it may be the cause of it
    for shown in (held_back(ValueError()), held_back(late)):
        assert re.fullmatch(r"plain\nTraceback \(most .*\):\n  File (.*\n)+ZeroDivisionError: a bug\n", shown)


def test_a_log_call_that_does_not_fit_stops_nobody():
    seen = []

    class Handler(logging.StreamHandler):
        def handleError(self, record):  # noqa: N802  # the name that logging calls
            seen.append(record.msg)

    handler, root = Handler(io.StringIO()), logging.getLogger()
    before, root.handlers = root.handlers, [handler]
    try:
        with quiet.quiet():
            root.handle(logging.LogRecord("x", logging.ERROR, "", 1, "%d", ("one",), None))
    finally:
        root.handlers = before
    assert seen == ["%d"]


def test_no_stream_of_the_engine_is_flushed_by_another_thread(monkeypatch):
    limits = []
    create = data_plane.ClosableOutputStream.create
    monkeypatch.setattr(
        data_plane.ClosableOutputStream, "create", lambda *args: (limits.append(args[2]), create(*args))[1]
    )
    run(str)
    assert limits
    assert all(limit <= 0 for limit in limits)


@pytest.mark.parametrize("address", ["[::1]:1", "dns:///localhost:1", "", None, "embed"])
def test_addresses_in_other_forms_are_left_to_beam(address):
    assert runner._listens(address)


def test_addresses_that_cannot_be():
    assert not runner._listens(f"{'a' * 70}.com:1")
    assert not runner._listens("localhost:99999999")
