"""The order of examples: which records each batch of each epoch reads, on any number of hosts.

The records of a split, segment after segment, are one long sequence: in training the segments are shuffled by seed and
epoch, in validation they are in the order of the shards. The sequence is cut into lanes of equal length, each lane a
stretch of its own that one reader follows; a batch takes as many records from every lane. A host reads some of the
lanes. So a batch holds the same examples however many hosts share it, its examples come from places far apart, and
where a batch stands in each lane is known without reading what went before.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from pipeline.errors import UserError
from pipeline.manifest import ShardInfo
from pipeline.tfrecord import SEGMENT_RECORDS

_MOST_LANES = 64


@dataclasses.dataclass(frozen=True)
class Segments:
    """The segments of a split's shards, in the order of the shards.

    Attributes:
        shard: int64 [S], which shard holds it.
        number: int64 [S], which of the shard's segments it is.
        examples: int64 [S].
    """

    shard: np.ndarray
    number: np.ndarray
    examples: np.ndarray

    @classmethod
    def of(cls, shards: Sequence[ShardInfo]) -> "Segments":
        """The segments that the entries of a manifest tell of."""
        counts = np.array([info.examples for info in shards], np.int64)
        segments = -(-counts // SEGMENT_RECORDS)
        number = np.concatenate([np.arange(0), *(np.arange(count) for count in segments)])
        shard = np.repeat(np.arange(len(counts)), segments)
        return cls(shard, number, np.minimum(counts[shard] - number * SEGMENT_RECORDS, SEGMENT_RECORDS))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a host reads of an epoch: for each of its lanes, stretches of segments.

    Attributes:
        stretches: int64 [P, 3]: segment, records of it to skip, records of it to take; lane after lane.
        splits: int64 [lanes + 1]: where each lane begins and ends among the stretches.
        missing: int64 [lanes]: how many records a lane lacks at its end, which something has to stand for.
    """

    stretches: np.ndarray
    splits: np.ndarray
    missing: np.ndarray


def lanes(batch_size: int) -> int:
    """Into how many lanes batches of this size are dealt: a divisor, of many numbers of hosts if it can be."""
    divisors = [number for number in range(1, _MOST_LANES + 1) if batch_size % number == 0]
    return max(divisors, key=lambda number: (sum(number % other == 0 for other in divisors), number))


def host_lanes(batch_size: int, hosts: int) -> int:
    """How many lanes a host reads.

    Raises:
        UserError: they cannot be shared equally.
    """
    if lanes(batch_size) % hosts:
        if hosts > _MOST_LANES:
            raise UserError(f"{hosts} hosts are too many: batches are read in {_MOST_LANES} lanes; take as many")
        larger = next(size for size in itertools.count(batch_size) if lanes(size) % hosts == 0)
        raise UserError(
            f"batch_size is {batch_size}, which is read in {lanes(batch_size)} lanes, and {hosts} hosts cannot share "
            f"these; set --config.batch_size={larger}"
        )
    return lanes(batch_size) // hosts


def shuffled(segments: Segments, seed: int, epoch: int) -> np.ndarray:
    """The segments in the order of an epoch: int64 [S]. NumPy promises these bits to be the same in all versions."""
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(len(segments.examples)), kind="stable")


def plan(
    segments: Segments, sequence: np.ndarray, steps: int, batch_size: int, first_step: int, host: int, hosts: int
) -> Plan:
    """What a host reads of an epoch from a step on.

    Args:
        segments: of the split.
        sequence: int64 [S], the order of the segments.
        steps: batches of the epoch.
        batch_size: examples of a batch, over all hosts.
        first_step: batches to leave out.
        host: which one, counted from 0.
        hosts: how many there are.
    """
    ends = np.cumsum(segments.examples[sequence])
    starts = ends - segments.examples[sequence]
    own, each = host_lanes(batch_size, hosts), batch_size // lanes(batch_size)
    stretches, missing = [], []
    for lane in range(host * own, (host + 1) * own):
        first, last = (lane * steps + first_step) * each, (lane + 1) * steps * each
        some = slice(np.searchsorted(ends, first, side="right"), np.searchsorted(starts, last, side="left"))
        skip = np.maximum(first - starts[some], 0)
        take = np.minimum(ends[some], last) - starts[some] - skip
        stretches.append(np.stack([sequence[some], skip, take], axis=1))
        missing.append(last - first - take.sum())
    splits = np.cumsum([0, *map(len, stretches)])
    return Plan(np.concatenate(stretches), splits, np.array(missing, np.int64))
