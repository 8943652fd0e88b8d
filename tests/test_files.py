from pathlib import Path

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


@pytest.fixture
def tree(tmp_path):
    for name in ("1.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/.hidden/4.jpg", ".5.jpg", "a/[x].jpg", "a/6.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ["1.jpg", "a/2.jpg", "a/6.png", "a/[x].jpg", "a/b/3.jpg"]),
        ("/a", ["2.jpg", "6.png", "[x].jpg", "b/3.jpg"]),
        ("/*.jpg", ["1.jpg"]),
        ("/**.jpg", ["1.jpg", "a/2.jpg", "a/[x].jpg", "a/b/3.jpg"]),
        ("/*/[0-9].*", ["a/2.jpg", "a/6.png"]),
        ("/a/[!0-5].png", ["6.png"]),
        ("/a/?.jpg", ["2.jpg"]),
        ("/a/[x].jpg", ["[x].jpg"]),  # which is there
        ("/a/2.jpg", ["2.jpg"]),
        ("/absent.jpg", ["absent.jpg"]),
    ],
)
def test_what_a_path_stands_for(tree, scheme, path, names):
    found = files.find(f"{scheme}{tree}{path}")
    assert [name for _, name in found] == names
    for whole, name in found:
        assert whole.startswith(f"{scheme}{tree}/")
        assert whole.endswith(f"/{name}")


def test_a_relative_pattern(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert files.find("*.jpg") == [("1.jpg", "1.jpg")]
    assert files.find("a/b") == [("a/b/3.jpg", "3.jpg")]


@pytest.mark.parametrize("path", ["/*.gif", "/empty", "/[z-a]"])
def test_a_path_that_stands_for_nothing(tree, path):
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no file|cannot be listed"):
        files.find(f"{tree}{path}")


def test_a_file_or_folder_made_aside_has_its_name_at_the_end(tmp_path):
    with files.aside(str(tmp_path / "file")) as temporary:
        Path(temporary).write_text("all of it")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "all of it"
    (tmp_path / "folder").mkdir()  # an empty one is as good as none
    with files.folder_aside(str(tmp_path / "folder")) as temporary:
        Path(temporary, "inner").write_text("all of it")
    assert (tmp_path / "folder/inner").read_text() == "all of it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("aside", [files.aside, files.folder_aside])
def test_what_fails_aside_leaves_nothing(tmp_path, aside):
    def fail():
        with aside(str(tmp_path / "name")) as temporary:
            if aside is files.aside:
                Path(temporary).write_text("half of it")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("aside", [files.aside, files.folder_aside])
def test_a_place_that_cannot_be_had_is_named(tmp_path, aside):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/by").write_text("another")

    def take():
        with aside(str(tmp_path / "taken")) as temporary:
            if aside is files.aside:
                Path(temporary).write_text("mine")

    with pytest.raises(UserError, match="taken cannot be (written|created): .*; .*name another"):
        take()
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "by"]


def test_an_upload_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    def half(local, path, overwrite=False):
        Path(path.removeprefix("file://")).write_text("half of it")
        raise tf.errors.UnavailableError(None, None, "gone")

    monkeypatch.setattr(tf.io.gfile, "copy", half)
    (tmp_path / "local").write_text("all of it")
    with pytest.raises(UserError, match="file cannot be written: gone; make room"):
        files.upload(str(tmp_path / "local"), f"file://{tmp_path}/file")
    assert [path.name for path in tmp_path.iterdir()] == ["local"]


def test_a_remote_file_made_aside(tmp_path):
    with files.aside(f"file://{tmp_path}/file") as temporary:
        Path(temporary).write_text("all of it")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "all of it"


def test_refusals_of_cloud_storage_say_what_to_do():
    def refusal(code):
        return tf.errors.UnknownError(
            None, None, f"Error executing an HTTP request: HTTP response code {code} with body ''"
        )

    assert "gcloud auth application-default login" in files.said(refusal(401))
    assert "roles/storage.objectAdmin" in files.said(refusal(403))
    assert "503" in files.said(refusal(503))
