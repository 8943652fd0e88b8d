import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import cli, example, manifest, tfrecord, verify
from pipeline.errors import UserError
from tests.helpers import Terminal, encoded, noise
from tests.programs import error_of, run_preprocess


def call(folder):
    return cli.run(verify.main, ["verify", f"--data={folder}"])


@pytest.fixture
def copy(compact_dataset, tmp_path):
    return Path(shutil.copytree(compact_dataset.directory, tmp_path / "copy"))


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory):
    """A dataset of five pictures, one of them rejected, in one shard and an empty one; without worker processes."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "photos").mkdir()
    for number in range(4):
        (folder / f"photos/{number}.png").write_bytes(encoded(noise(40, 40, number)))
    (folder / "photos/text.png").write_text("no picture")
    options = ("layout=compact", "train_shards=1", "validation_shards=1", "validation_fraction=0")
    argv = [f"--config.dataset.{option}" for option in options]
    assert run_preprocess(f"--source=images:{folder}/photos", f"--output={folder}/data", *argv) == 0
    return folder / "data"


def rewrite(folder, change):
    """Replaces the records of the first shard, and makes the manifest fit: only a look inside can tell."""
    found = manifest.read(str(folder))
    info = found.splits["train"].shards[0]
    with open(folder / info.name, "rb") as file:
        records = change(list(tfrecord.read(file)))
    with open(folder / info.name, "wb") as file:
        writer = tfrecord.Writer(file)
        for record in records:
            writer.write(record)
    text = (folder / "dataset.json").read_text().replace(info.crc32c, f"{writer.crc32c:08x}")
    fields = json.loads(text.replace(f'"bytes": {info.bytes}', f'"bytes": {writer.bytes}'))
    seal(folder, fields)


def seal(folder, fields):
    fields.pop("crc32c")
    crc = google_crc32c.value(json.dumps(fields, indent=1).encode())
    (folder / "dataset.json").write_text(json.dumps({**fields, "crc32c": f"{crc:08x}"}, indent=1))


def changed(record, **fields):
    """A record with some of its example's fields replaced."""
    layout = example.layout("compact")
    own = example.decode(record, layout)
    values = {**{name: getattr(own, name) for name in ("key", "source", "label", "tensors")}, **fields}
    return example.encode(example.Example(**values), layout)


def test_a_dataset_as_it_was_written(dataset, capsys):
    assert call(dataset.directory) == 0
    assert "96 examples in 6 shards" in capsys.readouterr().err


def test_a_flipped_byte_in_a_shard_is_found_with_its_record(copy, capsys):
    name = "train-00003-of-00007.tfrecord"
    data = bytearray((copy / name).read_bytes())
    with open(copy / name, "rb") as file:
        first, *_ = tfrecord.read(file)
    second = len(first) + tfrecord.OVERHEAD_BYTES
    places = ((2, 0, 0), (10, 0, 0), (second - 1, 0, 0), (second, 1, second), (second + 900, 1, second))
    for place, record, start in places:
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        (copy / name).write_bytes(damaged)
        assert call(copy) == 1
        assert f"shard {copy}/{name} is damaged, record {record} at byte {start}: " in error_of(capsys)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_bit_anywhere_is_found(one_of_each, tmp_path, data):
    """In this process: a pool for each would take a second."""
    name = data.draw(st.sampled_from(sorted(path.name for path in one_of_each.iterdir() if path.stat().st_size > 0)))
    if name == "job":
        return
    content = bytearray((one_of_each / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(one_of_each, folder)
    (folder / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=name):
        patch.setattr(verify.concurrent.futures, "ProcessPoolExecutor", InProcess)
        verify.verify(str(folder))


class InProcess:
    def __init__(self, **_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, jobs):
        return map(function, jobs)

    def shutdown(self, **_):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records[:-1], "holds 3 examples, 4 were written"),
        (lambda records: [*records[1::-1], *records[2:]], "record 1 at byte 0?.*is out of order"),
        (lambda records: [records[0], records[0], *records[2:]], "images/photos/.*is there twice"),
        (lambda records: [b"no example", *records[1:]], "record 0 at byte 0: not a record of layout 'compact'"),
        (lambda records: [changed(records[0], key=""), *records[1:]], "no key"),
        (lambda records: [changed(records[0], source="places365"), *records[1:]], "by source, dataset.json says"),
    ],
)
def test_records_that_are_whole_but_wrong(one_of_each, tmp_path, capsys, change, message):
    folder = shutil.copytree(one_of_each, tmp_path / "copy")
    rewrite(folder, change)
    assert call(folder) == 1
    assert re.search(message, error_of(capsys))


def test_a_key_of_another_shard_is_found(copy, capsys):
    with open(copy / "train-00001-of-00007.tfrecord", "rb") as file:
        other = next(tfrecord.read(file))
    rewrite(copy, lambda records: [other, *records[1:]])
    assert call(copy) == 1
    assert "belongs to train-00001-of-00007.tfrecord" in error_of(capsys)


def test_values_out_of_range_and_three_channels_that_differ(datasets, tmp_path, capsys):
    """As no encoder of ours would write them: in the bytes of the first value of a tensor."""
    for name, value, message in (("ab_224", 1.5, r"ab_224 of .* in \[-1, 1\]"), ("l_299", 0.5, "not one channel")):
        folder = Path(shutil.copytree(datasets["full"].directory, tmp_path / name))

        def damage(records, name=name, value=value):
            message = tf.train.Example.FromString(records[0])
            stored = message.features.feature[name].bytes_list.value
            stored[0] = np.float16(value).tobytes() + stored[0][2:]
            return [message.SerializeToString(deterministic=True), *records[1:]]

        rewrite(folder, damage)
        assert call(folder) == 1
        assert re.search(message, error_of(capsys))


def test_what_is_missing_stray_or_no_dataset(copy, tmp_path, capsys):
    (copy / "train-00000-of-00099.tfrecord").write_bytes(b"")
    assert call(copy) == 1
    assert f"{copy} holds train-00000-of-00099.tfrecord, which dataset.json does not know" in error_of(capsys)
    (copy / "train-00000-of-00099.tfrecord").unlink()
    (copy / "rejects.jsonl").unlink()
    assert call(copy) == 1
    assert "rejects.jsonl cannot be read" in error_of(capsys)
    (copy / "rejects.jsonl").write_text("")
    (copy / "train-00002-of-00007.tfrecord").unlink()
    assert call(copy) == 1
    assert "train-00002-of-00007.tfrecord cannot be read" in error_of(capsys)
    assert call(tmp_path / "absent") == 1
    assert f"{tmp_path}/absent is no dataset" in error_of(capsys)
    assert cli.run(verify.main, ["verify"]) == 2


def test_rejects_that_do_not_fit_the_counts(one_of_each, tmp_path, capsys):
    folder = shutil.copytree(one_of_each, tmp_path / "copy")
    text = (folder / "dataset.json").read_text()
    line = b'{"split": "train", "source": "images", "reason": "too_dark"}\n'
    (folder / "rejects.jsonl").write_bytes(line)
    fields = json.loads(text)
    fields["rejects"].update(bytes=len(line), crc32c=f"{google_crc32c.value(line):08x}")
    seal(folder, fields)
    assert call(folder) == 1
    assert "rejects.jsonl names others than dataset.json counts" in error_of(capsys)


def test_progress_bar_on_a_terminal(copy, monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert call(copy) == 0
    assert "verify: 100%" in terminal.getvalue()


def test_needs_no_tensorflow():
    program = "import sys, pipeline.verify; sys.exit('tensorflow' in sys.modules or 'apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_process_that_is_killed_is_one_line(compact_dataset, monkeypatch):
    def killed(*args):
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(ProcessPoolExecutor, "map", killed)
    with pytest.raises(UserError, match="^a process of verify was killed, as when memory runs out; start it again$"):
        verify.verify(compact_dataset.directory)
