from apache_beam.coders import registry
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs import blocks
from beam_jobs.sources import ImageRef
from pipeline.shards import Partition

PARTITION = Partition(seed=1, validation_fraction=0.2, train_shards=5, validation_shards=2)
REFS = st.lists(
    st.builds(
        ImageRef,
        st.text(),
        st.sampled_from(["images", "imagenet"]),
        st.text(),
        st.binary(),
        st.integers(0, 1 << 45),
        st.integers(0, 1 << 30),
    )
)


@given(REFS)
def test_every_reference_arrives_in_the_block_of_its_shard(refs):
    coder = registry.get_coder(blocks.Placed)
    arrived = []
    for placed in blocks.pack(refs, PARTITION):
        shard, block = coder.decode(coder.encode(placed))
        own = blocks.unpack(block)
        assert {ref.source for ref in own} == {block.source}
        assert block.pictures == len(own)
        assert {tuple(PARTITION.place(ref.key).shard) for ref in own} == {shard}
        arrived += own
    assert sorted(arrived) == sorted(refs)


def many(count):
    return (ImageRef(f"images/photos/{n:08d}.jpg", "images", "", b"/photos.tar", 512 * n, 300) for n in range(count))


def test_references_are_dealt_as_they_come():
    """The first blocks leave long before the last picture is listed."""
    refs = many(100_000)
    next(blocks.pack(refs, PARTITION))
    assert 0 < int(next(refs).key[-12:-4]) < 50_000


def test_neighbors_share_their_bytes():
    packed = list(blocks.pack(many(50_000), PARTITION))
    assert sum(block.pictures for _, block in packed) == 50_000
    assert sum(len(block.data) for _, block in packed) < 15 * 50_000


def test_an_empty_block_holds_nothing():
    assert blocks.unpack(blocks.EMPTY) == []


def test_small_archives_share_blocks():
    """ImageNet's thousand tars, dealt to as many shards as the README advises."""
    partition = Partition(seed=1, validation_fraction=0.1, train_shards=2048, validation_shards=256)
    pack, placed = blocks.Pack(partition), []
    for ref in many(40_000):
        placed += pack.process(ref)
    placed += [each.value for each in pack.finish_bundle()]
    assert sum(block.pictures for _, block in placed) == 40_000
    assert sum(map(blocks.shuffled_bytes, placed)) < 50 * 40_000
