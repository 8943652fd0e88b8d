import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from absl import flags

from configs import demo, koalarization
from pipeline import cli
from pipeline.errors import UsageError, UserError

_PRINTING = """
import sys
from pipeline import cli
from pipeline.errors import UserError

def main(argv):
    if "--help" in argv:
        raise cli.HelpRequested("how to use it")
    if "--fail" in argv:
        raise UserError("it failed")
    print("1.0")

cli.launch(main)
"""


def parsed(*argv):
    argv = ["program", *argv]
    values = flags.FlagValues()
    cli.define_config(values, argv)
    rest = cli.parse(values, argv, "Help.")
    return values, rest


def test_any_field_can_be_overridden():
    values, rest = parsed(
        "--config=configs/koalarization.py",
        "--config.seed=7",
        "--config.dataset.layout=compact",
        "--config.learning_rates=(0.1,0.2,0.3)",
        "--config.model.feature_weights=/x/y.h5",
        "--noconfig.horizontal_flip",
        "picture.png",
    )
    config = values.config
    assert (config.seed, config.dataset.layout, config.horizontal_flip) == (7, "compact", False)
    assert config.learning_rates == (0.1, 0.2, 0.3)
    assert config.model.feature_weights == "/x/y.h5"
    assert rest == ["picture.png"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config is missing"),
        (["--config=absent.py"], "--config=absent.py cannot be read"),
        (["--config=configs/demo.py", "--config.sede=1"], "no configuration field 'sede': did you mean 'seed'?"),
        (["--config=configs/demo.py", "--config.model.depth=1"], "no configuration field 'model.depth'"),
        (["--config=configs/demo.py", "--config.model={}"], "field 'model' is a section; set one of its fields, as 'm"),
        (["--config=configs/demo.py", "--config.learning_rates=x"], "learning_rates is ('x',) in --config=configs/d"),
        (["--config=configs/demo.py", "--config.learning_rates=(None,)"], "learning_rates is (None,) in"),
        (["--config=configs/demo.py", "--config.epochs_per_learning_rate=(True,)"], "learning_rate is (True,) in"),
        (["--config=configs/demo.py", "--config.epochs_per_learning_rate=(1.5,)"], "learning_rate is (1.5,) in"),
        (["--config=configs/demo.py", "--config.batch_size=many"], "--config.batch_size=many: invalid literal for int"),
        (["--config=configs/demo.py", "--config.seed=4294967296"], "seed is 4294967296; choose a whole number"),
        (["--config.seed=1", "--config=configs/demo.py"], "--config.seed=1 in argv before"),
        (["--config=configs/demo.py", "--verbose"], "Unknown command line flag 'verbose'"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parsed(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "def get_config(:",
        "def get_config(): return 1 / 0",
        "def get_config(): raise KeyError()",
        "def get_config(): return {}['shards']",
        "def get_config(): return None",
        "import ml_collections\ndef get_config(): return ml_collections.ConfigDict()",
        "x = y",
        "import nowhere_at_all",
    ],
)
def test_a_configuration_file_that_fails_is_one_line(tmp_path, source):
    (tmp_path / "config.py").write_text(source)
    with pytest.raises(UsageError) as caught:
        parsed(f"--config={tmp_path}/config.py")
    assert "\n" not in str(caught.value)
    assert str(caught.value)
    assert "shards'" not in str(caught.value) or "fails: KeyError" in str(caught.value)


def test_of_a_field_set_twice_the_last_counts():
    values, _ = parsed("--config=configs/demo.py", "--config.learning_rates=(1,)", "--config.learning_rates=(2,)")
    assert values.config.learning_rates == (2,)


def test_flag_files(tmp_path, capsys):
    (tmp_path / "flags").write_text("--first=1\n--second=2\n")
    seen = []
    assert cli.run(seen.extend, ["program", f"--flagfile={tmp_path}/flags", "--third=3"]) == 0
    assert seen == ["program", "--first=1", "--second=2", "--third=3"]
    assert cli.run(seen.extend, ["program", "--flagfile=/absent"]) == 2
    assert "'/absent'" in capsys.readouterr().err


def test_told_to_stop_a_program_cleans_up_and_says_so(capsys):
    cleaned = []

    def main(argv):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert cli.run(main, ["program"]) == 143
    assert cleaned
    assert capsys.readouterr().err == "error: stopped by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_says_when_it_came(capsys):
    def main(argv):
        start = time.monotonic()
        with pytest.raises(cli.Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        assert start <= caught.value.moment <= time.monotonic()
        raise caught.value

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background do not have
    try:
        assert cli.run(main, ["program"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "error: interrupted\n"


def test_nohup_is_heeded():
    def main(argv):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.05)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.run(main, ["program"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_is_one_line_whatever_it_names(capsys):
    def main(argv):
        raise UserError("two\nlines.jpg cannot be read")

    assert cli.run(main, ["program"]) == 1
    assert capsys.readouterr().err == "error: two\\nlines.jpg cannot be read\n"


def test_outcomes_become_statuses(capsys):
    def failing(error):
        def main(argv):
            raise error

        return main

    assert cli.run(lambda argv: None, ["program"]) == 0
    assert cli.run(failing(UserError("the thing")), ["program"]) == 1
    assert cli.run(failing(UsageError("the flag")), ["program"]) == 2
    assert cli.run(failing(KeyboardInterrupt()), ["program"]) == 130
    assert capsys.readouterr().err == (
        "error: the thing\nerror: the flag (--help shows the options)\nerror: interrupted\n"
    )
    with pytest.raises(ZeroDivisionError):  # a bug keeps its stack trace
        cli.run(failing(ZeroDivisionError()), ["program"])


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_output_that_nobody_reads_ends_a_program_without_a_word(argument):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert _print_to(writer, argument) == (141, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--version", 0), ("--fail", 1)])
def test_a_program_without_outputs_does_its_work(closed, argument, status):
    command = f"exec {sys.executable} -c '{_PRINTING}' {argument} {closed}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert result.returncode == status
    assert "Traceback" not in result.stderr


def test_a_pipe_of_its_own_that_breaks_is_an_error(capfd):
    def main(argv):
        raise BrokenPipeError("a worker has gone")

    assert cli.run(main, ["program"]) == 1
    assert "a worker has gone" in capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_output_that_cannot_be_written_is_an_error(argument):
    with open("/dev/full", "w") as full:
        status, error = _print_to(full.fileno(), argument)
    assert status == 1
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert error.count("\n") == 1


def _print_to(file, argument):
    """The exit status and the errors of a program that prints."""
    result = subprocess.run(
        [sys.executable, "-c", _PRINTING, argument],
        stdout=file,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize("program", ["trainer.evaluate", "beam_jobs.preprocess"])
def test_an_interrupt_while_modules_are_loaded_is_one_line(program, tmp_path):
    for package in ("tensorflow", "apache_beam"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)")
    command = [sys.executable, "-m", program, "--help"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, preexec_fn=_hear_interrupts, **pipes) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "error: interrupted\n"
    assert process.returncode == -signal.SIGINT  # 130 in a shell


def _hear_interrupts():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background do not


def test_demo_is_a_variant_of_the_recipe():
    recipe, small = (json.loads(module.get_config().to_json_best_effort()) for module in (koalarization, demo))
    assert recipe.keys() == small.keys()
    for section in ("dataset", "model"):
        assert recipe[section].keys() == small[section].keys()


def test_the_recipe_is_the_report_s():
    config = koalarization.get_config()
    assert (config.learning_rates, config.epochs_per_learning_rate) == ((1e-3, 1e-4), (10, 15))
    assert (config.batch_size, config.dataset.resize_mode, config.dataset.layout) == (32, "stretch", "full")
    assert (config.dataset.validation_fraction, config.model.feature_weights) == (0.1, "imagenet")


@pytest.mark.parametrize("program", ["beam_jobs.preprocess", "trainer.train", "trainer.colorize"])
def test_help_teaches_and_programs_are_quiet(program):
    result = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, text=True, check=True)
    assert f"python -m {program} --" in result.stdout
    assert "Options:" in result.stdout
    assert result.stderr == ""
