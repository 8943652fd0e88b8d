import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pipeline import example, reader, tensors
from pipeline.errors import UserError
from pipeline.shards import SPLITS, TRAIN


def by_key(dataset, split):
    return {found.key: found for found in reader.examples(dataset, split)}


def test_examples_are_what_tensorflow_reads(dataset):
    """By its own operations, as any other program would; float32 of the promised shapes."""
    layout = example.layout(dataset.manifest.layout)
    names = ("key", "source", "label", *tensors.SHAPES)
    count = 0
    for split in SPLITS:
        found = by_key(dataset, split)
        paths = [dataset.path(shard) for shard in dataset.manifest.splits[split].shards]
        for record in tf.data.TFRecordDataset(paths):
            parsed = tf.io.parse_single_example(record, {name: tf.io.FixedLenFeature([], tf.string) for name in names})
            own = found[parsed["key"].numpy().decode()]
            assert (own.source, own.label) == (parsed["source"].numpy().decode(), parsed["label"].numpy().decode())
            for name, shape in tensors.SHAPES.items():
                storage = layout.storage[name]
                bits = tf.io.decode_raw(parsed[name], storage.dtype)
                expected = tf.reshape(tf.cast(bits, tf.float32) * storage.scale + storage.offset, storage.shape)
                assert own.tensors[name].dtype == np.float32
                assert own.tensors[name].shape == shape
                np.testing.assert_allclose(own.tensors[name], np.broadcast_to(expected, shape), atol=1e-6)
            count += 1
    assert count == dataset.manifest.examples > 0


class TestRefuses:
    @pytest.fixture
    def copy(self, compact_dataset, tmp_path):
        return shutil.copytree(compact_dataset.directory, tmp_path / "copy")

    def refused(self, folder, message):
        with pytest.raises(UserError, match=message) as caught:
            reader.open_dataset(str(folder))
        assert "\n" not in str(caught.value)

    def test_no_manifest(self, copy):
        os.remove(copy / "dataset.json")
        self.refused(copy, r"is no dataset: .*dataset.json cannot be read \(.*\); it is written last")

    def test_no_directory(self, tmp_path):
        self.refused(tmp_path / "absent", "is no dataset")

    def test_another_schema_version(self, copy):
        fields = json.loads((copy / "dataset.json").read_text())
        (copy / "dataset.json").write_text(json.dumps({**fields, "schema_version": 1}))
        self.refused(copy, "has schema version 1, this program reads 4")

    def test_missing_shard(self, copy):
        os.remove(copy / "train-00003-of-00007.tfrecord")
        self.refused(copy, "train-00003-of-00007.tfrecord is missing; run beam_jobs.preprocess again")

    def test_a_shard_that_cannot_be_looked_at(self, copy, monkeypatch):
        def fail(path):
            raise OSError("the store does not answer")

        monkeypatch.setattr("pipeline.files.size", fail)
        self.refused(copy, "train-00000-of-00007.tfrecord cannot be read: the store does not answer; start again")

    def test_shard_cut_short(self, copy):
        path = copy / "train-00002-of-00007.tfrecord"
        path.write_bytes(path.read_bytes()[:-1])
        self.refused(copy, "train-00002-of-00007.tfrecord is damaged: .* bytes, .* were written")

    def test_flipped_byte_is_named(self, copy):
        path = copy / "train-00002-of-00007.tfrecord"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        dataset = reader.open_dataset(str(copy))
        with pytest.raises(
            UserError, match=r"train-00002-of-00007.tfrecord is damaged: damaged record at byte \d+; run"
        ):
            list(reader.examples(dataset, TRAIN))
