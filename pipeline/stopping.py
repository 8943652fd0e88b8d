"""Signals that ask a run to stop, heard where its state can be saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from pipeline import cli


class Stop(Exception):
    """The run stops here, where its state can be saved, for it was asked to."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def is_made(self) -> bool:
        """Whether somebody asked."""
        return self.signal is not None

    def obey(self) -> NoReturn:
        """Ends the program as the signal would have, now that its state is saved; as SIGTERM, if another host got it.

        Raises:
            cli.Terminated: for the signal.
        """
        raise cli.told(self.signal or signal.SIGTERM)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Notes a signal that asks this process to stop while the block runs.

    An interrupt that comes after it ends the process as it would have; other signals are noted only once: a machine
    that goes down sends two or three of them.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield request
        return

    def note(number: int, frame: object) -> None:
        request.signal = request.signal or signal.Signals(number)
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.getsignal(number) for number in cli.heard()}
    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
