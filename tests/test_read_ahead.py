import errno
import os
import threading
from typing import ClassVar

import pytest
from apache_beam.io.localfilesystem import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs import read_ahead as module
from beam_jobs import storage
from beam_jobs.read_ahead import read_ahead
from beam_jobs.sources import ImageRef
from pipeline.errors import UserError


def ref(path, offset, length):
    return ImageRef(f"images/{offset}", "images", "", os.fsencode(path), offset, length)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("read") / "file"
    path.write_bytes(bytes(range(256)) * 40)
    return path


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 1000)), max_size=150), st.integers(0, 3000))
def test_bytes_come_in_the_order_of_the_references(file, ranges, budget):
    data = file.read_bytes()
    refs = [ref(file, offset, length) for offset, length in ranges]
    found = list(read_ahead(refs, budget))
    assert [each for each, _ in found] == refs
    assert [content for _, content in found] == [data[offset : offset + length] for offset, length in ranges]


def test_what_is_held_stays_within_the_budget(file, monkeypatch):
    """Counted from the moment that a read begins to the moment that its bytes are handed out."""
    held, most, lock = 0, 0, threading.Lock()
    read = module._Files.read

    def counted(self, each):
        nonlocal held, most
        with lock:
            held += each.length
            most = max(most, held)
        return read(self, each)

    monkeypatch.setattr(module._Files, "read", counted)
    for each, data in read_ahead([ref(file, number, 100) for number in range(500)], budget=1000):
        with lock:
            held -= len(data)
        assert len(data) == each.length
    assert 500 < most <= 1000 + 100  # that which was just handed out counts until it is taken


def test_a_picture_larger_than_the_budget_is_read_all_the_same(file):
    ((_, data),) = read_ahead([ref(file, 0, 9000)], budget=10)
    assert len(data) == 9000


def test_files_that_vanish_or_shrink_are_handed_out_as_errors(tmp_path):
    (tmp_path / "short").write_bytes(b"content")
    refs = [ref(tmp_path / "gone", 0, 5), ref(tmp_path / "short", 3, 5), ref(tmp_path / "short", 0, 7)]
    gone, short, whole = (data for _, data in read_ahead(refs))
    assert isinstance(gone, FileNotFoundError)
    assert "4 of 5 bytes at 3" in str(short)
    assert whole == b"content"


def test_whoever_stops_early_leaves_no_file_open(file, monkeypatch):
    opened = []
    original = storage.open_binary
    monkeypatch.setattr(storage, "open_binary", lambda path: opened.append(original(path)) or opened[-1])
    reading = read_ahead([ref(file, number, 10) for number in range(300)])
    next(reading)
    reading.close()
    assert opened
    assert all(each.closed for each in opened)


class Remote(LocalFileSystem):
    """Local files as `remote://`, with failures that go away."""

    failures: ClassVar[list[Exception]] = []

    @classmethod
    def scheme(cls):
        return "remote"

    def open(self, path, *args, **kwargs):
        if self.failures:
            raise self.failures.pop()
        return super().open(path.removeprefix("remote://"), *args, **kwargs)


@pytest.fixture
def delays(monkeypatch):
    """Seconds that were waited."""
    waited = []
    monkeypatch.setattr("apache_beam.utils.retry.Clock.sleep", lambda _, seconds: waited.append(seconds))
    yield waited
    Remote.failures.clear()


class ServerError(Exception):
    """Of the kind that client libraries have; none is an OSError."""


class NotFound(Exception):
    """As Cloud Storage's."""

    code = 404


@pytest.mark.parametrize("error", [OSError("connection reset"), ServerError("503")])
def test_a_remote_read_that_fails_is_tried_again(error, file, delays):
    Remote.failures[:] = [error] * 3
    ((_, data),) = read_ahead([ref(f"remote://{file}", 10, 20)])
    assert data == file.read_bytes()[10:30]
    assert len(delays) == 3
    assert 0 < sum(delays) <= 1 + 2 + 4


def test_a_remote_store_that_is_down_says_nothing_of_the_picture(file, delays):
    """The engine tries the whole bundle again, or the job fails: no picture is rejected."""
    Remote.failures[:] = [ServerError("503")] * 100
    with pytest.raises(UserError, match="/file cannot be read, 5 times in a row: .*: 503; start the job again"):
        list(read_ahead([ref(f"remote://{file}", 10, 20)]))


def test_a_remote_picture_that_is_gone_is_not_waited_for(delays):
    for failures in ([], [NotFound("404 GET")]):
        Remote.failures[:] = failures
        ((_, error),) = read_ahead([ref("remote:///absent", 0, 1)])
        assert isinstance(error, FileNotFoundError)
    assert not delays


def test_a_disk_that_fails_says_nothing_of_the_picture(file, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(storage, "open_binary", fail)
    with pytest.raises(UserError, match="/file cannot be read: .*Input/output error; start the job again"):
        list(read_ahead([ref(file, 10, 20)]))
