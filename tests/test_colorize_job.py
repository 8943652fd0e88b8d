import io
import json
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from beam_jobs import colorize, picture_writer, preprocess
from pipeline import cli, image
from tests.helpers import TINY, encoded, noise
from trainer import colorizer
from trainer.colorizer import Colorizer


@pytest.fixture
def photos(tmp_path):
    """Pictures in folders, gray or not, transparent or not, and files that are none."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for number in range(29):
        (folder / f"{number}.jpg").write_bytes(encoded(noise(40 + number, 50, number), "JPEG"))
    (folder / "inner/gray.png").write_bytes(encoded(noise(30, 20)[..., 0]))
    transparent = np.dstack([noise(30, 20), np.full((30, 20), 99, np.uint8)])
    (folder / "inner/transparent.png").write_bytes(encoded(transparent))
    (folder / "inner/text.jpg").write_text("no picture")
    return folder


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    """Of a thousand parts hardly one would have two of these pictures."""
    monkeypatch.setattr(picture_writer, "PARTS", 2)
    monkeypatch.setattr(picture_writer, "PARTITION", picture_writer.Partition(0, 0.0, 2, 1))


def call(run, output, *extra):
    return cli.run(colorize.main, ["colorize", f"--workdir={run}", f"--output={output}", *map(str, extra)])


def pictures(output):
    """The results by name below the output."""
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*.png"))}


def summary(output):
    return json.loads((output / "colorized.json").read_text())


def test_every_picture_is_in_color_or_named(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(run, out, f"--source=images:{photos}") == 0
    found = pictures(out)
    names = {str(path.relative_to(tmp_path)) for path in photos.rglob("*.*")} - {"photos/inner/text.jpg"}
    assert set(found) == {f"images/{name}.png" for name in names}
    own = colorizer.load(str(run))
    for name, data in found.items():
        before = image.decode_picture((tmp_path / name.removeprefix("images/").removesuffix(".png")).read_bytes())
        result = image.decode_picture(data)
        (ab,) = own.predict([own.prepare(before.on_white())])
        assert np.abs(result.rgb.astype(int) - own.join(before.rgb, ab)).max() <= 1
        np.testing.assert_array_equal(result.alpha, before.alpha)
    assert summary(out) == {
        "pictures": {"images": {"colorized": 31, "listed": 32, "not_an_image": 1}}, "gray": 0, "some_gray": [],
    }  # fmt: skip
    (reject,) = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert reject["key"] == "images/photos/inner/text.jpg"
    assert reject["path"] == str(photos / "inner/text.jpg")
    message = capsys.readouterr().err
    assert "31 of 32 pictures in color; 1 rejected (1 not_an_image; see rejects.jsonl); " in message
    assert "Traceback" not in message
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("mode", ["in_memory", "multi_threading"])
def test_the_same_bytes_however_it_runs(run, photos, tmp_path, mode):
    assert call(run, tmp_path / "one", f"--source=images:{photos}", "--direct_num_workers=1") == 0
    options = [f"--direct_running_mode={mode}", "--direct_num_workers=3"]
    assert call(run, tmp_path / "other", f"--source=images:{photos}", *options) == 0
    assert pictures(tmp_path / "one") == pictures(tmp_path / "other")
    for name in ("colorized.json", "rejects.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_job_goes_on_with_what_is_missing(run, photos, tmp_path, capsys, monkeypatch):
    """After a kill: some results are there, some are not, and no part of it is reported yet."""
    out = tmp_path / "out"
    assert call(run, out, f"--source=images:{photos}") == 0
    expected, counted = pictures(out), (out / "colorized.json").read_bytes()
    (out / "images/photos/4.jpg.png").unlink()
    (out / "images/photos/5.jpg.png").write_bytes(b"half of it")
    shutil.rmtree(out / "job/reports")
    (out / "colorized.json").unlink()
    assert call(run, out, f"--source=images:{photos}") == 0
    assert pictures(out) == expected
    assert (out / "colorized.json").read_bytes() == counted
    assert "done now, the others stood there" in capsys.readouterr().err
    monkeypatch.setattr(Colorizer, "join", None)  # no picture is colorized again
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert call(run, out, f"--source=images:{photos}") == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before
    assert (out / "colorized.json").read_bytes() == counted
    assert "all of it stood there and was checked" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_ends_the_same(finished, photos, tmp_path):
    """With a file that is no picture, and pictures of one name, among them."""
    sources = [f"--source=images:{photos}", f"--source=images:{tmp_path}/twice.tar"]
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for number in range(2):
            data = encoded(noise(20, 20, number))
            member = tarfile.TarInfo("twice.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

    def start(output):
        program = TINY.format("beam_jobs.colorize")
        command = [sys.executable, "-c", program, f"--workdir={finished[0]}", f"--output={output}", *sources]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(600) == 0
    out = tmp_path / "out"
    for number in (6, 20):  # of results when the kill comes
        job = start(out)
        deadline = time.monotonic() + 600
        while len(list(out.rglob("*.png"))) < number:
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        job.kill()
        job.wait()
    assert len(pictures(out)) < 32
    assert start(out).wait(600) == 0
    assert pictures(out) == pictures(tmp_path / "whole")
    assert len(pictures(out)) == 32
    for name in ("colorized.json", "rejects.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(out.rglob("*.tmp"))


def test_a_picture_that_was_mended_is_colorized(run, photos, tmp_path):
    out = tmp_path / "out"
    assert call(run, out, f"--source=images:{photos}") == 0
    (photos / "inner/text.jpg").write_bytes(encoded(noise(20, 20), "JPEG"))
    assert call(run, out, f"--source=images:{photos}") == 0
    assert "images/photos/inner/text.jpg.png" in pictures(out)
    assert summary(out)["pictures"] == {"images": {"colorized": 32, "listed": 32}}
    assert (out / "rejects.jsonl").read_text() == ""


def test_a_picture_that_changed_is_not_taken_for_its_old_result(run, photos, tmp_path):
    out = tmp_path / "out"
    assert call(run, out, f"--source=images:{photos}") == 0
    (photos / "1.jpg").write_text("no picture any more")
    (photos / "2.jpg").write_bytes(encoded(noise(77, 88, 5), "JPEG"))
    assert call(run, out, f"--source=images:{photos}") == 0
    assert summary(out)["pictures"] == {"images": {"colorized": 30, "listed": 32, "not_an_image": 2}}
    assert image.decode(pictures(out)["images/photos/2.jpg.png"]).shape == (77, 88, 3)


def test_a_dataset_is_not_made_in_its_place(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(run, out, f"--source=images:{photos}") == 0
    made = pictures(out)
    options = ["--config=configs/demo.py", f"--source=images:{photos}", f"--output={out}"]
    for extra in ([], ["--overwrite"]):
        assert cli.run(preprocess.main, ["preprocess", *options, *extra]) == 1
        assert "holds what another kind of job made" in capsys.readouterr().err
    assert pictures(out) == made
    assert call(run, out, f"--source=images:{photos}") == 0


def test_pictures_without_color_are_counted_and_named(run, photos, tmp_path, capsys, monkeypatch):
    none = np.zeros((224, 224, 2), np.float32)
    monkeypatch.setattr(colorizer.FixedSizeColorizer, "predict", lambda self, batch: [none] * len(batch))
    out = tmp_path / "out"
    for _ in range(2):  # the second time, by what stands there
        assert call(run, out, f"--source=images:{photos}") == 0
        message = capsys.readouterr().err
        assert "WARNING: the model knew no color for 31 of them, which are gray, as images/photos/0.jpg; " in message
        assert summary(out)["gray"] == 31
        assert len(summary(out)["some_gray"]) == 20


def test_names_in_an_archive_lead_nowhere_else(run, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, name in enumerate(["../../evil.png", "/abs.png", "twice.png", "twice.png", f"{'x' * 240}.png"]):
            data = encoded(noise(20, 20, number))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    out = tmp_path / "deep/down/out"
    for _ in range(2):  # the second time, all of it stands there
        assert call(run, out, f"--source=images:{tmp_path}/a.tar") == 0
        assert summary(out)["pictures"]["images"] == {"colorized": 4, "duplicate_key": 1, "listed": 5}
    assert len(pictures(out)) == 4
    assert len(list(tmp_path.rglob("*.png"))) == 4
    twice = image.decode(pictures(out)["images/twice.png.png"])
    assert twice.shape == (20, 20, 3)


def test_large_pictures_do_not_share_a_batch(run, photos, tmp_path, monkeypatch):
    """Whatever the limit is, all are there, and each batch keeps to it."""
    batches = []
    predict = colorizer.FixedSizeColorizer.predict

    def noted(self, batch):
        batches.append([each.rgb.shape[0] * each.rgb.shape[1] for each in batch])
        return predict(self, batch)

    monkeypatch.setattr(picture_writer, "PIXELS", 5000)
    monkeypatch.setattr(colorizer.FixedSizeColorizer, "predict", noted)
    assert call(run, tmp_path / "out", f"--source=images:{photos}") == 0
    assert len(pictures(tmp_path / "out")) == 31
    assert sum(map(len, batches)) == 31
    assert all(len(batch) == 1 or sum(batch) <= 5000 for batch in batches)
    assert max(map(len, batches)) > 1


def test_settings_and_places_that_cannot_be(run, photos, tmp_path, capsys):
    out, source = tmp_path / "out", f"--source=images:{photos}"
    assert call(run, out, source) == 0
    made = pictures(out)

    def error(status, output, *extra):
        assert call(run, output, *extra) == status
        return capsys.readouterr().err.splitlines()[-1]

    capsys.readouterr()
    assert f"--output={out} holds what another job made: saturation was 1.0, not 1.5" in error(
        1, out, source, "--saturation=1.5"
    )
    assert pictures(out) == made
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    assert "holds mine.txt, of which nothing says how it was made" in error(1, tmp_path / "full", source)
    assert "lies within --source=images:" in error(2, photos / "out", source)
    assert "--saturation=11; choose above 0, at most 10" in error(2, out, source, "--saturation=11")
    assert "--source is missing" in error(2, out)
    assert "matches nothing" in error(1, tmp_path / "other", f"--source=images:{tmp_path}/absent")
    (photos / "inner/text.jpg").rename(tmp_path / "text.jpg")
    assert "no picture could be colorized" in error(1, tmp_path / "none", f"--source=images:{tmp_path}/text.jpg")
    assert not (tmp_path / "none/colorized.json").exists()


def test_a_run_that_goes_on_meanwhile(run, finished_copy, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(picture_writer, "recipe", lambda work_dir, *rest: picture_writer.Recipe(work_dir, 41, *rest))
    assert call(finished_copy, tmp_path / "out", f"--source=images:{photos}") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: --workdir={finished_copy} is at step 42, and the job began with step 41")


def test_native_size(run, photos, tmp_path):
    assert call(run, tmp_path / "out", f"--source=images:{photos}", "--native_size", "--saturation=1.2") == 0
    own = colorizer.load(str(run), 1.2, native_size=True)
    before = image.decode((photos / "3.jpg").read_bytes())
    (expected,) = own.colorize([before])
    result = Image.open(tmp_path / "out/images/photos/3.jpg.png")
    np.testing.assert_array_equal(np.asarray(result), expected)
