import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.shards import Partition, Shard, shard_name

KEYS = [f"images/{number}.jpg" for number in range(20_000)]


def partition(**changes):
    return Partition(**{"seed": 1, "validation_fraction": 0.1, "train_shards": 16, "validation_shards": 4, **changes})


def test_names():
    assert shard_name("train", 3, 16) == "train-00003-of-00016.tfrecord"
    assert partition().file_name(Shard("validation", 0)) == "validation-00000-of-00004.tfrecord"


def test_shares_are_as_asked():
    places = [partition().place(key) for key in KEYS]
    held_out = sum(place.shard.split == "validation" for place in places)
    assert held_out == pytest.approx(2000, abs=4 * 42)  # four standard deviations
    sizes = [sum(place.shard == shard for place in places) for shard in partition().shards()]
    assert min(sizes[:16]) > 1125 - 5 * 33
    assert max(sizes[:16]) < 1125 + 5 * 33


@given(st.text(), st.integers(-(2**63), 2**63 - 1))
def test_place_depends_on_key_and_seed_alone(key, seed):
    rule = partition(seed=seed)
    assert rule.place(key) == partition(seed=seed).place(key)
    assert rule.place(key).shard in rule.shards()


def test_another_seed_is_another_deal():
    moved = sum(partition().place(key).shard != partition(seed=2).place(key).shard for key in KEYS[:1000])
    assert moved > 800


def test_more_shards_keep_split_and_order():
    few, many = partition(), partition(train_shards=64, validation_shards=8)

    def in_order(rule):
        return sorted(
            KEYS[:2000], key=lambda key: (rule.place(key).shard.split, *rule.place(key)[0][1:], rule.place(key).rank)
        )

    assert in_order(few) == in_order(many)


def test_known_places_never_move():
    """Worked out once: a change of the rule would deal existing datasets anew."""
    assert partition().place("images/0.jpg") == (("train", 13), 15037047481779331060)
    assert partition().place("images/7.jpg") == (("validation", 1), 5032219990764896657)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_fraction": 1.0}, "dataset.validation_fraction is 1.0"),
        ({"validation_fraction": -0.1}, "dataset.validation_fraction is -0.1"),
        ({"train_shards": 0}, "dataset.train_shards is 0"),
        ({"validation_shards": 100_000}, "dataset.validation_shards is 100000"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        partition(**change)
