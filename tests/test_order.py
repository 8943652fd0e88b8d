import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import order
from pipeline.errors import UserError
from pipeline.manifest import ShardInfo
from pipeline.order import Segments
from pipeline.tfrecord import SEGMENT_RECORDS


def shards(*examples):
    return [ShardInfo(f"{i}", 1, "00000000", count, ()) for i, count in enumerate(examples)]


def numbered(segments):
    """The number of every record, counted over all shards."""
    starts = np.cumsum(segments.examples) - segments.examples
    return [np.arange(start, start + count) for start, count in zip(starts, segments.examples, strict=True)]


def lanes_of(plan, segments):
    """The records of each lane, in order; -1 for one that is missing."""
    records = numbered(segments)
    for lane, missing in enumerate(plan.missing):
        rows = plan.stretches[plan.splits[lane] : plan.splits[lane + 1]]
        assert all(skip >= 0 and take >= 0 and skip + take <= len(records[s]) for s, skip, take in rows)
        found = [records[segment][skip : skip + take] for segment, skip, take in rows]
        yield np.concatenate([np.arange(0), *found, np.full(missing, -1)])


def batches_of(plan, segments, batch_size):
    """What each batch of a plan holds."""
    each = batch_size // order.lanes(batch_size)
    lanes = list(lanes_of(plan, segments))
    return [np.concatenate([lane[i : i + each] for lane in lanes]) for i in range(0, len(lanes[0]), each)]


def test_segments_of_shards():
    found = Segments.of(shards(SEGMENT_RECORDS + 3, 0, 5))
    assert found.shard.tolist() == [0, 0, 2]
    assert found.number.tolist() == [0, 1, 0]
    assert found.examples.tolist() == [SEGMENT_RECORDS, 3, 5]


SIZES = st.lists(st.integers(0, 150), min_size=1, max_size=12)


@given(SIZES, st.integers(1, 40), st.sampled_from([1, 2, 3, 4, 8]), st.integers(0, 3), st.data())
def test_hosts_together_read_every_record_once(sizes, per_host, hosts, epoch, data):
    batch_size, segments = per_host * hosts, Segments.of(shards(*sizes))
    steps = sum(sizes) // batch_size
    try:
        order.host_lanes(batch_size, hosts)
    except UserError:
        return
    sequence = order.shuffled(segments, 1, epoch)
    first_step = data.draw(st.integers(0, steps))
    plans = [order.plan(segments, sequence, steps, batch_size, first_step, host, hosts) for host in range(hosts)]
    whole = batches_of(order.plan(segments, sequence, steps, batch_size, 0, 0, 1), segments, batch_size)
    assert sorted(np.concatenate([np.arange(0), *whole])) == sorted(set(np.concatenate([np.arange(0), *whole])))
    assert sum(map(len, whole)) == steps * batch_size
    shared = zip(*(batches_of(plan, segments, batch_size) for plan in plans), strict=True)
    for parts, batch in zip(shared, whole[first_step:], strict=True):
        assert {len(part) for part in parts} == {per_host}
        np.testing.assert_array_equal(np.concatenate(parts), batch)


@given(SIZES, st.integers(1, 100))
def test_a_sequence_that_is_too_short_says_what_is_missing(sizes, batch_size):
    segments = Segments.of(shards(*sizes))
    steps = -(-sum(sizes) // batch_size)
    plan = order.plan(segments, np.arange(len(segments.examples)), steps, batch_size, 0, 0, 1)
    found = np.concatenate([np.arange(0), *batches_of(plan, segments, batch_size)])
    assert len(found) == steps * batch_size
    assert sorted(found[found >= 0]) == list(range(sum(sizes)))


def test_an_epoch_is_a_shuffle_of_its_own():
    segments = Segments.of(shards(*[SEGMENT_RECORDS] * 50))
    orders = [tuple(order.shuffled(segments, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(each) == list(range(50)) for each in orders)
    # As seen once: another order would make another run of one that goes on.
    assert order.shuffled(Segments.of(shards(*[1] * 8)), 2017, 3).tolist() == [3, 6, 1, 2, 7, 4, 0, 5]


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(1, 1), (4, 4), (32, 32), (37, 37), (64, 64), (74, 37), (96, 48), (100, 50), (256, 64)]
)
def test_lanes(batch_size, expected):
    assert order.lanes(batch_size) == expected


@pytest.mark.parametrize("hosts", [1, 2, 4, 8, 16, 32, 64])
def test_powers_of_two_share_batches_of_powers_of_two(hosts):
    assert order.host_lanes(64 * 8, hosts) == 64 // hosts


@pytest.mark.parametrize(("batch_size", "hosts", "advice"), [(80, 16, 96), (74, 2, 76), (12, 5, 15), (65, 64, 128)])
def test_what_hosts_cannot_share_is_refused(batch_size, hosts, advice):
    message = f"batch_size is {batch_size}, .* {hosts} hosts .*--config.batch_size={advice}$"
    with pytest.raises(UserError, match=message):
        order.host_lanes(batch_size, hosts)
    order.host_lanes(advice, hosts)


def test_more_hosts_than_lanes():
    with pytest.raises(UserError, match="65 hosts are too many"):
        order.host_lanes(130, 65)
