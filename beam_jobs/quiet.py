"""Keeps Beam's stack traces from a person, where they tell of that person's mistake or decision."""

import contextlib
import logging
import math
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import TextIO

from pipeline.cli import Terminated
from pipeline.errors import UserError

# An error crosses from a worker to the driver as text, whatever the engine.
_USER_ERROR = re.compile(rf"{UserError.__module__}\.{UserError.__name__}: (.*?)(?: \[while running .*)?$", re.MULTILINE)
_TRACE = "Traceback (most recent call last)"
_NOTICE_SECONDS = 2.0  # what a process may take to hear that it was told to stop, while others hear of it
# Of which nobody can make anything: of a module that is there all the same (Beam 2.77, ml/inference/base.py).
_NOISE = ("Resource module is not available",)


def user_error(text: str) -> str | None:
    """The message of the `UserError` in the text of an error from a worker, if there is one."""
    found = _USER_ERROR.search(text)
    return found[1] if found else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back the stack traces that are printed, logged, or end a thread in the block.

    They are dropped if the block ends with an error that is reported as one line, for they tell of it, or of what came
    of it in other workers; otherwise they are printed when it ends. Of a block that is interrupted only those that came
    of the interrupt are dropped: an older one may tell why it was waited for in vain.
    """
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)  # it warns of stopping its server
    logging.getLogger("apache_beam.utils.retry").setLevel(logging.ERROR)  # of each try, with a trace
    held, stderr = _Held(), sys.stderr
    try:
        with held.logs(), held.threads(), contextlib.redirect_stderr(_Stream(stderr, held)):  # type: ignore[type-var]
            yield
    except UserError:
        raise
    except (KeyboardInterrupt, Terminated) as told:
        moment = told.moment if isinstance(told, Terminated) else time.monotonic()  # of who calls without `cli.run`
        stderr.write(held.text(before=moment - _NOTICE_SECONDS))
        raise
    except BaseException:
        stderr.write(held.text())
        raise
    finally:
        held.close()
    stderr.write(held.text())


class _Held:
    """Stack traces that are held back, each once."""

    def __init__(self) -> None:
        self._traces: dict[str, float] = {}  # and when it came
        self._closed = False

    def take(self, text: str) -> bool:
        """Whether a text is a trace, and now held."""
        if self._closed or _TRACE not in text:
            return False
        self._traces.setdefault(text.rstrip("\n"), time.monotonic())
        return True

    def close(self) -> None:
        """Takes no more: nobody would print it."""
        self._closed = True

    def text(self, before: float = math.inf) -> str:
        return "".join(f"{trace}\n" for trace, came in self._traces.items() if came < before)

    @contextlib.contextmanager
    def logs(self) -> Iterator[None]:
        handlers, filter_ = list(logging.getLogger().handlers), _Filter(self)
        for handler in handlers:
            handler.addFilter(filter_)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(filter_)

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        before = threading.excepthook
        threading.excepthook = lambda failure: self.take("".join(traceback.format_exception(failure.exc_value)))
        try:
            yield
        finally:
            threading.excepthook = before


class _Filter(logging.Filter):
    """Takes log records of stack traces."""

    def __init__(self, held: _Held):
        super().__init__()
        self._held = held

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            return not (record.getMessage().startswith(_NOISE) or self._held.take(logging.Formatter().format(record)))
        except Exception:  # arguments that do not fit their message: the handler says so, and nobody is stopped by it
            return True


class _Stream:
    """A text stream that takes stack traces: Beam's worker prints them besides logging them."""

    def __init__(self, stream: TextIO, held: _Held):
        self._stream = stream
        self._held = held
        self._taken = False
        self._pieces = ""  # of a trace that is written line by line

    def write(self, text: str) -> int:
        if self._pieces or (_TRACE in text and text.rstrip().endswith(f"{_TRACE}:")):
            self._pieces += text
            if text and not text.startswith((" ", "\n")) and _TRACE not in text:  # the last line, of the exception
                self._taken = self._held.take(self._pieces)
                self._pieces = ""
            return len(text)
        end_of_taken, self._taken = self._taken and text == "\n", self._held.take(text)
        return len(text) if self._taken or end_of_taken else self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
