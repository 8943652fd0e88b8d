import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pipeline import example, reader, tensors, tfrecord
from pipeline.errors import UserError
from pipeline.shards import SPLITS, TRAIN, VALIDATION


def by_key(dataset, split):
    return {found["key"].decode(): found for found in reader.examples(dataset, split).as_numpy_iterator()}


def fingerprints(batches):
    """A number for each example that no other has."""
    return [
        float(value) for batch in batches for value in np.sum(batch["ab_224"] * 1e3, axis=(1, 2, 3), dtype=np.float64)
    ]


def train(dataset, batch_size=4, seed=1, first_epoch=0, epochs=1, flip=False):
    return reader.train_batches(dataset, batch_size, seed, first_epoch, epochs, flip)


def test_both_layouts_hand_out_the_same_tensors(dataset):
    """What TensorFlow reads is what NumPy decodes, float32 of the promised shapes."""
    layout = example.layout(dataset.manifest.layout)
    for split in SPLITS:
        found = by_key(dataset, split)
        for path in dataset.paths(split):
            with open(path, "rb") as file:
                for record in tfrecord.read(file):
                    expected = example.decode(record, layout)
                    own = found[expected.key]
                    assert (own["source"].decode(), own["label"].decode()) == (expected.source, expected.label)
                    for name, shape in tensors.SHAPES.items():
                        assert own[name].dtype == np.float32
                        assert own[name].shape == shape
                        np.testing.assert_allclose(own[name], expected.tensors[name], atol=1e-6)


def test_batches_are_float32_of_fixed_shapes(dataset):
    spec = train(dataset).element_spec
    assert {name: (tuple(s.shape[1:]), s.dtype) for name, s in spec.items()} == {
        name: (shape, tf.float32) for name, shape in tensors.SHAPES.items()
    }


def test_an_epoch_shows_every_example_but_a_partial_batch_once(compact_dataset):
    all_of_them = sorted(
        float(np.sum(f["ab_224"] * 1e3, dtype=np.float64)) for f in by_key(compact_dataset, TRAIN).values()
    )
    count = len(all_of_them)
    assert count % 4  # the dataset is uneven, or this shows nothing
    seen = fingerprints(train(compact_dataset))
    assert len(seen) == count - count % 4 == 4 * reader.steps_per_epoch(compact_dataset, 4)
    left = np.setdiff1d(np.round(all_of_them, 3), np.round(seen, 3))
    assert len(left) == count % 4
    assert len(set(np.round(seen, 3))) == len(seen)


def test_order_depends_on_seed_and_epoch_alone(compact_dataset):
    first = fingerprints(train(compact_dataset, flip=True))
    assert first == fingerprints(train(compact_dataset, flip=True))
    assert first != fingerprints(train(compact_dataset, flip=True, seed=2))
    both = fingerprints(train(compact_dataset, epochs=2, flip=True))
    assert both[: len(first)] == first
    second = fingerprints(train(compact_dataset, first_epoch=1, epochs=2, flip=True))
    assert both[len(first) :] == second
    assert second != first


def test_examples_meet_others_in_each_epoch(compact_dataset):
    """Not only does the order of batches change: what a batch holds does."""
    batches = [set(fingerprints([batch])) for batch in train(compact_dataset, epochs=3)]
    steps = len(batches) // 3
    for epoch in (1, 2):
        again = [batch for batch in batches[epoch * steps : (epoch + 1) * steps] if batch in batches[:steps]]
        assert len(again) < steps / 2


def test_a_flip_mirrors_all_tensors_of_an_example_and_half_of_the_examples(compact_dataset):
    plain = list(train(compact_dataset, epochs=3).as_numpy_iterator())
    flipped = list(train(compact_dataset, epochs=3, flip=True).as_numpy_iterator())
    mirrored = []
    for before, after in zip(plain, flipped, strict=True):
        for row in range(4):
            ways = {
                name: (
                    np.array_equal(after[name][row], before[name][row]),
                    np.array_equal(after[name][row], before[name][row][:, ::-1]),
                )
                for name in tensors.SHAPES
            }
            assert len(set(ways.values())) == 1, ways
            assert ways["l_224"] in ((True, False), (False, True))
            mirrored.append(ways["l_224"][1])
    assert 0.35 < np.mean(mirrored) < 0.65  # 258 examples: within five standard deviations
    epoch = len(mirrored) // 3
    assert mirrored[:epoch] != mirrored[epoch : 2 * epoch]


@pytest.mark.parametrize("batch_size", [1, 4, 9, 50])
def test_validation_shows_every_example_exactly_once(compact_dataset, batch_size):
    expected = sorted(
        float(np.sum(f["ab_224"] * 1e3, dtype=np.float64)) for f in by_key(compact_dataset, VALIDATION).values()
    )
    seen = []
    for batch in reader.validation_batches(compact_dataset, batch_size).as_numpy_iterator():
        assert batch["weight"].shape == (batch_size,)
        seen += fingerprints([{"ab_224": batch["ab_224"][batch["weight"] == 1]}])
        assert set(batch["weight"]) <= {0.0, 1.0}
    np.testing.assert_allclose(sorted(seen), expected)


def test_a_batch_larger_than_the_split_is_refused(compact_dataset):
    with pytest.raises(
        UserError, match="examples to train on, fewer than a batch of 1000; set --config.batch_size lower"
    ):
        train(compact_dataset, batch_size=1000)


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
        self.refused(copy, "has schema version 1, this program reads 2")

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
            list(train(dataset))
        with pytest.raises(UserError, match="train-00002-of-00007.tfrecord is damaged: checksum"):
            dataset.check_contents()


def test_an_empty_split_has_no_batches(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "out", "--config.dataset.validation_fraction=0")
    assert list(reader.validation_batches(reader.open_dataset(str(folder)), 4)) == []
