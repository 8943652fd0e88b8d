import errno

import pytest

from beam_jobs import storage
from pipeline.errors import UsageError, UserError
from pipeline.manifest import FileInfo


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with storage.create(str(path)) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b"whole")
    assert path.read_bytes() == b"halfwhole"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), storage.create(str(path)) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="full cannot be written: .*No space"), storage.create(str(tmp_path / "full")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_directories(tmp_path):
    storage.make_directory(str(tmp_path / "a/b"))
    storage.make_directory(str(tmp_path / "a/b"))
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/x cannot be written"):
        storage.make_directory(str(tmp_path / "file/x"))


@pytest.mark.parametrize("path", ["s4://bucket/x", "hdfs://host/x", "file:///x"])
def test_paths_that_nothing_can_open_are_refused(path):
    with pytest.raises(UsageError, match=f"{path} cannot be opened: no file system of that kind"):
        storage.absolute(path)


def test_names_and_deletion_in_a_folder_that_looks_like_a_pattern(tmp_path):
    folder = tmp_path / "odd [1]*"
    storage.make_directory(str(folder))
    assert storage.names(str(folder)) == set()
    with storage.create(str(folder / "a")) as file:
        file.write(b"content")
    (folder / f"a.{'0' * 32}.tmp").write_text("left by a killed process")
    (folder / "b.tmp").write_text("not ours")
    storage.delete_temporaries(str(folder))
    assert storage.names(str(folder)) == {"a", "b.tmp"}
    assert storage.stat(str(folder / "a")).size == 7
    storage.delete(str(folder / "a"))
    storage.delete(str(folder / "a"))
    assert storage.names(str(folder)) == {"b.tmp"}
    assert storage.names(str(folder / "absent")) == set()


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x") == str(tmp_path / "x")
    monkeypatch.setattr(storage.FileSystems, "get_filesystem", lambda path: None)  # as with the client for it installed
    assert storage.absolute("hdfs://host/x") == "hdfs://host/x"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    with storage.create(str(tmp_path / "file")) as file:
        file.write(b"content")

    def fail(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(storage, "open_binary", fail)
    with pytest.raises(UserError, match="file cannot be read: .*Permission denied; start the job again"):
        storage.holds(str(tmp_path), FileInfo("file", 7, "00000000"))
    assert not storage.holds(str(tmp_path), FileInfo("absent", 7, "00000000"))
