import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import cli, color, inspect, reader
from pipeline.errors import UserError
from pipeline.shards import TRAIN, VALIDATION
from tests.programs import error_of


def run(dataset, *extra):
    return cli.run(inspect.main, ["inspect", f"--data={dataset.directory}", *extra])


def sample(dataset, count, seed=0, split=TRAIN):
    return list(inspect.sample(dataset.directory, dataset.manifest, split, count, seed))


def test_a_sample_is_of_examples_as_they_are_stored(dataset):
    expected = {each.key: each for each in reader.examples(dataset, TRAIN)}
    shown = sample(dataset, 20)
    assert len({each.key for each in shown}) == 20
    for each in shown:
        np.testing.assert_allclose(each.tensors["ab_224"], expected[each.key].tensors["ab_224"], atol=1e-6)


def test_another_seed_shows_others_the_same_seed_the_same(compact_dataset):
    keys = [[each.key for each in sample(compact_dataset, 10, seed)] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_each_example_is_as_likely_as_any(compact_dataset):
    seen = {each.key for seed in range(40) for each in sample(compact_dataset, 10, seed)}
    assert len(seen) == compact_dataset.manifest.splits[TRAIN].examples


def test_all_are_shown_where_there_are_fewer(compact_dataset):
    assert len(sample(compact_dataset, 600, split=VALIDATION)) == compact_dataset.manifest.splits[VALIDATION].examples


def test_the_sheet_shows_the_pictures(datasets):
    """Each in its color somewhere on the sheet, and lines of histograms below it."""
    (only,) = sample(datasets["full"], 1)
    sheet = np.asarray(Image.open(io.BytesIO(inspect.draw([only]))).convert("RGB"), np.float32)
    lab = np.concatenate(
        [color.denormalize_l(only.tensors["l_224"]), color.denormalize_ab(only.tensors["ab_224"])], axis=-1
    )
    expected = color.lab_to_rgb(lab).astype(np.float32).mean((0, 1))
    rows, columns = np.nonzero((np.abs(sheet - 255) > 3).any(-1) & (np.arange(len(sheet)) < 0.65 * len(sheet))[:, None])
    picture = sheet[60 : rows.max() - 5, columns.min() + 5 : columns.max() - 5]
    assert np.abs(picture.mean((0, 1)) - expected).max() < 12
    below = sheet[rows.max() + 10 :]
    for shade in ((214, 39, 40), (31, 119, 180), (89, 89, 89)):  # the lines of a, b and L
        assert (np.abs(below - shade).max(-1) < 40).sum() > 30


def test_the_command_tells_and_draws(compact_dataset, tmp_path, capsys):
    assert run(compact_dataset, f"--output={tmp_path}/sheet.png", "--examples=7") == 0
    text = capsys.readouterr().out
    assert re.search(r"train +\d+ examples in 7 shards of \d+\.\d to \d+\.\d MB", text)
    assert re.search(r"places365 +\d+ listed, \d+ written\n", text)
    pixels = np.concatenate([each.tensors["l_224"].ravel() for each in sample(compact_dataset, 7)])
    assert f"L  mean {(pixels.mean() + 1) * 50:6.1f}, standard deviation {pixels.std() * 50:5.1f}" in text
    assert Image.open(tmp_path / "sheet.png").format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    assert run(compact_dataset, f"--output={tmp_path}/made/sheet.png", "--examples=1") == 0
    assert (tmp_path / "made/sheet.png").exists()


def test_mistakes_are_one_line(compact_dataset, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(compact_dataset, f"--output={tmp_path}/file/sheet.png") == 1
    assert "cannot be created" in error_of(capsys)
    assert run(compact_dataset, f"--output={tmp_path}/sheet.jpg") == 2
    assert "sheet.jpg; name a .png" in error_of(capsys)
    assert cli.run(inspect.main, ["inspect", f"--data={tmp_path}"]) == 1
    assert "is no dataset" in error_of(capsys)
    assert run(compact_dataset, "--examples=0") == 2


def test_a_damaged_shard_is_named(compact_dataset, tmp_path):
    for path in map(compact_dataset.path, compact_dataset.manifest.splits[TRAIN].shards):
        (tmp_path / Path(path).name).write_bytes(Path(path).read_bytes()[:1000])
    with pytest.raises(UserError, match=r"shard .*tfrecord cannot be read: ends .*run pipeline.verify"):
        list(inspect.sample(str(tmp_path), compact_dataset.manifest, TRAIN, 600, 0))
