"""References cross the shuffle in blocks: those of one shard among some thousands that were listed one after another.

Names of neighbors are alike, so that compressed blocks take a tenth of the bytes of single references, both on the
wire and in the memory of an engine that groups them there.
"""

import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
from apache_beam.coders import RowCoder, registry

from beam_jobs.sources import ImageRef
from pipeline.shards import Partition, Shard

_LISTED = 1 << 14  # references in memory while they are dealt to blocks: some 10 MB
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[ImageRef]).decode


class Block(NamedTuple):
    """Some references to pictures of one source that go to one shard: how many, and `pack`ed."""

    source: str
    pictures: int
    data: bytes


registry.register_coder(Block, RowCoder)
Placed = tuple[tuple[str, int], Block]  # with the split and number of the shard: what crosses the shuffle
EMPTY = Block("", 0, zlib.compress(_encode([])))


def pack(refs: Iterable[ImageRef], partition: Partition) -> Iterator[Placed]:
    """Deals references of one source to blocks, in flat memory.

    Args:
        refs: to pictures, all of the same source.
        partition: says which shard each belongs to.
    """
    listed = iter(refs)
    while some := list(itertools.islice(listed, _LISTED)):
        dealt: dict[Shard, list[ImageRef]] = {}
        for ref in some:
            dealt.setdefault(partition.place(ref.key).shard, []).append(ref)
        for shard, own in dealt.items():
            yield (shard.split, shard.number), Block(own[0].source, len(own), zlib.compress(_encode(own)))


def unpack(block: Block) -> list[ImageRef]:
    """The references of a block, in the order in which they were packed."""
    return _decode(zlib.decompress(block.data))


def shuffled_bytes(placed: Placed) -> int:
    """The bytes that cross the shuffle, as Beam encodes them."""
    return len(registry.get_coder(Placed).encode(placed))
