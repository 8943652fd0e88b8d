import errno
import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs import storage, write_behind
from pipeline.errors import UserError
from tests.helpers import noise


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, in order, with the size that the file has then."""
    made = []
    sync, advise, rename = os.fsync, os.posix_fadvise, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: (made.append(("sync", os.fstat(file).st_size)), sync(file)))
    monkeypatch.setattr(
        os, "posix_fadvise", lambda file, *how: (made.append(("drop", os.fstat(file).st_size)), advise(file, *how))
    )
    monkeypatch.setattr(os, "rename", lambda *paths: (made.append(("rename", None)), rename(*paths)))
    return made


def write(path, *chunks):
    with storage.create(str(path)) as file:
        for chunk in chunks:
            file.write(chunk)


@given(st.lists(st.binary(max_size=40_000), max_size=20))
def test_a_file_is_what_was_written(tmp_path_factory, chunks):
    path = tmp_path_factory.mktemp("files") / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_behind, "_STEP_BYTES", 20_000)
        with write_behind.create(str(path)) as file:
            for chunk in chunks:
                assert file.write(chunk) == len(chunk)
    assert path.read_bytes() == b"".join(chunks)


def test_the_disk_has_a_file_before_its_name_does(tmp_path, calls):
    write(tmp_path / "small", b"content")
    assert calls == [("sync", 7), ("rename", None)]


def test_a_large_file_leaves_the_memory_step_by_step(tmp_path, calls):
    step = write_behind._STEP_BYTES
    write(tmp_path / "large", *[bytes(step // 2)] * 5)
    assert calls[-3:] == [("sync", 5 * step // 2), ("drop", 5 * step // 2), ("rename", None)]
    assert [what for what, _ in calls[:-3]] == ["sync", "drop"] * 2


def test_a_disk_that_fails_in_the_background_fails_the_file(tmp_path, monkeypatch):
    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    large = noise(2000, 3000).tobytes()
    with pytest.raises(UserError, match="large cannot be written: .*Input/output error"):
        write(tmp_path / "large", large, large)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_fails_the_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="file cannot be written: .*File too large"):
            write(tmp_path / "file", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
