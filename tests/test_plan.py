import re
import types

from beam_jobs import blocks, plan, sources
from beam_jobs.sources import parse_source
from beam_jobs.spec import DatasetSpec
from configs import demo, koalarization
from pipeline.rejects import Reason
from tests.helpers import encoded, noise
from tests.programs import error_of, run_preprocess


def test_a_plan_tells_what_the_job_then_does(pictures, compact_dataset):
    config = demo.get_config()
    config.dataset.layout, config.dataset.train_shards = "compact", 7
    inputs = [
        parse_source(f"places365:{pictures}/archives/val_256.tar"),
        parse_source(f"imagenet:{pictures}/archives/ILSVRC2012_img_train.tar"),
    ]
    found = plan.make_plan(inputs, DatasetSpec.from_config(config))
    made = compact_dataset.manifest
    assert found.listed == {
        (split, source): count for split, own in made.splits.items() for source, count in own.listed.items()
    }
    assert (found.sampled, found.rejected) == (96, {})  # all: there are no more
    size = sum(info.bytes for own in made.splits.values() for info in own.shards)
    assert abs(found.bytes_per_example * 96 - size) < 1
    assert found.source_bytes == sum(ref.length for source in inputs for ref in sources.list_pictures(source))
    assert 0.001 < found.seconds_per_picture < 0.1


def test_at_most_300_bytes_cross_the_shuffle_for_a_picture():
    """With a long path, the longest category of Places365, and neighbors that are of no help: alone in its block."""
    name = "data_256/n/natural_history_museum/00005000.jpg"
    path = b"/mnt/disks/datasets/places365/" + b"standard/" * 5 + b"train_256_places365standard.tar"
    ref = sources.ImageRef(f"places365/{name}", "places365", "/n/natural_history_museum", path, 23_999_999_999, 65_000)
    partition = DatasetSpec.from_config(koalarization.get_config()).partition
    (placed,) = blocks.pack([ref], partition)
    assert blocks.shuffled_bytes(placed) <= 300


def test_dry_run_writes_nothing(pictures, tmp_path, capsys):
    source = f"--source=places365:{pictures}/archives/val_256.tar"
    assert run_preprocess(source, f"--output={tmp_path}/out", "--dry_run") == 0
    text = capsys.readouterr().out
    assert re.search(r"train +4\d pictures of places365", text)
    assert re.search(r"train +4 shards of .* MB, .* MB without rejects", text)
    assert re.search(r"rejects +none of 48 that were tried", text)
    assert re.search(r"takes +\d\.\d seconds of one core, \d+\.\d ms a picture; \d\.\d seconds on", text)
    assert not (tmp_path / "out").exists()


def test_rejects_are_foretold(tmp_path, capsys):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise(40, 40, number)))
    (tmp_path / "gray.png").write_bytes(encoded(noise(40, 40)[..., 0]))
    found = plan.make_plan([parse_source(f"images:{tmp_path}")], DatasetSpec.from_config(demo.get_config()))
    assert found.rejected == {Reason.GRAYSCALE: 1}
    argv = (f"--source=images:{tmp_path}", "--output=/tmp/elsewhere", "--dry_run")
    assert run_preprocess(*argv) == 0
    assert run_preprocess(*argv, "--max_reject_fraction=0.2") == 1
    assert "the job would fail: 1 of 4 pictures that were tried are rejected, more than" in error_of(capsys)
    assert run_preprocess("--source=images:/absent", f"--output={tmp_path}/out", "--dry_run") == 1
    assert "matches nothing" in error_of(capsys)


def test_a_disk_that_is_too_small_is_foretold(tmp_path, capsys, monkeypatch):
    (tmp_path / "one.png").write_bytes(encoded(noise(40, 40)))
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
    argv = (f"--source=images:{tmp_path}/one.png", f"--output={tmp_path}/out/data", "--dry_run")
    assert run_preprocess(*argv) == 1
    assert f"it writes 838 kB, and 1 kB are free in {tmp_path}/out/data" in error_of(capsys)


def test_another_dataset_in_the_output_is_foretold(compact_dataset, pictures, capsys):
    argv = (f"--source=places365:{pictures}/archives/val_256.tar", f"--output={compact_dataset.directory}", "--dry_run")
    assert run_preprocess(*argv) == 1
    assert "holds another dataset: " in error_of(capsys)
    assert run_preprocess(*argv, "--overwrite") == 0


def test_a_glance_takes_the_beginning_of_archives_for_the_rest(pictures, monkeypatch):
    monkeypatch.setattr(plan, "_GLANCE", 12)
    spec = DatasetSpec.from_config(demo.get_config())
    for source in ("places365:val_256.tar", "imagenet:ILSVRC2012_img_train.tar"):
        kind, _, name = source.partition(":")
        whole, about = (
            plan.make_plan([parse_source(f"{kind}:{pictures}/archives/{name}")], spec, glance)
            for glance in (False, True)
        )
        assert about.sampled == 12
        assert whole.sampled == 48
        for found, expected in (
            (sum(about.listed.values()), sum(whole.listed.values())),
            (about.source_bytes, whole.source_bytes),
        ):
            assert 0.3 < found / expected < 3  # classes are of pictures of other sizes
    tree = plan.make_plan([parse_source(f"images:{pictures}/held_out")], spec, glance=True)
    assert sum(tree.listed.values()) == 8
