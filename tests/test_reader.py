import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pipeline import example, reader, tensors, tfrecord
from pipeline.errors import UserError
from pipeline.shards import SPLITS, TRAIN


def by_key(dataset, split):
    return {found["key"].decode(): found for found in reader.examples(dataset, split).as_numpy_iterator()}


def test_both_layouts_hand_out_the_same_tensors(dataset):
    """What TensorFlow reads is what NumPy decodes, float32 of the promised shapes."""
    layout = example.layout(dataset.manifest.layout)
    for split in SPLITS:
        found = by_key(dataset, split)
        for shard in dataset.manifest.splits[split].shards:
            with open(dataset.path(shard), "rb") as file:
                for record in tfrecord.read(file):
                    expected = example.decode(record, layout)
                    own = found[expected.key]
                    assert (own["source"].decode(), own["label"].decode()) == (expected.source, expected.label)
                    for name, shape in tensors.SHAPES.items():
                        assert own[name].dtype == np.float32
                        assert own[name].shape == shape
                        np.testing.assert_allclose(own[name], expected.tensors[name], atol=1e-6)


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
        self.refused(copy, "has schema version 1, this program reads 3")

    def test_missing_shard(self, copy):
        os.remove(copy / "train-00003-of-00007.tfrecord")
        self.refused(copy, "train-00003-of-00007.tfrecord is missing; run beam_jobs.preprocess again")

    def test_shard_cut_short(self, copy):
        path = copy / "train-00002-of-00007.tfrecord"
        path.write_bytes(path.read_bytes()[:-1])
        self.refused(copy, "train-00002-of-00007.tfrecord is damaged: .* bytes, .* were written")

    def test_flipped_byte_is_named_when_contents_are_checked(self, copy):
        path = copy / "train-00002-of-00007.tfrecord"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        dataset = reader.open_dataset(str(copy))
        with pytest.raises(tf.errors.DataLossError):
            list(reader.examples(dataset, TRAIN))
        with pytest.raises(UserError, match="train-00002-of-00007.tfrecord is damaged: checksum"):
            dataset.check_contents()
