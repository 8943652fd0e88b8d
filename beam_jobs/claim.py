"""One job at a time: a directory is claimed by a file that says who works there, and that they still do.

On a local disk the folder is locked while a claim is looked at and written; on Cloud Storage a claim is written only in
place of the very one that was looked at. The owner writes the time into the file every few seconds. A claim is stale
when its process is known to be gone, or has not been heard of for two minutes: another job may then take it over.
Should the first one be alive after all, both write the same bytes: a job of other settings is refused before it writes
anything, or else, told to overwrite, has changed the settings, at which the first one looks before each shard.
"""

import contextlib
import dataclasses
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import msgspec
from apache_beam.io.filesystems import FileSystems

from beam_jobs import storage
from pipeline.errors import UserError, one_line

_LOGGER = logging.getLogger(__name__)
FILE_NAME = "claim.json"
_BEAT_SECONDS = 10.0
_STALE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class _Claim:
    """Who works in a directory; `started` tells a process from a later one of the same number."""

    job: str
    host: str
    process: int
    started: str
    seen: float  # seconds since 1970

    def is_stale(self) -> bool:
        """Whether nobody works there any more, as far as can be told from here."""
        if self.host == socket.gethostname() and os.path.isdir("/proc"):
            return _start_of(self.process) != self.started
        return time.time() - self.seen > _STALE_SECONDS


@contextlib.contextmanager
def claim(directory: str) -> Iterator[None]:
    """Claims a directory while the block runs.

    Raises:
        UserError: another job works there.
    """
    path = FileSystems.join(directory, FILE_NAME)
    own = _Claim(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _start_of(os.getpid()), time.time())
    _take(path, own)
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, own, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _leave(path, own)


def _take(path: str, own: _Claim) -> None:
    with _alone(path):
        before, version = _load(path)
        if before is not None and not before.is_stale():
            raise _taken(path, before)
        if not _write(path, own, version):
            raise _taken(path, _load(path)[0])


def _leave(path: str, own: _Claim) -> None:
    try:
        with _alone(path):
            if (found := _load(path)[0]) and found.job == own.job:
                storage.delete(path)
    except (OSError, UserError) as error:  # what the block has done is done
        _LOGGER.warning("WARNING: %s cannot be deleted, which keeps others off for a while: %s", path, one_line(error))


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """Keeps other processes from between a look at the claim and the next write, on a local disk."""
    if "://" in path:
        yield
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _beat(path: str, own: _Claim, done: threading.Event) -> None:
    while not done.wait(_BEAT_SECONDS):
        with contextlib.suppress(OSError, UserError), _alone(path):  # storage that fails now may answer in time
            found, version = _load(path)
            if found is None or found.job == own.job:
                _write(path, dataclasses.replace(own, seen=time.time()), version)


def _load(path: str) -> tuple[_Claim | None, int]:
    """A claim, if there is one, and the version of its file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content, version = storage.read_version(path)
    except FileNotFoundError:
        return None, 0
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; start the job again") from error
    try:
        return msgspec.json.decode(content, type=_Claim), version
    except ValueError:  # what no job has written
        return None, version


def _write(path: str, own: _Claim, version: int) -> bool:
    return storage.replace(path, msgspec.json.encode(own), version)


def _taken(path: str, owner: _Claim | None) -> UserError:
    directory = os.path.dirname(os.path.dirname(path))
    if owner is None:
        return UserError(f"{directory}: another job began there at this moment, and has ended; try again")
    seen = max(0, round(time.time() - owner.seen))
    return UserError(
        f"{directory} is being written by process {owner.process} on {owner.host}, last seen {seen} s ago; wait "
        f"for it or stop it (a job that is gone is noticed after {_STALE_SECONDS:.0f} s at most)"
    )


def _start_of(process: int) -> str:
    """When a process of this machine started, in clock ticks since it booted; "" if there is none."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
