"""Ctrl-C while the modules of a program are loaded, which takes seconds, is one line, as later (`pipeline.cli`)."""

import sys
from types import TracebackType


def keep_brief(packages: tuple[str, ...]) -> None:
    """Has an interrupt that nobody catches leave no trace, if this process runs a module of some packages.

    Args:
        packages: whose modules are programs, as in `python -m PACKAGE.PROGRAM`.
    """
    _, _, named = " ".join(sys.orig_argv).partition(" -m ")
    if named.split(" ")[0].split(".")[0] in packages:
        sys.excepthook = _say


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("error: interrupted\n")  # Python ends as one that was interrupted
    else:
        sys.__excepthook__(kind, error, trace)
