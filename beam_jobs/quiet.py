"""Keeps Beam's stack traces from a person, where they tell of that person's mistake.

An error crosses from a worker to the driver as text, whatever the engine.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from typing import TextIO

from pipeline.errors import UserError

_USER_ERROR = re.compile(rf"{UserError.__module__}\.{UserError.__name__}: (.*?)(?: \[while running .*)?$", re.MULTILINE)
# These warn of stopping a server, and of what workers do without.
_CHATTY = ("apache_beam.utils.subprocess_server", "apache_beam.runners.portability.local_job_service")


def user_error(text: str) -> str | None:
    """The message of the `UserError` in the text of an error from a worker, if there is one."""
    found = _USER_ERROR.search(text)
    return found[1] if found else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Beam's stack traces of a user's mistake from logs and terminal while the block runs."""
    noise = _Noise()
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    handlers, filter_ = list(logging.getLogger().handlers), _NoTraces(noise)
    for handler in handlers:
        handler.addFilter(filter_)
    try:
        with contextlib.redirect_stderr(_TracelessStream(sys.stderr, noise)):  # type: ignore[type-var]
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(filter_)


class _Noise:
    """Tells Beam's stack traces of an error that is reported as one line from everything else.

    With the first such error the other workers fail too, each in a way of its own.
    """

    def __init__(self) -> None:
        self._failed = False

    def is_trace(self, text: str) -> bool:
        """Whether a printed or logged text is such a stack trace."""
        self._failed = self._failed or user_error(text) is not None
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
