"""Makes one shard from references to its pictures: read, decode, convert, encode, write aside, rename."""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Iterable

import apache_beam as beam
import cv2
from apache_beam.io.filesystems import FileSystems

from beam_jobs import storage
from beam_jobs.sources import ImageRef, RangeReader
from pipeline import example, image, tensors, tfrecord
from pipeline.errors import one_line
from pipeline.image import ResizeMode
from pipeline.manifest import ShardInfo
from pipeline.rejects import Reason, RejectedImage
from pipeline.shards import Partition, Shard


@dataclasses.dataclass(frozen=True)
class Reject:
    """A picture that was found but is not in the dataset, and why."""

    key: str
    source: str
    path: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What became of the pictures of one shard."""

    shard: Shard
    info: ShardInfo
    examples_by_source: dict[str, int]
    rejects: list[Reject]


class WriteShard(beam.DoFn):
    """((split, number), references) to the report of the shard it writes.

    References come in any order and leave in that of the partition, so a shard is the same bytes on any runner.
    """

    def __init__(self, output: str, partition: Partition, layout: str, resize_mode: ResizeMode):
        self._output = output
        self._partition = partition
        self._layout = example.layout(layout)
        self._resize_mode = resize_mode

    def setup(self) -> None:
        """Called once in each worker."""
        cv2.setNumThreads(1)  # the runner's workers already share out the cores

    def process(self, element: tuple[tuple[str, int], Iterable[ImageRef | None]]) -> Iterable[ShardReport]:
        """Writes one shard under its final name."""
        shard, refs = Shard(*element[0]), [ref for ref in element[1] if ref is not None]
        refs.sort(key=lambda ref: (self._partition.place(ref.key).rank, ref.key, ref.path, ref.offset))
        name = self._partition.file_name(shard)
        written: Counter[str] = Counter()
        rejects: list[Reject] = []
        with contextlib.closing(RangeReader()) as reader, storage.create(FileSystems.join(self._output, name)) as file:
            writer = tfrecord.Writer(file)
            last: ImageRef | None = None
            for ref in refs:
                try:
                    _check_new(ref, last)
                    writer.write(self._record(reader, ref))
                except RejectedImage as error:
                    rejects.append(Reject(ref.key, ref.source, os.fsdecode(ref.path), error.reason.value, error.detail))
                    beam.metrics.Metrics.counter("pictures", f"rejected_{error.reason.value}").inc()
                else:
                    last = ref
                    written[ref.source] += 1
                    beam.metrics.Metrics.counter("pictures", "written").inc()
        info = ShardInfo(name, writer.records, writer.bytes, f"{writer.crc32c:08x}")
        yield ShardReport(shard, info, dict(written), rejects)

    def _record(self, reader: RangeReader, ref: ImageRef) -> bytes:
        try:
            data = reader.read(ref)
        except OSError as error:
            raise RejectedImage(Reason.UNREADABLE_BYTES, one_line(error)) from error
        values = tensors.from_image(image.decode(data), self._resize_mode)
        return example.encode(example.Example(ref.key, ref.source, ref.label, values), self._layout)


def _check_new(ref: ImageRef, last: ImageRef | None) -> None:
    """Pictures of one key stand next to each other; the first that can be used is taken."""
    if last is not None and ref.key == last.key:
        detail = f"the key is taken by {os.fsdecode(last.path)} at byte {last.offset}"
        raise RejectedImage(Reason.DUPLICATE_KEY, detail)
