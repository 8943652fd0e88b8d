"""Reads a whole dataset again and compares it with its manifest.

    python -m pipeline.verify --data=DATA

Every byte is covered by a checksum: of each record, of each shard, of rejects.jsonl, of dataset.json itself. Besides,
every record is decoded: its tensors must have the manifest's shapes and lie in [-1, 1], and its key must stand where
the deal puts it, which no key can do twice. The first thing that is wrong is named with its shard and byte offset, and
the exit status is 1. All cores are used.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from absl import flags
from tqdm import tqdm

from pipeline import cli, example, features, files, manifest, shards, tensors, tfrecord
from pipeline.errors import UserError, one_line
from pipeline.manifest import FileInfo, Manifest, ShardInfo
from pipeline.shards import SPLITS, Partition, Shard

_LOGGER = logging.getLogger("pipeline.verify")
_TOLERANCE = 1e-3  # rounding of half precision


def main(argv: Sequence[str]) -> None:
    """Verifies the dataset that a command line names."""
    values = flags.FlagValues()
    flags.DEFINE_string("data", None, "The directory of a dataset, local or remote.", flag_values=values)
    cli.parse_flags(values, argv, __doc__)
    cli.require(values, "data")
    verify(values.data)


def verify(directory: str) -> Manifest:
    """Verifies a dataset.

    Args:
        directory: local or remote.

    Returns:
        Its manifest.

    Raises:
        UserError: it is not what was written.
    """
    found = manifest.read(directory)
    _check_stray(directory, found)
    _check_rejects(directory, found)
    jobs = [
        _Job(directory, found.layout, found.partition, Shard(split, number), info, *_sidecar(found, split, number))
        for split in SPLITS
        for number, info in enumerate(found.splits[split].shards)
    ]
    written: dict[str, collections.Counter[str]] = {split: collections.Counter() for split in SPLITS}
    size = sum(info.bytes for job in jobs for info in (job.info, job.sidecar) if info)
    with (
        concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool,
        tqdm(total=size, desc="verify", unit="B", unit_scale=True, disable=None) as bar,
    ):
        try:
            for job, by_source in zip(jobs, pool.map(_verify_shard, jobs), strict=True):
                written[job.shard.split].update(by_source)
                bar.update(job.info.bytes + (job.sidecar.bytes if job.sidecar else 0))
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError("a process of verify was killed, as when memory runs out; start it again") from error
        finally:
            pool.shutdown(cancel_futures=True)
    for split in SPLITS:
        if written[split] != collections.Counter(found.splits[split].written):
            raise UserError(
                f"the {split} split of {directory} holds {dict(written[split])} by source, dataset.json says "
                f"{found.splits[split].written}; {manifest.MEND_SHARD}"
            )
    _LOGGER.info("%s: %d examples in %d shards, %d bytes, all as written", directory, found.examples, len(jobs), size)
    return found


def _check_stray(directory: str, found: Manifest) -> None:
    """Looks for shards that the manifest does not know: a reader of patterns would read them."""
    known = {info.name for split in found.splits.values() for info in split.shards}
    if stray := sorted(name for name in files.names(directory) if shards.is_shard_name(name) and name not in known):
        raise UserError(f"{directory} holds {stray[0]}, which dataset.json does not know; delete it")


def _check_rejects(directory: str, found: Manifest) -> None:
    seen: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
    with _opened(directory, found.rejects) as file:
        for line in file:
            try:
                split, source, reason = (json.loads(line)[name] for name in ("split", "source", "reason"))
                by_reason = seen[split].setdefault(source, {})
            except (ValueError, KeyError, TypeError):
                break  # which the checksum, or the counts, will tell
            by_reason[reason] = by_reason.get(reason, 0) + 1
    if seen != {split: found.splits[split].rejected for split in SPLITS}:
        raise UserError(
            f"{directory}/{found.rejects.name} names others than dataset.json counts; {manifest.MEND_SHARD}"
        )


@dataclasses.dataclass(frozen=True)
class _Job:
    """One shard, and all that there is to know of it."""

    directory: str
    layout: str
    partition: Partition
    shard: Shard
    info: ShardInfo
    sidecar: ShardInfo | None  # the file with its features, if there is one
    classes: int  # of the features


def _sidecar(found: Manifest, split: str, number: int) -> tuple[ShardInfo | None, int]:
    return (found.features.shards[split][number], found.features.classes) if found.features else (None, 0)


def _verify_shard(job: _Job) -> dict[str, int]:
    """Verifies one shard and counts its examples by source."""
    keys: list[str] = []
    written = _verify_examples(job, keys)
    if job.sidecar is not None:
        _verify_sidecar(job, job.sidecar, keys)
    return written


def _verify_sidecar(job: _Job, info: ShardInfo, keys: Sequence[str]) -> None:
    """Verifies that a sidecar holds the features of the examples of these keys, in their order."""
    offset = count = 0
    starts: list[int] = []
    with _opened(job.directory, info, manifest.MEND_SIDECAR) as file:
        try:
            for record in tfrecord.read(file):
                key, _ = features.decode(record, job.classes)
                if keys[count : count + 1] != [key]:
                    raise ValueError(f"features of {key} where those of {keys[count : count + 1]} belong")
                starts.append(offset)
                offset, count = offset + len(record) + tfrecord.OVERHEAD_BYTES, count + 1
            if count != len(keys):
                raise ValueError(f"ends after {count} of {len(keys)} records")
            _check_segments(starts, info)
        except ValueError as error:
            raise UserError(
                f"{job.directory}/{info.name} is damaged, record {count} at byte {offset}: {one_line(error)}; "
                f"{manifest.MEND_SIDECAR}"
            ) from error


def _verify_examples(job: _Job, keys: list[str]) -> dict[str, int]:
    """Verifies the examples of a shard, counts them by source, and appends their keys."""
    layout, offset = example.layout(job.layout), 0
    written: collections.Counter[str] = collections.Counter()
    starts: list[int] = []
    last: tuple[int, str] | None = None
    with _opened(job.directory, job.info) as file:
        try:
            for record in tfrecord.read(file):
                found = example.decode(record, layout)
                _check_values(found, layout)
                last = _check_place(found.key, job, last)
                written[found.source] += 1
                keys.append(found.key)
                starts.append(offset)
                offset += len(record) + tfrecord.OVERHEAD_BYTES
            _check_segments(starts, job.info)
        except ValueError as error:
            raise UserError(
                f"shard {job.directory}/{job.info.name} is damaged, record {sum(written.values())} at byte {offset}: "
                f"{one_line(error)}; {manifest.MEND_SHARD}"
            ) from error
    if sum(written.values()) != job.info.examples:
        raise UserError(
            f"shard {job.directory}/{job.info.name} holds {sum(written.values())} examples, {job.info.examples} were "
            f"written; {manifest.MEND_SHARD}"
        )
    return dict(written)


def _check_segments(starts: Sequence[int], info: ShardInfo) -> None:
    """Compares where records begin with where a reader will look for them."""
    if tuple(starts[:: tfrecord.SEGMENT_RECORDS]) != info.segments:
        raise ValueError("its segments begin at other bytes than dataset.json says")


def _check_values(found: example.Example, layout: example.Layout) -> None:
    if not found.key:
        raise ValueError("no key")
    for name, shape in tensors.SHAPES.items():
        values = found.tensors[name]
        if values.shape != shape or not (np.abs(values) <= 1 + layout.storage[name].error + _TOLERANCE).all():
            raise ValueError(f"{name} of {found.key} is not {list(shape)} in [-1, 1]")
    if (found.tensors["l_299"] != found.tensors["l_299"][..., :1]).any():
        raise ValueError(f"l_299 of {found.key} is not one channel three times")


def _check_place(key: str, job: _Job, last: tuple[int, str] | None) -> tuple[int, str]:
    """A shard holds the keys that are dealt to it, in ascending order: so each is there once."""
    place = job.partition.place(key)
    if place.shard != job.shard:
        raise ValueError(f"{key} belongs to {job.partition.file_name(place.shard)}")
    if last is not None and (place.rank, key) <= last:
        raise ValueError(f"{key} is there twice" if key == last[1] else f"{key} is out of order")
    return place.rank, key


@contextlib.contextmanager
def _opened(directory: str, info: FileInfo, advice: str = manifest.MEND_SHARD) -> Iterator[BinaryIO]:
    """Opens a file, and looks when the block has read it whether it is what was written."""
    path = os.path.join(directory, info.name)
    try:
        with files.open_binary(path) as file:
            yield file
            file.seek(0)
            crc, size = tfrecord.checksum(file), file.tell()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; {advice}") from error
    if (size, f"{crc:08x}") != (info.bytes, info.crc32c):
        raise UserError(
            f"{path} is damaged: {size} bytes with checksum {crc:08x}, {info.bytes} with {info.crc32c} were written; "
            f"{advice}"
        )


if __name__ == "__main__":
    cli.launch(main)
