"""Errors that a person is meant to read."""

import os


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: the thing, the value received, what to do. Entry points print it and exit with status 1;
    below them it is caught only to add to it, or where there is another way.
    """


class UsageError(UserError):
    """A command line that cannot be understood; entry points exit with status 2."""


class TryAgain(UserError):
    """What may pass: the same command may well work the next time; entry points exit with status 75."""


def one_line(error: BaseException) -> str:
    """What an exception of another library says, in one line that is never empty."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(path: str) -> str:
    """A path as text for files and messages; bytes of a name that are not UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")
