"""What the entry points share: flags, logging, and errors that are one line.

Each command keeps its flags in an `absl.flags.FlagValues` of its own, so that `main(argv)` can be called any number of
times in one process, and nothing below it can read a flag.
"""

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import koalarization
from pipeline.errors import UsageError, UserError

_LARGEST_SEED = 2**32 - 1  # that Keras takes
_PACKAGES = ("pipeline", "beam_jobs", "trainer", "tools")


class HelpRequested(Exception):
    """`--help` was given; the text is the message."""


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Runs a command and turns its outcome into an exit status.

    Args:
        main: takes the command line, program name first.
        argv: the command line.

    Returns:
        0 on success, 1 for a `UserError`, 2 for a command line that cannot be understood, 130 when interrupted. Other
        exceptions are bugs and pass through with their stack trace.
    """
    try:
        with _logging():
            main(argv)
    except HelpRequested as help_text:
        print(help_text)
    except UsageError as error:
        print(f"error: {error} (--help shows the options)", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Shows what our packages say, and the warnings of others, as plain lines while the block runs."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = [logging.StreamHandler(sys.stderr)]
    root.setLevel(logging.WARNING)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)


def define_config(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Adds `--config=FILE` and `--config.field=value`."""
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
        UsageError: a flag, a configuration file or a field of it that cannot be understood.
        HelpRequested: `--help` or `-h` stands on the command line.
    """
    if {"--help", "-h", "--helpfull", "--helpshort"} & set(argv):
        raise HelpRequested(f"{(help_text or '').strip()}\n\nOptions:\n{_describe(values)}")
    try:
        rest = values(list(argv), known_only=known_only)[1:]
    except (KeyError, AttributeError) as error:
        raise UsageError(_config_failure(error, argv) or _unknown_field(error)) from error
    except Exception as error:  # a configuration file is a program, and may fail in any way
        raise UsageError(_config_failure(error, argv) or _last_line(error)) from error
    if "config" in values:
        _check_config(values)
    return rest


def _check_config(values: flags.FlagValues) -> None:
    if values["config"].value is None:
        raise UsageError("--config is missing: name a configuration file, as --config=configs/koalarization.py")
    path, config = config_flags.get_config_filename(values["config"]), values.config
    if not isinstance(config, ConfigDict):  # what a file that is not there, or cannot be read, leaves
        raise UsageError(f"--config={path} cannot be read; name a configuration file, as configs/koalarization.py")
    if missing := sorted(_fields(koalarization.get_config()) - _fields(config)):
        raise UsageError(f"--config={path} has no field '{missing[0]}'; start from configs/koalarization.py")
    if not 0 <= config.seed <= _LARGEST_SEED:
        raise UsageError(f"seed is {config.seed}; choose a whole number from 0 to {_LARGEST_SEED}")


def _fields(config: ConfigDict) -> set[str]:
    """The names of all fields, those of a section as `section.field`."""
    names = set()
    for name, value in config.items():
        names |= {f"{name}.{inner}" for inner in value} if isinstance(value, ConfigDict) else {name}
    return names


def _config_failure(error: Exception, argv: Sequence[str]) -> str | None:
    """What went wrong within the configuration file itself, if that is where it did."""
    paths = [argument.split("=", 1)[1].split(":")[0] for argument in argv if argument.startswith("--config=")]
    frames = traceback.extract_tb(error.__traceback__)
    if not paths or not any(frame.filename == paths[-1] for frame in frames):
        return None
    return f"--config={paths[-1]} fails: {type(error).__name__}: {_last_line(error)}"


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


def _unknown_field(error: Exception) -> str:
    r"""ml_collections says `'sed'` or, where a name is near, `'sed'\nDid you mean "seed" instead of "sed"?`."""
    field, *advice = re.findall(r"\w[\w ]*", str(error.args[0]).replace("\\n", "\n"))
    return f"no configuration field '{field}'" + (f": did you mean '{advice[1]}'?" if advice else "")


def _last_line(error: Exception) -> str:
    """An exception in one line: its own last, since some carry a whole stack trace in their message."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
