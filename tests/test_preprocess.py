import itertools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import skimage.io

from beam_jobs import preprocess, sources
from beam_jobs.read_ahead import read_ahead
from beam_jobs.sources import list_pictures, parse_source
from pipeline import cli, example, manifest, reader, tfrecord
from pipeline.manifest import Manifest
from pipeline.shards import SPLITS, TRAIN, Partition
from tests.helpers import encoded, exactly_resized, noise
from tests.programs import content, error_of, run_preprocess


def test_manifest_describes_what_is_there(dataset):
    fields = json.loads(Path(dataset.directory, manifest.FILE_NAME).read_text())
    assert fields["splits"]["train"]["examples"] + fields["splits"]["validation"]["examples"] == 96
    by_source = [dataset.manifest.splits[split].written for split in SPLITS]
    assert sum(counts["places365"] for counts in by_source) == 48
    assert sum(counts["imagenet"] for counts in by_source) == 48
    for split in SPLITS:
        for info in dataset.manifest.splits[split].shards:
            with open(os.path.join(dataset.directory, info.name), "rb") as file:
                records = list(tfrecord.read(file))
                assert file.tell() == info.bytes
                file.seek(0)
                assert f"{tfrecord.checksum(file):08x}" == info.crc32c
            assert len(records) == info.examples
    names = {info.name for split in SPLITS for info in dataset.manifest.splits[split].shards}
    assert set(os.listdir(dataset.directory)) == names | {manifest.FILE_NAME, manifest.REJECTS_FILE_NAME, "job"}
    job = Path(dataset.directory, "job")
    assert {path.name for path in job.iterdir()} == {"settings.json", "reports", "index"}
    assert {path.name for path in (job / "reports").iterdir()} == {f"{name}.json" for name in names}
    assert len(list((job / "index").iterdir())) == 1 + 1 + 8  # val_256.tar; the train tar, and the eight within it


def test_every_picture_stands_where_its_hash_says(dataset):
    found = dataset.manifest
    partition = Partition(found.seed, found.validation_fraction, *(len(found.splits[split].shards) for split in SPLITS))
    layout = example.layout(found.layout)
    keys = []
    for shard in partition.shards():
        with open(os.path.join(dataset.directory, partition.file_name(shard)), "rb") as file:
            own = [example.decode(record, layout).key for record in tfrecord.read(file)]
        assert all(partition.place(key).shard == shard for key in own)
        assert own == sorted(own, key=lambda key: partition.place(key).rank)
        keys += own
    assert len(set(keys)) == len(keys) == 96


def ways_to_round(resized):
    """Lab, normalized, of a picture [H, W, 3] that is not yet rounded to 8 bits.

    Where an average lies halfway between two levels, either is right: every way to round it is tried.
    """
    levels = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    lab = skimage.color.rgb2lab(levels) / [50, 128, 128] - [1, 0, 0]
    for choice in itertools.product((-1e-3, 1e-3), repeat=3):
        others = np.clip(np.rint(resized + choice), 0, 255).astype(np.uint8)
        differs = (others != levels).any(axis=-1)  # of few pixels
        way = lab.copy()
        way[differs] = skimage.color.rgb2lab(others[differs]) / [50, 128, 128] - [1, 0, 0]
        yield way


def test_tensors_of_every_picture_equal_scikit_image(datasets, pictures, tmp_path):
    """Read back by tf.data from both layouts; computed anew by scikit-image, from the file to Lab."""
    found = {
        name: {own["key"].decode(): own for split in SPLITS for own in read_all(dataset, split)}
        for name, dataset in datasets.items()
    }
    seen = 0
    for source in ("places365:val_256.tar", "imagenet:ILSVRC2012_img_train.tar"):
        kind, name = source.split(":")
        for ref, data in read_ahead(list_pictures(parse_source(f"{kind}:{pictures}/archives/{name}"))):
            (tmp_path / "picture.jpg").write_bytes(data)
            rgb = skimage.io.imread(tmp_path / "picture.jpg")
            for size, tensors in ((224, {"l_224": [0], "ab_224": [1, 2]}), (299, {"l_299": [0, 0, 0]})):
                expected = list(ways_to_round(exactly_resized(rgb, size, size)))
                for layout, by_key in found.items():
                    own = by_key[ref.key]
                    assert (own["source"].decode(), own["label"].decode()) == (ref.source, ref.label)
                    for tensor, channels in tensors.items():
                        errors = [np.abs(own[tensor] - lab[..., channels]).max(axis=-1) for lab in expected]
                        stated = example.layout(layout).storage[tensor].error
                        assert np.min(errors, axis=0).max() <= stated + 1e-5, (ref.key, tensor)
            seen += 1
    assert seen == 96


def read_all(dataset, split):
    for found in reader.examples(dataset, split):
        yield {
            "key": found.key.encode(),
            "source": found.source.encode(),
            "label": found.label.encode(),
            **found.tensors,
        }


@pytest.mark.parametrize(
    ("workers", "mode"),
    [(1, "multi_threading"), (2, "multi_threading"), (3, "multi_threading"), (2, "multi_processing")],
)
def test_same_bytes_with_any_number_of_workers(compact_dataset, make_dataset, tmp_path, workers, mode):
    make_dataset(
        tmp_path / "again",
        "--config.dataset.layout=compact",
        "--config.dataset.train_shards=7",
        f"--direct_num_workers={workers}",
        f"--direct_running_mode={mode}",
    )
    first = content(Path(compact_dataset.directory))
    assert content(tmp_path / "again") == first


def test_same_bytes_whatever_the_order_of_the_sources(compact_dataset, pictures, tmp_path):
    archives = pictures / "archives"
    options = ("--config.dataset.layout=compact", "--config.dataset.train_shards=7")
    sources = (f"--source=imagenet:{archives}/ILSVRC2012_img_train.tar", f"--source=places365:{archives}/val_256.tar")
    assert run_preprocess(*sources, f"--output={tmp_path}/out", *options) == 0
    assert content(tmp_path / "out") == content(Path(compact_dataset.directory))


def test_bad_pictures_are_counted_named_and_skipped(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(10):
        (photos / f"{number}.png").write_bytes(encoded(noise(40, 40, number)))
    good = (photos / "3.png").read_bytes()
    (photos / "truncated.png").write_bytes(good[: len(good) // 2])
    (photos / "text.jpg").write_bytes(b"this is no picture")
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere")
    twin = tmp_path / "elsewhere/photos"
    twin.mkdir(parents=True)
    (twin / "1.png").write_bytes(good)  # the key of another picture
    (twin / "truncated.png").write_bytes(good[:500])
    assert run_preprocess(f"--source=images:{photos}", f"--source=images:{twin}", f"--output={tmp_path}/out") == 0
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert sorted((reject["key"], reject["reason"]) for reject in rejects) == [
        ("images/photos/1.png", "duplicate_key"),
        ("images/photos/gone.jpg", "unreadable_bytes"),
        ("images/photos/text.jpg", "not_an_image"),
        ("images/photos/truncated.png", "truncated"),
        ("images/photos/truncated.png", "truncated"),
    ]
    for reject in rejects:
        assert reject.keys() == {"split", "key", "source", "path", "reason", "detail"}
        assert reject["detail"]
    result = Manifest.from_json((tmp_path / "out/dataset.json").read_text(), "dataset.json")
    assert (result.listed, result.examples) == (15, 10)
    assert {reason.value: count for reason, count in result.rejected.items()} == {
        "duplicate_key": 1, "unreadable_bytes": 1, "not_an_image": 1, "truncated": 2,
    }  # fmt: skip
    for split in result.splits.values():
        assert sum(split.listed.values()) == split.examples + sum(split.rejected.get("images", {}).values())
    assert re.search(r"5 of 15 pictures rejected \(.*2 truncated.*; \d+\.\d images/s", capsys.readouterr().err)


def test_of_two_pictures_of_a_key_the_one_that_can_be_used_is_taken(tmp_path):
    for folder, data in (("a", b"damaged"), ("b", encoded(noise(40, 40)))):
        (tmp_path / folder / "photos").mkdir(parents=True)
        (tmp_path / folder / "photos/1.png").write_bytes(data)
    sources = [f"--source=images:{tmp_path}/{folder}/photos" for folder in "ab"]
    assert run_preprocess(*sources, f"--output={tmp_path}/out", "--config.dataset.validation_fraction=0") == 0
    assert Manifest.from_json((tmp_path / "out/dataset.json").read_text(), "dataset.json").examples == 1
    (reject,) = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["reason"] == "not_an_image"


def test_shards_to_which_nothing_falls_are_written_empty(tmp_path):
    (tmp_path / "one.png").write_bytes(encoded(noise(40, 40)))
    options = ("--config.dataset.train_shards=3", "--config.dataset.validation_fraction=0")
    assert run_preprocess(f"--source=images:{tmp_path}/one.png", f"--output={tmp_path}/out", *options) == 0
    result = reader.open_dataset(str(tmp_path / "out"))
    assert sorted(info.examples for info in result.manifest.splits[TRAIN].shards) == [0, 0, 1]
    assert len(list(reader.examples(result, TRAIN))) == 1


@pytest.mark.parametrize("mode", ["stretch", "pad", "crop"])
def test_resize_mode_is_used_and_recorded(tmp_path, mode):
    (tmp_path / "wide.png").write_bytes(encoded(np.zeros((50, 100, 3), np.uint8)))
    off = ("min_side=0", "reject_grayscale=False", "min_chroma=0", "min_lightness=0")
    options = (f"--config.dataset.resize_mode={mode}", "--config.dataset.validation_fraction=0")
    options += tuple(f"--config.dataset.filters.{filter_}" for filter_ in off)
    assert run_preprocess(f"--source=images:{tmp_path}/wide.png", f"--output={tmp_path}/out", *options) == 0
    result = reader.open_dataset(str(tmp_path / "out"))
    assert result.manifest.resize_mode == mode
    (found,) = reader.examples(result, TRAIN)
    white_rows = (found.tensors["l_224"][..., 0] > 0.99).all(axis=1).sum()
    assert white_rows == (112 if mode == "pad" else 0)


def test_what_stood_there_is_told_from_what_was_done(tmp_path, capsys):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(9):
        (photos / f"{number}.png").write_bytes(encoded(noise(40, 40, number)))
    argv = (f"--source=images:{photos}", f"--output={output}", "--config.dataset.validation_fraction=0")
    assert run_preprocess(*argv) == 0
    assert re.search(r"; 0 of 9 pictures rejected; \d+\.\d images/s in \d+ s\n$", capsys.readouterr().err)
    largest = max(output.glob("*.tfrecord"), key=lambda path: path.stat().st_size)
    largest.unlink()
    assert run_preprocess(*argv) == 0
    assert re.search(r"; [1-8] of 9 done now, the others stood there; \d+\.\d images/s", capsys.readouterr().err)
    assert run_preprocess(*argv) == 0
    assert "; all of it stood there and was checked, in " in capsys.readouterr().err


def test_a_first_mistake_does_not_take_the_output(tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "one.png").write_bytes(encoded(noise(40, 40)))
    option = "--config.dataset.validation_fraction=0"
    assert run_preprocess(f"--source=images:{tmp_path}/text.png", f"--output={tmp_path}/out", option) == 1
    assert "no picture for the train split" in error_of(capsys)
    assert run_preprocess(f"--source=images:{tmp_path}/one.png", f"--output={tmp_path}/out", option) == 0
    assert run_preprocess(f"--source=images:{tmp_path}/text.png", f"--output={tmp_path}/out", option) == 1
    assert f"sources was images:{tmp_path}/one.png, not images:{tmp_path}/text.png" in error_of(capsys)


class TestMistakes:
    """Each ends with one line and a status other than 0, and leaves no file under a final name."""

    @pytest.fixture
    def source(self, tmp_path):
        (tmp_path / "one.png").write_bytes(encoded(noise(40, 40)))
        return f"--source=images:{tmp_path}/one.png"

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("--sorce=images:/x", "unknown option --sorce: did you mean --source?"),
            ("--direct_num_worker=2", "unknown option --direct_num_worker=2: did you mean --direct_num_workers?"),
            ("--quiet", "unknown option --quiet"),
            ("--temp_location output --x", "unknown option --x"),
            ("--runner=json.Nope", "--runner=json.Nope cannot be used"),
            ("--prism_location=/absent --runner=PrismRunner", "--prism_location=/absent is no file; 'make engines'"),
            ("--source=images:photos.tar.gz", "photos.tar.gz is a compressed archive"),
            ("--config=configs", "--config=configs cannot be read (a folder)"),
            ("--config.sed=1", "no configuration field 'sed': did you mean 'seed'?"),
            ("--config.dataset.sharts=1", "no configuration field 'dataset.sharts'"),
            ("--config.seed=one", "--config.seed=one: invalid literal for int"),
            ("--config.seed=-1", "seed is -1; choose a whole number from 0"),
            ("--direct_num_workers=two", "--direct_num_workers: invalid int value: 'two'"),
            ("--source=images:s4://bucket/x", "s4://bucket/x cannot be opened: no file system of that kind"),
            ("--output=file:///tmp/x", "file:///tmp/x cannot be opened"),
            ("--source=flowers:/x", "--source=flowers:/x is not KIND:PATH"),
        ],
    )
    def test_command_line(self, capsys, tmp_path, source, option, message):
        assert run_preprocess(source, f"--output={tmp_path}/out", *option.split()) == 2
        assert message in error_of(capsys)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("output", ["", "/sub/data"])
    def test_an_output_within_a_source(self, capsys, tmp_path, source, output):
        assert run_preprocess(f"--source=images:{tmp_path}", f"--output={tmp_path}{output}") == 2
        assert f"--output={tmp_path}{output} lies within --source=images:{tmp_path}" in error_of(capsys)
        assert run_preprocess(f"--source=images:{tmp_path}/**", f"--output={tmp_path}{output}") == 2
        assert "lies within" in error_of(capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
        assert run_preprocess(f"--source=images:{tmp_path}/*.png", f"--output={tmp_path}{output}", "--dry_run") == 0
        assert run_preprocess(f"--source=images:{tmp_path}/[z-a]", f"--output={tmp_path}{output}", "--dry_run") == 2
        assert "[z-a] cannot be understood" in error_of(capsys)
        sources.check_outside(f"{tmp_path}{output}", [parse_source(f"places365:{tmp_path}")])  # no shard is a .jpg

    def test_servers_that_are_not_there(self, capsys, tmp_path, source):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            argv = (source, f"--output={tmp_path}/out", "--runner=PortableRunner", "--environment_type=EXTERNAL")
            assert run_preprocess(*argv, f"--job_endpoint=localhost:{port}", "--environment_config=localhost:1") == 1
            assert f"nothing listens on --job_endpoint=localhost:{port}; start the job server" in error_of(capsys)
            listener.listen()
            assert run_preprocess(*argv, f"--job_endpoint=localhost:{port}", "--environment_config=localhost:1") == 1
            assert "nothing listens on --environment_config=localhost:1; start the worker pool" in error_of(capsys)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("--config.dataset.layout=fulll", "layout 'fulll' is unknown; choose one of full, compact"),
            ("--config.dataset.resize_mode=squash", "resize_mode is 'squash'; choose one of stretch, pad, crop"),
            ("--config.dataset.train_shards=0", "dataset.train_shards is 0; choose a number from 1"),
            ("--config.dataset.validation_fraction=1.5", "dataset.validation_fraction is 1.5"),
            ("--source=images:/nowhere/at/all", "source images:/nowhere/at/all matches nothing"),
        ],
    )
    def test_values(self, capsys, tmp_path, source, option, message):
        assert run_preprocess(source, f"--output={tmp_path}/out", option) == 1
        assert message in error_of(capsys)
        assert not (tmp_path / "out").exists()

    def test_missing_options(self, capsys, source):
        assert run_preprocess(source) == 2
        assert "--output is missing" in error_of(capsys)
        assert run_preprocess("--output=/tmp/x") == 2
        assert "--source is missing" in error_of(capsys)
        assert cli.run(preprocess.main, ["preprocess"]) == 2
        assert "--config is missing" in error_of(capsys)
        assert cli.run(preprocess.main, ["preprocess", "--config=nowhere.py"]) == 2
        assert "--config=nowhere.py cannot be read" in error_of(capsys)

    def test_archive_cut_short_behind_its_first_member(self, capsys, tmp_path, pictures):
        data = (pictures / "archives/val_256.tar").read_bytes()
        (tmp_path / "val_256.tar").write_bytes(data[: len(data) // 2])
        assert run_preprocess(f"--source=places365:{tmp_path}/val_256.tar", f"--output={tmp_path}/out") == 1
        message = error_of(capsys)
        assert f"source places365:{tmp_path}/val_256.tar is not a complete, uncompressed tar archive" in message
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["job"]
        assert not list((tmp_path / "out/job").rglob("*.tmp"))

    def test_no_usable_picture(self, capsys, tmp_path):
        (tmp_path / "text.jpg").write_bytes(b"this is no picture")
        assert run_preprocess(f"--source=images:{tmp_path}/text.jpg", f"--output={tmp_path}/out") == 1
        assert "no picture for the train split: 1 found, 1 of them rejected" in error_of(capsys)
        assert not (tmp_path / "out/dataset.json").exists()
        assert "not_an_image" in (tmp_path / "out/rejects.jsonl").read_text()

    def test_output_that_holds_a_dataset(self, capsys, source, compact_dataset):
        before = os.stat(os.path.join(compact_dataset.directory, "dataset.json"))
        assert run_preprocess(source, f"--output={compact_dataset.directory}") == 1
        assert 'holds another dataset: layout was "compact", not "full"; name another' in error_of(capsys)
        assert os.stat(os.path.join(compact_dataset.directory, "dataset.json")) == before

    def test_output_that_cannot_be_made(self, capsys, tmp_path, source):
        (tmp_path / "file").write_text("")
        assert run_preprocess(source, f"--output={tmp_path}/file/out") == 1
        assert "cannot be written" in error_of(capsys)


def test_shard_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "one.png").write_bytes(encoded(noise(40, 40)))
    monkeypatch.setattr(tfrecord.Writer, "write", lambda self, record: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_preprocess(
            f"--source=images:{tmp_path}/one.png", f"--output={tmp_path}/out", "--config.dataset.validation_fraction=0"
        )
    names = os.listdir(tmp_path / "out")
    assert not [name for name in names if name.endswith(".tmp")]
    assert manifest.FILE_NAME not in names


def test_help_teaches(capsys):
    assert run_preprocess("--help") == 0
    text = capsys.readouterr().out
    for word in ("places365:PATH", "imagenet:PATH", "images:PATH", "--output", "--direct_num_workers", "dataset.json"):
        assert word in text


def test_worker_code_imports_no_tensorflow():
    program = "import sys, beam_jobs.preprocess; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
