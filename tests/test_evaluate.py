import contextlib
import json
import os

import numpy as np
import pytest

from pipeline import cli, files, image, reader
from pipeline.shards import VALIDATION
from tests.helpers import encoded, noise
from tests.programs import error_of
from trainer import evaluate
from trainer.evaluation import DIFFERENCES, METHODS, Measured


@pytest.fixture
def run(tiny_extractor, finished_copy):
    return finished_copy


def call(run, *arguments):
    return cli.run(evaluate.main, ["evaluate", f"--workdir={run}", *map(str, arguments)])


def found(run):
    rows = [json.loads(line) for line in (run / "evaluation/pictures.jsonl").read_text().splitlines()]
    return json.loads((run / "evaluation/metrics.json").read_text()), rows


def test_of_a_dataset(run, compact_dataset, finished, capsys):
    """The mean squared error is the loss of the last validation, and every example is there once."""
    assert call(run, f"--data={compact_dataset.directory}") == 0
    metrics, rows = found(run)
    keys = [each.key for each in reader.examples(compact_dataset, VALIDATION)]
    assert [row["key"] for row in rows] == keys
    assert metrics["protocol"]["pictures"] == len(keys)
    assert metrics["measured"] == [f"--data={compact_dataset.directory}", "--split=validation"]
    assert metrics["step"] == finished[1].step
    assert metrics["figures"]["model"]["mse"]["value"] == pytest.approx(finished[1].validation_losses[-1], rel=1e-4)
    for method in METHODS:
        for name in ("mse", "psnr", "ssim", "colorfulness"):
            own = metrics["figures"][method][name]
            assert own["value"] == pytest.approx(np.mean([row[method][name] for row in rows]))
            assert own["low"] <= own["value"] <= own["high"]
    assert metrics["figures"]["gray"]["colorfulness"]["value"] < 2  # rounded levels
    table = capsys.readouterr().out.splitlines()
    assert table[0] == f"{len(keys)} pictures, with 95 % intervals"
    assert [line.split("  ")[0] for line in table[2:]] == [*METHODS, *DIFFERENCES]


def test_a_name_that_is_not_utf8(run, tmp_path):
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path / "in") + b"/caf\xe9.png", "wb") as file:
        file.write(encoded(noise(40, 30)))
    assert call(run, tmp_path / "in") == 0
    (row,) = found(run)[1]
    assert row["key"] == f"{tmp_path}/in/caf\\xe9.png"


def test_of_pictures(run, tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise(40, 30, number)))
    assert call(run, tmp_path / "*.png", tmp_path / "3.png") == 0
    metrics, rows = found(run)
    assert len(rows) == 20
    ranked = sorted(rows, key=lambda row: row["model"]["ab_error"])
    shown = {kind: [each["key"] for each in metrics["shown"] if each["kind"] == kind] for kind in ("best", "worst")}
    assert shown["best"] == [row["key"] for row in ranked[:8]]
    assert shown["worst"] == [row["key"] for row in ranked[:-9:-1]]
    for each in metrics["shown"]:
        assert image.decode((run / f"evaluation/{each['file']}").read_bytes()).shape == (224, 672, 3)


def test_the_same_again_is_the_same(run, compact_dataset):
    assert call(run, f"--data={compact_dataset.directory}") == 0
    first = {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()}
    assert call(run, f"--data={compact_dataset.directory}") == 0
    assert first == {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()}


def test_bad_pictures_are_named_and_the_rest_is_measured(run, tmp_path, capsys):
    (tmp_path / "good.png").write_bytes(encoded(noise(40, 30)))
    (tmp_path / "text.png").write_text("no picture")
    assert call(run, tmp_path / "good.png", tmp_path / "text.png", tmp_path / "absent.png") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 2 of 3 pictures could not be measured: ")
    assert "text.png (not_an_image: " in error
    assert "absent.png (No such file or directory)" in error
    assert len(found(run)[1]) == 1


def write(folder, pictures, step):
    rows, selection = [], evaluate.Selection()
    for number in range(pictures):
        shown = np.full((1, 3, 3), 10 * step + number, np.uint8)
        rows.append(Measured(str(number), "", "", 0.0, np.full((3, 7), float(number)), shown))
        selection.add(rows[-1])
    evaluate._write(str(folder), {"step": step, "measured": [], "protocol": {}}, {}, rows, selection)


def test_an_evaluation_that_is_broken_off_leaves_an_earlier_one_or_none(tmp_path, monkeypatch):
    """A metrics.json never speaks of files of another evaluation."""
    folder, original, left = tmp_path / "evaluation", files.write, []

    def write_or_die(path, content):
        left.pop()
        original(path, content)

    for writes in range(14):
        write(tmp_path, pictures=3, step=1)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert len(before) == 11
        left[:] = [None] * writes
        with monkeypatch.context() as patch, contextlib.suppress(IndexError):
            patch.setattr(files, "write", write_or_die)
            write(tmp_path, pictures=4, step=2)
        after = {path.name: path.read_bytes() for path in folder.iterdir()}
        is_there = "metrics.json" in after
        assert is_there == (writes not in (12, 13))
        assert not is_there or before.items() <= after.items()
        write(tmp_path, pictures=4, step=2)
        assert json.loads((folder / "metrics.json").read_text())["step"] == 2
        shown = {each["file"] for each in json.loads((folder / "metrics.json").read_text())["shown"]}
        assert shown == {path.name for path in folder.glob("*.png")}


def test_the_random_ones_are_not_the_first(tmp_path):
    selection = evaluate.Selection()
    for number in range(1000):
        values = np.full((3, 7), number / 1000)
        selection.add(Measured(str(number), "", "", 0.0, values, np.zeros((1, 3, 3), np.uint8)))
    assert [each.key for each in selection.of("best")] == [str(number) for number in range(8)]
    assert [each.key for each in selection.of("worst")] == [str(999 - number) for number in range(8)]
    assert 200 < np.mean([int(each.key) for each in selection.of("random")]) < 800


def test_what_is_kept_of_every_picture_is_small():
    measured = Measured("a", "", "", 0.0, np.ones((3, 7)), np.zeros((224, 672, 3), np.uint8))
    kept = measured.without_pictures()
    assert kept.pictures.size == 0
    assert kept.pictures.base is None  # nor a view, which would keep all of it


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["a.png"], 2, "--workdir is missing"),
        (["--workdir=RUN"], 2, "name either a dataset, as --data=DATA, or pictures after the options"),
        (["--workdir=RUN", "--data=x", "a.png"], 2, "name either a dataset"),
        (["--workdir=absent", "a.png"], 1, "holds no run"),
        (["--workdir=RUN", "absent.png"], 1, "there is nothing to measure: absent.png (No such file or directory)"),
        (["--workdir=RUN", "--data=absent"], 1, "absent is no dataset"),
        (["--workdir=RUN", "--data=x", "--split=test"], 2, "split"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, status, message):
    arguments = [each.replace("RUN", str(run)) for each in arguments]
    assert cli.run(evaluate.main, ["evaluate", *arguments]) == status
    assert message in error_of(capsys)
