"""References cross the shuffle in blocks: those of one shard among some thousands that were listed one after another.

Names of neighbors are alike, so that compressed blocks take a fraction of the bytes of single references, both on the
wire and in the memory of an engine that groups them there: about 10 of 160 with 150 shards, 40 with 2,300.
"""

import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import msgspec
from apache_beam.coders import RowCoder, registry
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

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
    """Deals references to blocks, in flat memory.

    Args:
        refs: to pictures.
        partition: says which shard each belongs to.
    """
    listed = iter(refs)
    while some := list(itertools.islice(listed, _LISTED)):
        dealt: dict[tuple[Shard, str], list[ImageRef]] = {}
        for ref in some:
            dealt.setdefault((partition.place(ref.key).shard, ref.source), []).append(ref)
        for (shard, source), own in dealt.items():
            yield (shard.split, shard.number), Block(source, len(own), zlib.compress(_encode(own)))


class Pack(beam.DoFn):
    """References to blocks of them; those of several small archives share a block."""

    def __init__(self, partition: Partition):
        self._partition = partition
        self._refs: list[ImageRef] = []

    def process(self, ref: ImageRef) -> Iterator[Placed]:
        """Holds references until there are enough."""
        self._refs.append(ref)
        if len(self._refs) == _LISTED:
            yield from self._packed()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Lets go of the last ones."""
        for placed in self._packed():
            yield WindowedValue(placed, GlobalWindow().max_timestamp(), [GlobalWindow()])

    def _packed(self) -> Iterator[Placed]:
        refs, self._refs = self._refs, []
        return pack(refs, self._partition)


def unpack(block: Block) -> list[ImageRef]:
    """The references of a block, in the order in which they were packed."""
    return _decode(zlib.decompress(block.data))


def shuffled_bytes(placed: Placed) -> int:
    """The bytes that cross the shuffle, as Beam encodes them."""
    return len(registry.get_coder(Placed).encode(placed))
