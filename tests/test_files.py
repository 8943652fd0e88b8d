import pytest
import tensorflow as tf

from pipeline import files
from pipeline.errors import UserError


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_is_there_whole_or_not_at_all(prefix, tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(f"{prefix}{path}", b"first")
    files.write(f"{prefix}{path}", b"second")
    with files.open_binary(f"{prefix}{path}") as file:
        assert file.read() == b"second"
    assert files.names(f"{prefix}{tmp_path}") == ["file"]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(str(path), b"first")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(UserError, match="file cannot be written: no room"):
        files.write(str(path), b"second")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"first"]


def test_a_remote_failure_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UserError, match="taken cannot be written"):
        files.write(f"file://{tmp_path}/taken", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_failures_are_errors_of_users(tmp_path):
    with pytest.raises(UserError, match="absent/file cannot be written"):
        files.write(f"{tmp_path}/absent/file", b"")
    with pytest.raises(OSError, match="absent"):
        files.open_binary(f"file://{tmp_path}/absent")
    assert tf.io.gfile.listdir(str(tmp_path)) == []
