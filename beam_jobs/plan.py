"""What a job would do, before anything is spent on it: `--dry_run`.

All pictures are listed, and some of them are converted, to tell how long the rest will take. Nothing is written.
"""

import collections
import dataclasses
import heapq
import itertools
import os
import shutil
import time
from collections.abc import Sequence

from tqdm import tqdm

from beam_jobs import blocks, shard_writer, sources, storage
from beam_jobs.blocks import Placed
from beam_jobs.read_ahead import read_ahead
from beam_jobs.sources import ImageRef, Source
from beam_jobs.spec import DatasetSpec
from pipeline import tfrecord
from pipeline.errors import UserError
from pipeline.rejects import Reason, RejectedImage
from pipeline.shards import SPLITS, Partition

_SAMPLE = 100  # pictures that are converted
_GLANCE = 5000  # pictures that are listed of an archive, where a glance must do


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a job before it runs.

    Attributes:
        listed: pictures by split and source.
        source_bytes: of all pictures as they are stored now.
        sampled: how many pictures were converted.
        rejected: how many of these would be rejected, by reason.
        seconds_per_picture: CPU seconds that one takes.
        bytes_per_example: of a record of one picture; 0 where all were rejected.
        shuffled_bytes_per_picture: that cross the shuffle.
    """

    listed: dict[tuple[str, str], int]
    source_bytes: int
    sampled: int
    rejected: dict[Reason, int]
    seconds_per_picture: float
    bytes_per_example: float
    shuffled_bytes_per_picture: float

    def describe(self, spec: DatasetSpec, cores: int) -> str:
        """The plan as text, for a person."""
        total = sum(self.listed.values())
        lines = [
            f"{split:<11} {count:>10} pictures of {source}" for (split, source), count in sorted(self.listed.items())
        ]
        reasons = ", ".join(f"{count} {reason.value}" for reason, count in self.rejected.items()) or "none"
        for split in SPLITS:
            count = sum(number for (each, _), number in self.listed.items() if each == split)
            shards = spec.partition.shard_count(split)
            size = count * self._kept * self.bytes_per_example
            lines.append(f"{split:<11} {shards:>10} shards of {_bytes(size / shards)}, {_bytes(size)} without rejects")
        seconds = total * self.seconds_per_picture
        return "\n".join(
            [
                *lines,
                f"reads       {_bytes(self.source_bytes)}",
                f"rejects     {reasons} of {self.sampled} that were tried",
                f"shuffles    {_bytes(total * self.shuffled_bytes_per_picture)}, "
                f"{self.shuffled_bytes_per_picture:.0f} bytes for a picture",
                f"takes       {_duration(seconds)} of one core, {1000 * self.seconds_per_picture:.1f} ms a picture; "
                f"{_duration(seconds / cores)} on {cores} cores like this machine's",
            ]
        )

    def check(self, spec: DatasetSpec, output: str, max_reject_fraction: float) -> None:
        """Looks for what would make the job fail.

        Args:
            spec: what the dataset is to be.
            output: its directory.
            max_reject_fraction: the share of rejected pictures above which the job fails.

        Raises:
            UserError: too many rejects, or a local disk that is too small.
        """
        rejected = sum(self.rejected.values())
        if rejected > max_reject_fraction * self.sampled:
            raise UserError(
                f"the job would fail: {rejected} of {self.sampled} pictures that were tried are rejected, more than "
                f"--max_reject_fraction={max_reject_fraction:g} allows; turn a filter off, or allow more"
            )
        if "://" in output:
            return
        standing = storage.names(output) & {spec.partition.file_name(shard) for shard in spec.partition.shards()}
        kept = sum(storage.stat(os.path.join(output, name)).size for name in standing)
        needed, free = self._written_bytes - kept, _free_bytes(output)
        if needed > free:
            raise UserError(
                f"the job would fail: it writes {_bytes(needed)}, and {_bytes(free)} are free in {output}; make room, "
                "or choose --config.dataset.layout=compact"
            )

    @property
    def _kept(self) -> float:
        """The share of pictures that is not rejected."""
        return 1 - sum(self.rejected.values()) / self.sampled

    @property
    def _written_bytes(self) -> float:
        return sum(self.listed.values()) * self._kept * self.bytes_per_example


def make_plan(inputs: Sequence[Source], spec: DatasetSpec, glance: bool = False) -> Plan:
    """Lists all sources and converts some of their pictures.

    Args:
        inputs: the sources.
        spec: what the dataset is to be.
        glance: list only the beginning of archives, and take the rest for the same.

    Raises:
        UserError: a source that cannot be read.
    """
    total = _Listing()
    for source in inputs:
        total.add(_list(source, spec, glance))
    chosen = [ref for _, _, ref in total.sample]
    seconds, sizes, rejected = _try(chosen, spec)
    return Plan(
        listed={key: round(count) for key, count in total.counts.items()},
        source_bytes=round(total.source_bytes),
        sampled=len(chosen),
        rejected=rejected,
        seconds_per_picture=seconds / len(chosen),
        bytes_per_example=sum(sizes) / max(1, len(sizes)),
        shuffled_bytes_per_picture=total.shuffled_bytes / sum(total.counts.values()),
    )


class _Listing:
    """What was found in sources, or in the beginning of them, and some of their pictures."""

    def __init__(self) -> None:
        self.counts: collections.defaultdict[tuple[str, str], float] = collections.defaultdict(float)
        self.source_bytes = self.shuffled_bytes = 0.0
        self.pictures = 0
        self.end = 0  # of the last of them, in bytes of the archive
        self.sample: list[tuple[int, str, ImageRef]] = []  # those of the lowest ranks, which is a choice by hash

    def take(self, placed: Placed, partition: Partition) -> None:
        """Adds pictures that were listed."""
        (split, _), block = placed
        self.counts[split, block.source] += block.pictures
        self.pictures += block.pictures
        self.shuffled_bytes += blocks.shuffled_bytes(placed)
        for ref in blocks.unpack(block):
            self.source_bytes += ref.length
            self.end = max(self.end, ref.offset + ref.length)
            self._try_one((-partition.place(ref.key).rank, ref.key, ref))

    def _try_one(self, entry: tuple[int, str, ImageRef]) -> None:
        if len(self.sample) < _SAMPLE:
            heapq.heappush(self.sample, entry)
        else:
            heapq.heappushpop(self.sample, entry)

    def scale(self, factor: float) -> None:
        """Takes what was found for one part of so many."""
        self.counts.update({key: count * factor for key, count in self.counts.items()})
        self.source_bytes *= factor
        self.shuffled_bytes *= factor

    def add(self, other: "_Listing") -> None:
        """Adds what was found in another source."""
        for key, count in other.counts.items():
            self.counts[key] += count
        self.source_bytes += other.source_bytes
        self.shuffled_bytes += other.shuffled_bytes
        for entry in other.sample:
            self._try_one(entry)


def _list(source: Source, spec: DatasetSpec, glance: bool) -> _Listing:
    found = _Listing()
    some = _GLANCE if glance and sources.is_archive(source) else None
    with tqdm(desc="list", unit="image", unit_scale=True, disable=None) as bar:
        for placed in blocks.pack(itertools.islice(sources.list_pictures(source), some), spec.partition):
            found.take(placed, spec.partition)
            bar.update(placed[1].pictures)
    if found.pictures == some:
        found.scale(storage.stat(source.path).size / found.end)
    return found


def _try(refs: Sequence[ImageRef], spec: DatasetSpec) -> tuple[float, list[int], dict[Reason, int]]:
    """CPU seconds, bytes of the records, and rejects by reason."""
    sizes: list[int] = []
    rejected: collections.Counter[Reason] = collections.Counter()
    start = time.process_time()
    for ref, data in read_ahead(refs):
        try:
            sizes.append(len(shard_writer.make_record(ref, data, spec).data) + tfrecord.OVERHEAD_BYTES)
        except RejectedImage as error:
            rejected[error.reason] += 1
    return time.process_time() - start, sizes, dict(rejected)


def _free_bytes(output: str) -> int:
    """Of the disk of a local directory, absolute, that need not exist yet."""
    while not os.path.isdir(output):
        output = os.path.dirname(output)
    return shutil.disk_usage(output).free


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
