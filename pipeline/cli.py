"""What the entry points share: flags, logging, and errors that are one line.

Each command keeps its flags in an `absl.flags.FlagValues` of its own, so that `main(argv)` can be called any number of
times in one process, and nothing below it can read a flag.
"""

import atexit
import contextlib
import difflib
import gc
import logging
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from pipeline import PACKAGES, config
from pipeline.errors import TryAgain, UsageError, UserError, one_line

_CONFIG_FIELD = re.compile(r"--?(?:no)?config\.([^=]+)")
_CONFIG_VALUE = re.compile(r"--?config\.([^=]+)=")
_HELP = {"--help", "-h", "--helpfull", "--helpshort"}
_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TRY_AGAIN = os.EX_TEMPFAIL  # 75
_TOLD_TO_STOP = 128  # and the signal's number: the exit status of a program that was told to stop


class Terminated(BaseException):
    """The process was told to stop.

    Attributes:
        signal: which one told it.
        moment: when it heard of it, as `time.monotonic` has it; the exception may come out of a block long after.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(number)
        self.signal = number
        self.moment = time.monotonic()


class Interrupted(Terminated, KeyboardInterrupt):
    """The process was told to stop by Ctrl-C."""


def told(number: signal.Signals) -> Terminated:
    """What to raise for a signal."""
    return (Interrupted if number is signal.SIGINT else Terminated)(number)


def heard() -> list[signal.Signals]:
    """The signals that tell this process to stop, but for those that it was started deaf to, as by nohup."""
    return [each for each in _HEARD if signal.getsignal(each) is not signal.SIG_IGN]


class HelpRequested(Exception):
    """`--help` was given; the text is the message."""


def launch(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs a command as this program, and ends the program with its exit status, as `run` gives it."""
    status = 0
    _open_what_is_closed()

    def end_at_once() -> None:
        """Ends a program that was told to stop: threads that Beam or TensorFlow still have at work would abort it."""
        if status > _TOLD_TO_STOP:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(end_at_once)  # before all others, so that it is called after them
    status = run(main, sys.argv)
    if status:
        gc.collect()  # what failed may have left pools of threads behind, which complain when the interpreter ends them
    sys.exit(status)


def _open_what_is_closed() -> None:
    """Gives a program that was started without standard output or errors, as by `>&-`, some that nobody reads."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Runs a command and turns its outcome into an exit status.

    Args:
        main: takes the command line, program name first.
        argv: the command line.

    Returns:
        0 on success, 1 for a `UserError` or what the system refuses, 2 for a command line that cannot be understood, 75
        for what may pass, 128 and the signal's number (130 for an interrupt) when it was told to stop, or when nobody
        reads any more what it prints (141). Other exceptions are bugs, and pass through with their traces.
    """
    try:
        with _logging(), _signals():
            _run_or_help(main, argv)
    except UsageError as error:
        _say(f"{error} (--help shows the options)")
        return 2
    except TryAgain as error:
        _say(str(error))
        return _TRY_AGAIN
    except UserError as error:
        _say(str(error))
        return 1
    except OSError as error:  # a disk that is full, storage that does not answer
        has_no_reader = isinstance(error, BrokenPipeError) and _has_no_reader()
        _drop_what_cannot_be_printed()
        if has_no_reader:  # as in `| head`: nobody needs to be told
            return _TOLD_TO_STOP + signal.SIGPIPE
        _say(f"{one_line(error)}; see to the disk or the storage that it is about, then give the command again")
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return _TOLD_TO_STOP + signal.SIGINT
    except Terminated as signal_:
        _say(f"stopped by {signal_.signal.name}")
        return _TOLD_TO_STOP + signal_.signal
    return 0


def _run_or_help(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    try:
        main(_with_flag_files(argv))
    except HelpRequested as help_text:
        print(help_text)
    sys.stdout.flush()  # an error of it is one of the command


def _drop_what_cannot_be_printed() -> None:
    """The interpreter would try again at its end, and print a trace."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_no_reader() -> bool:
    """Whether the standard output is a pipe whose reader has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _with_flag_files(argv: Sequence[str]) -> list[str]:
    """The command line with the content of each `--flagfile` in its place."""
    try:
        return flags.FlagValues().read_flags_from_files(list(argv), force_gnu=False)
    except flags.Error as error:
        raise UsageError(_last_line(error).removeprefix("ERROR:: ")) from error


def _say(message: str) -> None:
    r"""Prints an error as one line, whatever the names in it; a file's may hold a line break."""
    print("error: " + message.replace("\n", "\\n"), file=sys.stderr)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Lets a program that is told to stop clean up as one that is interrupted does."""
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise told(signal.Signals(number))

    before = {number: signal.signal(number, stop) for number in heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Shows what our packages say, and the warnings of others, as plain lines while the block runs."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = [logging.StreamHandler(sys.stderr)]
    root.setLevel(logging.WARNING)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)


def define_config(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds `--config=FILE` and `--config.field=value`.

    Raises:
        UsageError: the command line names no file that can be used, or fields that it does not have.
    """
    if not _HELP & set(argv):
        _check_config_arguments(argv)
    config_flags.DEFINE_config_file(
        "config",
        None,
        "A configuration file, as configs/koalarization.py. Any of its fields can be set: --config.seed=7, "
        "--config.dataset.layout=compact.",
        flag_values=values,
        sys_argv=list(argv),
    )


def parse(values: flags.FlagValues, argv: Sequence[str], help_text: str | None, known_only: bool = False) -> list[str]:
    """Parses a command line.

    Args:
        values: the defined flags.
        argv: the command line, program name first.
        help_text: what the command does; `--help` prints it above the flags.
        known_only: hand back flags that are not defined instead of refusing them.

    Returns:
        What is left: positional arguments and, with `known_only`, unknown flags.

    Raises:
        UsageError: a flag, or a field of the configuration, that cannot be understood.
        HelpRequested: `--help` or `-h` stands on the command line.
    """
    if _HELP & set(argv):
        raise HelpRequested(f"{(help_text or '').strip()}\n\nOptions:\n{_describe(values)}")
    try:
        rest = values(_last_of_each_field(argv), known_only=known_only)[1:]
        _check_empty(values)
        if "config" in values:
            config.check(values.config, f"--config={config_flags.get_config_filename(values['config'])}")
        _check_unknown(rest, values)
    except UserError as error:
        raise UsageError(str(error)) from error
    except Exception as error:  # absl has a class of errors of its own, ml_collections raises any
        raise UsageError(_last_line(error)) from error
    return rest


def parse_flags(values: flags.FlagValues, argv: Sequence[str], help_text: str | None) -> None:
    """Parses a command line that has flags only.

    Raises:
        UsageError: something else, or as `parse`.
        HelpRequested: as `parse`.
    """
    if rest := parse(values, argv, help_text):
        raise UsageError(f"unexpected argument {rest[0]}")


def _check_empty(values: flags.FlagValues) -> None:
    """Refuses what a variable of a shell that is not set leaves, and would be taken for an option that is not given.

    Raises:
        UsageError: the first such.
    """
    for name in values:
        if values[name].present and values[name].value == "":
            raise empty(name)


def empty(name: str) -> UsageError:
    """What is said of an option without a value."""
    return UsageError(f"--{name}= is empty; give it a value, or leave it out")


def _check_unknown(rest: Sequence[str], values: flags.FlagValues) -> None:
    """Refuses what is hardly another program's option, but a slip in one of ours.

    Raises:
        UsageError: the first such.
    """
    for argument in rest:
        name = argument.partition("=")[0]
        if not name.startswith("-"):  # another option's value
            continue
        near = difflib.get_close_matches(name, [f"--{each}" for each in values], n=1, cutoff=0.85)
        if near and near[0] != name:
            raise UsageError(f"unknown option {name}: did you mean {near[0]}?")


def _check_config_arguments(argv: Sequence[str]) -> None:
    """Looks for the configuration file, and in it for the fields that the command line sets."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=values)
    rest = values(list(argv), known_only=True)
    if not values.config:
        raise UsageError("--config is missing: name a configuration file, as --config=configs/koalarization.py")
    names = (match[1] for match in map(_CONFIG_FIELD.match, rest) if match)
    try:
        config.check_names(config.load(values.config), names)
    except UserError as error:
        raise UsageError(str(error)) from error


def _last_of_each_field(argv: Sequence[str]) -> list[str]:
    """The command line without fields that are set again further on: ml_collections would join repeated tuples."""
    fields = [match and match[1] for match in map(_CONFIG_VALUE.match, argv)]
    return [
        argument for place, argument in enumerate(argv) if not fields[place] or fields[place] not in fields[place + 1 :]
    ]


def require(values: flags.FlagValues, *names: str) -> None:
    """Refuses a command line on which a flag has no value.

    Raises:
        UsageError: the first that is missing.
    """
    for name in names:
        if not values[name].value:
            raise UsageError(f"--{name} is missing: {_help(values[name])}")


def _describe(values: flags.FlagValues) -> str:
    lines = []
    for name in sorted(values):
        flag = values[name]
        default = f" (default: {flag.default_as_str})" if flag.default else ""
        lines.append(f"  --{name}: {_help(flag)}{default}")
    return "\n".join(lines)


def _help(flag: flags.Flag) -> str:
    return str(flag.help).splitlines()[0].rstrip(";")


def _last_line(error: Exception) -> str:
    """An exception in one line: its own last, since some carry a whole stack trace in their message."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
