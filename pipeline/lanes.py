"""Follows lanes of a plan through the files of a split: which records come when, each with its key and its weight."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pipeline import files, tfrecord
from pipeline.errors import UserError
from pipeline.order import Plan, Segments
from pipeline.reader import naming_damage
from pipeline.stream import Row
from pipeline.tfrecord import RecordBuffer

Decode = Callable[[memoryview], tuple[str, Row]]


@dataclasses.dataclass(frozen=True)
class Column:
    """Files that stand beside each other: the shards of a split, or their sidecars.

    Attributes:
        paths: of the files.
        starts: the byte at which each segment begins, file after file.
        advice: what to do where one is damaged.
        decode: makes of a record a key and values, which may lie in the record's memory.
    """

    paths: list[str]
    starts: list[int]
    advice: str
    decode: Decode

    def read(self, file: int, segment: int, skip: int, take: int, buffer: RecordBuffer) -> Iterator[tuple[str, Row]]:
        """Some records of a segment.

        Raises:
            UserError: the file cannot be read.
        """
        with naming_damage(self.paths[file], self.advice), files.open_binary(self.paths[file]) as opened:
            opened.seek(self.starts[segment])
            tfrecord.skip(opened, skip)
            for _ in range(take):
                record = buffer.read(opened)
                if record is None:
                    raise ValueError("it ends before its last record")
                yield self.decode(record)


@dataclasses.dataclass(frozen=True)
class Split:
    """The files of a split, as a reader of segments needs them.

    Attributes:
        segments: of its shards.
        columns: the shards and, with features, the sidecars.
    """

    segments: Segments
    columns: list[Column]

    def follow(self, plan: Plan, lanes: Iterable[int]) -> Iterator[tuple[str, Row, float]]:
        """Follows some lanes of a plan, a record of each in turn.

        Args:
            plan: of an epoch.
            lanes: which of its lanes.

        Yields:
            Key, values and weight of an example; what is missing is made up for with a weight of 0. The values are
            valid until the next are asked for.

        Raises:
            UserError: a file cannot be read.
        """
        buffers = [RecordBuffer() for _ in self.columns]
        return _in_turn([self._lane(plan, lane, buffers) for lane in lanes])

    def _lane(self, plan: Plan, lane: int, buffers: Sequence[RecordBuffer]) -> Iterator[tuple[str, Row, float]]:
        for segment, skip, take in plan.stretches[plan.splits[lane] : plan.splits[lane + 1]].tolist():
            for key, values in self._read(segment, skip, take, buffers):
                yield key, values, 1.0
        for _ in range(plan.missing[lane]):
            for key, values in self._read(0, 0, 1, buffers):
                yield key, values, 0.0

    def _read(self, segment: int, skip: int, take: int, buffers: Sequence[RecordBuffer]) -> Iterator[tuple[str, Row]]:
        file = int(self.segments.shard[segment])
        streams = [
            column.read(file, segment, skip, take, buffer) for column, buffer in zip(self.columns, buffers, strict=True)
        ]
        for (key, values), *others in zip(*streams, strict=True):
            for other, more in others:
                if other != key:
                    path, advice = self.columns[1].paths[file], self.columns[1].advice
                    raise UserError(f"{path} is damaged: features of {other} where those of {key} belong; {advice}")
                values = {**values, **more}
            yield key, values


def _in_turn(iterators: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """The first of each, the second of each, and so on; all are equally long."""
    for iterator in itertools.cycle(iterators):
        try:
            yield next(iterator)
        except StopIteration:
            return
