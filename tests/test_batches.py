import gc
import itertools
import os
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf

from pipeline import example, reader, tensors
from pipeline.batches import _BATCHES_ELSEWHERE, ONE_HOST, Batches
from pipeline.errors import UserError
from pipeline.shards import TRAIN, VALIDATION
from pipeline.stream import Stream, _Memory
from pipeline.tfrecord import RecordBuffer
from tests.helpers import all_readers_end, readers
from trainer import replicas


def by_key(dataset, split):
    return {found.key: found for found in reader.examples(dataset, split)}


def fingerprints(batches):
    """A number for each example that no other has."""
    return [
        float(value) for batch in batches for value in np.sum(batch["ab_224"] * 1e3, axis=(1, 2, 3), dtype=np.float64)
    ]


def unpacked(dataset, batches):
    layout = example.layout(dataset.manifest.layout)
    return batches.map(lambda batch: reader.unpack(batch, layout))


def train(dataset, batch_size=4, seed=1, epochs=range(1), first_step=0, flip=False, context=ONE_HOST, **settings):
    batches = Batches(dataset, batch_size, **settings)
    return unpacked(dataset, batches.train(seed, epochs, first_step, flip, context))


def validation(dataset, batch_size, context=ONE_HOST):
    return unpacked(dataset, Batches(dataset, batch_size).validation(context))


def test_batches_are_float32_of_fixed_shapes(dataset):
    spec = train(dataset).element_spec
    assert {name: (tuple(s.shape[1:]), s.dtype) for name, s in spec.items()} == {
        name: (shape, tf.float32) for name, shape in tensors.SHAPES.items()
    }


def test_an_epoch_shows_every_example_but_a_partial_batch_once(compact_dataset):
    all_of_them = sorted(
        float(np.sum(f.tensors["ab_224"] * 1e3, dtype=np.float64)) for f in by_key(compact_dataset, TRAIN).values()
    )
    count = len(all_of_them)
    assert count % 4  # the dataset is uneven, or this shows nothing
    seen = fingerprints(train(compact_dataset))
    assert len(seen) == count - count % 4 == 4 * Batches(compact_dataset, 4).steps_per_epoch
    left = np.setdiff1d(np.round(all_of_them, 3), np.round(seen, 3))
    assert len(left) == count % 4
    assert len(set(np.round(seen, 3))) == len(seen)


def test_order_depends_on_seed_and_epoch_alone(compact_dataset):
    first = fingerprints(train(compact_dataset, flip=True))
    assert first == fingerprints(train(compact_dataset, flip=True))
    assert first != fingerprints(train(compact_dataset, flip=True, seed=2))
    both = fingerprints(train(compact_dataset, epochs=range(2), flip=True))
    assert both[: len(first)] == first
    second = fingerprints(train(compact_dataset, epochs=range(1, 2), flip=True))
    assert both[len(first) :] == second
    assert second != first


def test_examples_meet_others_in_each_epoch(compact_dataset):
    """Not only does the order of batches change: what a batch holds does."""
    batches = [set(fingerprints([batch])) for batch in train(compact_dataset, epochs=range(3))]
    steps = len(batches) // 3
    for epoch in (1, 2):
        again = [batch for batch in batches[epoch * steps : (epoch + 1) * steps] if batch in batches[:steps]]
        assert len(again) < steps / 2


def test_a_flip_mirrors_all_tensors_of_an_example_and_half_of_the_examples(compact_dataset):
    plain = list(train(compact_dataset, epochs=range(3)).as_numpy_iterator())
    flipped = list(train(compact_dataset, epochs=range(3), flip=True).as_numpy_iterator())
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
        float(np.sum(f.tensors["ab_224"] * 1e3, dtype=np.float64)) for f in by_key(compact_dataset, VALIDATION).values()
    )
    seen = []
    for batch in validation(compact_dataset, batch_size).as_numpy_iterator():
        assert batch["weight"].shape == (batch_size,)
        seen += fingerprints([{"ab_224": batch["ab_224"][batch["weight"] == 1]}])
        assert set(batch["weight"]) <= {0.0, 1.0}
    np.testing.assert_allclose(sorted(seen), expected)


def test_a_batch_larger_than_the_split_is_refused(compact_dataset):
    with pytest.raises(
        UserError, match="examples to train on, fewer than a batch of 1000; set --config.batch_size lower"
    ):
        train(compact_dataset, batch_size=1000)


def test_an_empty_split_has_no_batches(make_dataset, tmp_path):
    folder = make_dataset(tmp_path / "out", "--config.dataset.validation_fraction=0")
    assert list(validation(reader.open_dataset(str(folder)), 4)) == []


def context(host, hosts, replicas=1):
    return tf.distribute.InputContext(hosts, host, hosts * replicas)


def host_batches(dataset, hosts, batch_size=12, **options):
    """For each step the examples that every host has of it."""
    streams = [
        fingerprints_by_batch(train(dataset, batch_size, context=context(h, hosts), **options)) for h in range(hosts)
    ]
    return list(zip(*streams, strict=True))


def fingerprints_by_batch(batches):
    return [fingerprints([batch]) for batch in batches]


@pytest.mark.parametrize("hosts", [2, 3, 12])
def test_hosts_share_what_one_host_reads(compact_dataset, hosts):
    """Step by step, over two epochs."""
    whole = fingerprints_by_batch(train(compact_dataset, 12, epochs=range(2), flip=True))
    shared = host_batches(compact_dataset, hosts, epochs=range(2), flip=True)
    assert len(shared) == len(whole)
    for parts, batch in zip(shared, whole, strict=True):
        assert all(len(part) == 12 // hosts for part in parts)
        assert sorted(itertools.chain(*parts)) == sorted(batch)


def test_replicas_of_a_host_take_its_part_in_turn(compact_dataset):
    whole = fingerprints(train(compact_dataset, 12, context=context(1, 2)))
    parts = fingerprints_by_batch(train(compact_dataset, 12, context=context(1, 2, replicas=3)))
    assert {len(part) for part in parts} == {2}
    assert list(itertools.chain(*parts)) == whole


@pytest.mark.parametrize("hosts", [1, 2])
def test_from_any_step_the_stream_goes_on_as_it_would_have(compact_dataset, hosts):
    whole = host_batches(compact_dataset, hosts, epochs=range(2), flip=True)
    steps = Batches(compact_dataset, 12).steps_per_epoch
    for step in range(2 * steps):
        epoch, first_step = divmod(step, steps)
        rest = host_batches(compact_dataset, hosts, epochs=range(epoch, 2), first_step=first_step, flip=True)
        assert rest == whole[step:]


def test_keys_of_a_batch(compact_dataset):
    """What is read for a message is what was trained on."""
    found = by_key(compact_dataset, TRAIN)
    steps = Batches(compact_dataset, 4).steps_per_epoch
    stream = train(compact_dataset, epochs=range(2)).as_numpy_iterator()
    for position, batch in enumerate(stream):
        keys = Batches(compact_dataset, 4).keys(1, *divmod(position, steps))
        np.testing.assert_array_equal(np.stack([found[key].tensors["ab_224"] for key in keys]), batch["ab_224"])


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_validate_every_example_exactly_once(compact_dataset, hosts):
    expected = sorted(
        float(np.sum(f.tensors["ab_224"] * 1e3, dtype=np.float64)) for f in by_key(compact_dataset, VALIDATION).values()
    )
    seen, lengths = [], set()
    for host in range(hosts):
        batches = list(validation(compact_dataset, 12, context(host, hosts)).as_numpy_iterator())
        lengths.add(len(batches))
        seen += fingerprints([{"ab_224": batch["ab_224"][batch["weight"] == 1]} for batch in batches])
    assert len(lengths) == 1  # or some hosts would wait for others for ever
    np.testing.assert_allclose(sorted(seen), expected)


def test_without_determinism_an_epoch_still_shows_every_example_once(compact_dataset):
    seen = fingerprints(train(compact_dataset, deterministic=False))
    assert sorted(seen) == sorted(fingerprints(train(compact_dataset)))


def test_readers_do_not_change_the_order(compact_dataset, monkeypatch):
    """As many as there are cores, of which other machines have other numbers."""
    expected = fingerprints(train(compact_dataset, 12, epochs=range(2)))
    for cores in (1, 3, 64):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert fingerprints(train(compact_dataset, 12, epochs=range(2))) == expected


def test_a_batch_that_hosts_cannot_share_is_refused(compact_dataset):
    with pytest.raises(UserError, match="batch_size is 12, .*set --config.batch_size=15"):
        train(compact_dataset, 12, context=context(0, 5))


def test_a_budget_that_holds_no_batch_is_refused(compact_dataset):
    with pytest.raises(UserError, match=r"input_memory_mib is 4; batches of 12 from .* need \d+ MiB on each of 1"):
        train(compact_dataset, 12, memory_bytes=4 << 20)


def test_what_was_read_already_is_not_read_again(compact_dataset, monkeypatch):
    """A stream that begins late reads what it hands out, and of a segment less than what it leaves out of it."""
    read = []
    original = RecordBuffer.read
    monkeypatch.setattr(RecordBuffer, "read", lambda self, file: read.append(1) or original(self, file))
    steps = Batches(compact_dataset, 4).steps_per_epoch
    assert len(list(train(compact_dataset, 4, first_step=steps - 2))) == 2
    assert len(read) == 2 * 4


def test_iterated_twice_batches_are_the_same(compact_dataset):
    batches = train(compact_dataset)
    once = fingerprints(itertools.islice(batches, 3))
    assert fingerprints(batches)[: len(once)] == once


def test_two_cannot_share_the_batches_of_one(compact_dataset):
    batches = Batches(compact_dataset, 4).train(1, range(1))
    with pytest.raises(tf.errors.OpError, match="two iterate at once"):
        list(tf.data.Dataset.zip(batches, batches))


def test_batches_that_nobody_wants_any_more_are_not_read(compact_dataset):
    batches = Batches(compact_dataset, 4, memory_bytes=90 << 20)
    next(iter(batches.train(1, range(1000))))
    assert readers()
    batches.close()
    assert all_readers_end()


def test_at_its_end_a_stream_lets_go_of_its_memory(compact_dataset, monkeypatch):
    """TensorFlow keeps for ever what it was given to call."""
    made = []

    def make(*args):
        stream = Stream(*args)
        made.append(weakref.ref(stream))
        return stream

    monkeypatch.setattr("pipeline.batches.Stream", make)
    for _ in Batches(compact_dataset, 4).validation():
        pass
    gc.collect()
    assert len(made) == 1
    assert made[0]() is None


def test_of_a_directory_that_is_not_local_the_batches_are_the_same(compact_dataset):
    """By a reader for each lane, and TensorFlow's file systems."""
    remote = reader.open_dataset(f"file://{compact_dataset.directory}")
    assert remote.is_remote
    expected = train(compact_dataset, 12, epochs=range(2), first_step=1, flip=True)
    assert fingerprints(train(remote, 12, epochs=range(2), first_step=1, flip=True)) == fingerprints(expected)


LEAVING = """
import sys
from trainer import train
from pipeline import reader
from pipeline.batches import Batches
stream = iter(Batches(reader.open_dataset(sys.argv[1]), 16, memory_bytes=1300 << 20).train(1, range(1000)))
for _ in range(20):  # far from as many as may be filled ahead: all readers are at work
    next(stream)
sys.exit(3)
"""


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_program_that_leaves_amid_a_stream_has_its_own_status(datasets, scheme):
    command = [sys.executable, "-c", LEAVING, f"{scheme}{datasets['full'].directory}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stderr) == (3, "")


@pytest.mark.parametrize(("count", "held"), [(1, 1), (2, 1), (1, 10)])
def test_no_more_batches_are_in_memory_than_the_budget_counts(compact_dataset, two_replicas, monkeypatch, count, held):
    """While some are held, and the others wait."""
    made = []
    allocate = _Memory._allocate
    monkeypatch.setattr(_Memory, "_allocate", lambda self: made.append(self) or allocate(self))
    batches = Batches(compact_dataset, 4, memory_bytes=90 << 20, held=held)
    strategy = two_replicas if count == 2 else replicas.create_strategy(4, "one_device")
    stream = iter(
        strategy.distribute_datasets_from_function(lambda context: batches.train(1, range(1000), 0, True, context))
    )
    for _ in range(40):
        call = [next(stream) for _ in range(held)]
        time.sleep(0.02)
        assert len(call) == held
        del call
    each = max(made.count(memory) for memory in set(made)) / count
    context = tf.distribute.InputContext(1, 0, count)
    assert each <= batches._ahead(context) + _BATCHES_ELSEWHERE + held
    batches.close()
