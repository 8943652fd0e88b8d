"""Makes one shard from references to its pictures: read, decode, convert, encode, write aside, rename."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import apache_beam as beam
import cv2
import numpy as np
from apache_beam.io.filesystems import FileSystems

from beam_jobs import blocks, counters, rejects, sources, storage
from beam_jobs.blocks import Block
from beam_jobs.job_folder import JobFolder
from beam_jobs.read_ahead import read_ahead
from beam_jobs.rejects import Reject
from beam_jobs.sources import ImageRef
from beam_jobs.spec import DatasetSpec
from pipeline import color_counts, example, image, manifest, tensors, tfrecord
from pipeline.color_counts import ColorCounts
from pipeline.errors import UserError
from pipeline.manifest import ShardInfo
from pipeline.rejects import Reason, RejectedImage
from pipeline.shards import Shard


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What became of the pictures of one shard; the second digest is of the references to all of them."""

    shard: Shard
    info: ShardInfo
    spec_digest: str
    pictures_digest: str
    written: dict[str, int]
    rejects: list[Reject]
    colors: ColorCounts


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """The counts of a report, by source, and by source and reason: what is of a size that engines like to carry."""

    shard: Shard
    info: ShardInfo
    written: dict[str, int]
    rejected: dict[str, dict[Reason, int]]
    colors: ColorCounts


class WriteShard(beam.DoFn):
    """((split, number), blocks of references) to the summary of the shard it writes, or finds whole.

    References come in any order and leave in that of the partition, so a shard is the same bytes on any runner.
    """

    def __init__(self, output: str, spec: DatasetSpec, overwrite: bool, settings: dict[str, Any]):
        self._output = output
        self._spec = spec
        self._overwrite = overwrite
        self._settings = settings
        self._job = JobFolder(output)

    def setup(self) -> None:
        """Called once in each worker."""
        cv2.setNumThreads(1)  # the runner's workers already share out the cores

    def process(self, element: tuple[tuple[str, int], Iterable[Block]]) -> Iterable[ShardSummary]:
        """Writes one shard under its final name, then its report."""
        shard, refs = Shard(*element[0]), [ref for block in element[1] for ref in blocks.unpack(block)]
        refs.sort(key=lambda ref: (self._spec.partition.place(ref.key).rank, ref.key, ref.path, ref.offset))
        name, pictures_digest = self._spec.partition.file_name(shard), sources.digest(refs)
        report = self._job.read_report(name, ShardReport)
        if report is not None and report.spec_digest != self._spec.digest():  # of a job that was thought to be gone
            report = None
        if report is not None and report.pictures_digest != pictures_digest:
            if not self._overwrite:
                raise UserError(
                    f"the pictures of the sources are others than when {name} was written; make the dataset anew with "
                    "--overwrite"
                )
            storage.delete(FileSystems.join(self._output, manifest.FILE_NAME))  # which is of those others
            report = None
        if report is None or not storage.holds(self._output, report.info):
            self._job.check_owner(self._settings)
            report = self._write(shard, name, refs, pictures_digest)
            self._job.write_report(name, report)
        for reject in report.rejects:
            counters.count(f"rejected_{reject.reason.value}")
        counters.count("written", report.info.examples)
        yield _summarize(report)

    def _write(self, shard: Shard, name: str, refs: list[ImageRef], pictures_digest: str) -> ShardReport:
        written: Counter[str] = Counter()
        rejected: list[Reject] = []
        colors = color_counts.Counter()
        with storage.create(FileSystems.join(self._output, name)) as file:
            writer = tfrecord.Writer(file)
            last: ImageRef | None = None
            for ref, data in read_ahead(refs):
                try:
                    _check_new(ref, last)
                    record = make_record(ref, data, self._spec)
                    writer.write(record.data)
                except RejectedImage as error:
                    rejected.append(Reject.of(ref, error))
                else:
                    last = ref
                    written[ref.source] += 1
                    colors.add(record.ab)
        counters.count("converted", len(refs))
        info = ShardInfo.of(name, writer)
        return ShardReport(shard, info, self._spec.digest(), pictures_digest, dict(written), rejected, colors.result())


class Record(NamedTuple):
    """The record that stands for a picture, and the picture's color: float32 [h, w, 2], normalized, without padding."""

    data: bytes
    ab: np.ndarray


def make_record(ref: ImageRef, data: bytes | OSError, spec: DatasetSpec) -> Record:
    """Turns a picture into a record.

    Args:
        ref: where it comes from.
        data: the bytes of its file, or why they cannot be had.
        spec: what is to become of it.

    Raises:
        RejectedImage: it cannot be used, or a filter refuses it.
    """
    rgb = image.decode(rejects.read(data), spec.filters.check_size)
    values = tensors.from_image(rgb, spec.resize_mode)
    height, width, _ = rgb.shape
    window = image.window(height, width, tensors.ENCODER_SIZE, spec.resize_mode)
    spec.filters.check_color(values["l_224"][window], values["ab_224"][window])
    record = example.encode(example.Example(ref.key, ref.source, ref.label, values), example.layout(spec.layout))
    return Record(record, values["ab_224"][window])


def _check_new(ref: ImageRef, last: ImageRef | None) -> None:
    """Pictures of one key stand next to each other; the first that can be used is taken."""
    if last is not None and ref.key == last.key:
        raise rejects.duplicate(last)


def _summarize(report: ShardReport) -> ShardSummary:
    rejected: dict[str, dict[Reason, int]] = {}
    for reject in report.rejects:
        by_reason = rejected.setdefault(reject.source, {})
        by_reason[reject.reason] = by_reason.get(reject.reason, 0) + 1
    return ShardSummary(report.shard, report.info, report.written, rejected, report.colors)
