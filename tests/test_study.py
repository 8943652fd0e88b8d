"""The commands: python -m trainer.study make|serve|summarize."""

import os
import signal
import struct
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from pipeline import cli, color, image
from tests import cloud_storage
from tests.helpers import TINY, Terminal, encoded, noise, soft, write_study
from tests.programs import Participant, error_of, free_ports, serve_study
from trainer.study import __main__ as study
from trainer.study import make, manifest
from trainer.study.answers import Answers


def call(*argv):
    return cli.run(study.main, ["study", *map(str, argv)])


def made(folder):
    """The study, and its pictures by name."""
    names = sorted(path.name for path in (folder / "pictures").iterdir())
    return manifest.load(str(folder)), {name: (folder / "pictures" / name).read_bytes() for name in names}


def chunks(png):
    place, found = 8, []
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        found.append(png[place + 4 : place + 8])
        place += 12 + length
    return found


def test_two_versions_that_differ_in_color_alone(run, finished, tmp_path):
    sizes = {"a.jpg": (900, 1280), "b.png": (70, 90), "c.jpg": (1300, 100)}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(encoded(soft(*size), image_format={"jpg": "JPEG", "png": "PNG"}[name[2:]]))
    assert call("make", f"--workdir={run}", f"--output={tmp_path}/S", *(tmp_path / name for name in sizes)) == 0
    found, pictures = made(tmp_path / "S")
    assert found.step == finished[1].step
    assert [os.path.basename(pair.path) for pair in found.pairs] == list(sizes)
    assert sorted(pictures) == sorted(name for pair in found.pairs for name in (pair.real, pair.predicted))
    for pair, size in zip(found.pairs, [(450, 640), (70, 90), (640, 49)], strict=True):
        real, predicted = (image.decode(pictures[name]) for name in (pair.real, pair.predicted))
        assert real.shape == predicted.shape == (*size, 3)
        original = image.decode((tmp_path / os.path.basename(pair.path)).read_bytes())
        assert np.abs(real.astype(int) - image.resize(original, *size)).max() == 0
        lab, other = color.rgb_to_lab(real), color.rgb_to_lab(predicted)
        assert np.abs(lab[..., 0] - other[..., 0]).mean() < 0.5
        assert np.abs(lab[..., 1:] - other[..., 1:]).mean() > 2
        for name in (pair.real, pair.predicted):
            assert set(chunks(pictures[name])) == {b"IHDR", b"IDAT", b"IEND"}


def test_of_a_run_and_pictures_on_cloud_storage(finished, tmp_path):
    with cloud_storage.running(tmp_path, "bucket") as cloud:
        cloud.upload(finished[0], "bucket", "run/")
        cloud.client().bucket("bucket").blob("photos/a.png").upload_from_string(encoded(noise(20, 20)))
        command = [sys.executable, "-c", TINY.format("trainer.study.__main__"), "make", "--workdir=gs://bucket/run"]
        command += [f"--output={tmp_path}/S", "gs://bucket/photos/a.png"]
        environment = {**os.environ, **cloud.environment}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found, pictures = made(tmp_path / "S")
    assert [pair.path for pair in found.pairs] == ["gs://bucket/photos/a.png"]
    assert np.array_equal(image.decode(pictures[found.pairs[0].real]), noise(20, 20))


def test_names_tell_nothing(run, tmp_path):
    """They differ from study to study, though all else is the same, and their order is not that of the versions."""
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(noise(20, 20, number)))
    for name in ("S", "T"):
        assert call("make", f"--workdir={run}", f"--output={tmp_path / name}", *paths) == 0
    (first, ones), (second, others) = made(tmp_path / "S"), made(tmp_path / "T")
    assert not set(ones) & set(others)
    assert sorted(ones.values()) == sorted(others.values())
    assert first.seed != second.seed


def test_gray_pictures_are_left_out_and_bad_ones_named(run, tmp_path, capsys):
    good, gray, text = tmp_path / "good.png", tmp_path / "gray.jpg", tmp_path / "text.jpg"
    good.write_bytes(encoded(noise(20, 20)))
    gray.write_bytes(encoded(np.repeat(noise(20, 20)[..., :1], 3, axis=-1), "JPEG"))
    text.write_text("no picture")
    arguments = (f"--workdir={run}", f"--output={tmp_path}/S", gray, text, good, tmp_path / "absent.png", good)
    assert call("make", *arguments) == 1
    message = capsys.readouterr().err
    assert f"WARNING: 1 have no color, and were left out: {gray}\n" in message
    assert f"2 of 4 pictures could not be used: {text} (not_an_image" in message
    assert "absent.png (No such file or directory)" in message
    assert [pair.path for pair in made(tmp_path / "S")[0].pairs] == [str(good)]
    good.unlink()
    assert call("make", f"--workdir={run}", f"--output={tmp_path}/T", gray, text) == 1
    assert "there is no picture in color to show" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["S", "gray.jpg", "text.jpg"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, cli.Terminated(signal.SIGTERM)])
def test_no_half_of_a_study_has_its_name(run, tmp_path, monkeypatch, failure):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise(20, 20, number)))
    written = []

    def write(folder, rgb):
        assert not (tmp_path / "S").exists()
        if len(written) == 3:
            raise failure
        written.append(original(folder, rgb))
        return written[-1]

    original = make._write
    monkeypatch.setattr(make, "_write", write)
    assert call("make", f"--workdir={run}", f"--output={tmp_path}/S/", tmp_path / "*.png") > 128
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png"]


def test_progress_bar_on_a_terminal(run, tmp_path, monkeypatch):
    (tmp_path / "one.png").write_bytes(encoded(noise(20, 20)))
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert call("make", f"--workdir={run}", f"--output={tmp_path}/S", tmp_path / "one.png") == 0
    assert "make: 100%" in terminal.getvalue()


def test_told_to_stop_it_ends_cleanly_and_keeps_the_answers(tmp_path, capsys):
    write_study(tmp_path, 3)
    (port,) = free_ports(1)
    process = serve_study(tmp_path, port)
    try:
        one = Participant(f"http://127.0.0.1:{port}")
        one.begin()
        one.post("/answer", position=0, answer="real")
        process.terminate()
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, said) == (128 + signal.SIGTERM, "error: stopped by SIGTERM\n")
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.sqlite", "pictures", "study.json"]
    assert call("summarize", f"--study={tmp_path}") == 0
    assert "1 participant, of whom 0 finished" in capsys.readouterr().out


class TestMistakes:
    def error(self, capsys, status, *argv):
        assert call(*argv) == status
        return error_of(capsys)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "no command: choose make, serve, summarize"),
            (["play"], "unknown command play: choose make, serve, summarize"),
            (["--study=x"], "Unknown command line flag 'study'"),
            (["make", "a.png"], "--workdir is missing"),
            (["make", "--workdir=x", "a.png"], "--output is missing"),
            (["make", "--workdir=x", "--output=y"], "no picture is named"),
            (["serve"], "--study is missing"),
            (["serve", "--study=x", "more"], "unexpected argument more"),
            (["serve", "--study=x", "--port=70000"], "port"),
            (["summarize"], "--study is missing"),
            (["summarize", "--study=x", "--port=8000"], "Unknown command line flag 'port'"),
        ],
    )
    def test_command_lines(self, capsys, arguments, message):
        assert message in self.error(capsys, 2, *arguments)

    def test_what_is_there_already(self, capsys, tmp_path):
        for output, message in ((tmp_path, "exists; name a folder"), ("gs://b/S", "is remote")):
            assert message in self.error(capsys, 1, "make", "--workdir=x", f"--output={output}", "a.png")

    def test_a_folder_that_cannot_be_made(self, capsys, run, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        line = self.error(capsys, 1, "make", f"--workdir={run}", f"--output={tmp_path}/file/S", "a.png")
        assert f"folder {tmp_path}/file/S cannot be created: " in line

    def test_no_run(self, capsys, tmp_path):
        line = self.error(capsys, 1, "make", f"--workdir={tmp_path}", f"--output={tmp_path}/S", "a.png")
        assert "holds no run" in line
        assert list(tmp_path.iterdir()) == []

    def test_no_study_and_no_answers(self, capsys, tmp_path):
        assert "holds no study" in self.error(capsys, 1, "summarize", f"--study={tmp_path}")
        write_study(tmp_path, 2)
        assert "has no answers yet" in self.error(capsys, 1, "summarize", f"--study={tmp_path}")

    @pytest.mark.parametrize(
        ("command", "module", "message"),
        [("serve", "flask", "serve needs flask"), ("summarize", "scipy", "summarize needs SciPy")],
    )
    def test_what_is_not_installed(self, capsys, tmp_path, monkeypatch, command, module, message):
        kept = Answers(str(tmp_path), write_study(tmp_path, 1))
        kept.enter("one")
        kept.show(kept.all()[0])
        kept.answer(kept.all()[0], True, None)
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, "trainer.study.server", raising=False)
        monkeypatch.delattr("trainer.study.server", raising=False)
        line = self.error(capsys, 1, command, f"--study={tmp_path}")
        assert f"{message}; install koalarization[study]" in line


def test_help_of_each_command(capsys):
    for arguments, text in (((), "python -m trainer.study make"), (("serve",), "--port: "), (("make",), "--workdir: ")):
        assert call(*arguments, "--help") == 0
        assert text in capsys.readouterr().out
