"""The preprocessing job as transforms on an open pipeline.

    sources -> parts -> references -> (shard, block of references) -> GroupByKey -> one shard each -> manifest

Only references cross the shuffle: a few tens of bytes for a picture, against 0.84 MB for its tensors.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from crc32c import crc32c

from beam_jobs import blocks, sources, storage
from beam_jobs.blocks import Placed
from beam_jobs.job_folder import JobFolder
from beam_jobs.listing import ListPictures
from beam_jobs.shard_writer import ShardReport, ShardSummary, WriteShard
from beam_jobs.sources import Source
from beam_jobs.spec import DatasetSpec
from pipeline import color_counts, manifest
from pipeline.errors import UserError
from pipeline.manifest import FeaturesInfo, FileInfo, Manifest, SplitInfo
from pipeline.rejects import Reason
from pipeline.shards import SPLITS, TRAIN

_Counts = dict[tuple[str, str], int]  # by split and source


def write_dataset(
    pipeline: beam.Pipeline,
    inputs: Sequence[Source],
    output: str,
    spec: DatasetSpec,
    settings: dict[str, Any],
    overwrite: bool,
    max_reject_fraction: float,
) -> None:
    """Adds the whole job to a pipeline; the dataset is complete when `dataset.json` stands in `output`.

    Args:
        pipeline: an open pipeline.
        inputs: collections of pictures.
        output: the dataset's directory, absolute; its `JobFolder` is open.
        spec: what the dataset is to be.
        settings: the `settings_of` the job, with which the folder was opened.
        overwrite: replace shards of other pictures instead of refusing them.
        max_reject_fraction: the share of rejected pictures, in [0, 1], above which the job fails.
    """
    placed = pipeline | ListPictures(inputs, output, spec.partition)
    listed = placed | beam.Map(_count) | "CountListed" >> beam.CombinePerKey(sum)
    # A shard to which no picture falls is written all the same, empty: the names promise a number of files.
    every = [(tuple(shard), blocks.EMPTY) for shard in spec.partition.shards()]
    seeds = pipeline | "EveryShard" >> beam.Create(every).with_output_types(Placed)
    write = WriteShard(output, spec, overwrite, settings)
    summaries = (placed, seeds) | beam.Flatten() | beam.GroupByKey() | "WriteShard" >> beam.ParDo(write)
    (
        summaries
        | beam.combiners.ToList()
        | "WriteManifest"
        >> beam.Map(_write_manifest, beam.pvalue.AsDict(listed), inputs, output, spec, settings, max_reject_fraction)
    )


def settings_of(inputs: Sequence[Source], spec: DatasetSpec) -> dict[str, Any]:
    """What decides over the bytes of a dataset, for its `JobFolder`."""
    return {"schema_version": manifest.SCHEMA_VERSION, "sources": sources.describe(inputs), **spec.to_dict()}


def _count(placed: Placed) -> tuple[tuple[str, str], int]:
    (split, _), block = placed
    return (split, block.source), block.pictures


def _write_manifest(
    summaries: Sequence[ShardSummary],
    listed: _Counts,
    inputs: Sequence[Source],
    output: str,
    spec: DatasetSpec,
    settings: dict[str, Any],
    max_reject_fraction: float,
) -> None:
    """Writes `rejects.jsonl`, looks whether every picture is accounted for, and writes `dataset.json`."""
    sources.check_unchanged(inputs, settings["sources"])
    JobFolder(output).check_owner(settings)
    summaries = sorted(summaries, key=lambda summary: (SPLITS.index(summary.shard.split), summary.shard.number))
    rejects = _write_rejects(summaries, output)
    result = Manifest(
        layout=spec.layout,
        resize_mode=spec.resize_mode,
        seed=spec.partition.seed,
        validation_fraction=spec.partition.validation_fraction,
        filters=spec.filters,
        splits={split: _split_info(split, summaries, listed) for split in SPLITS},
        rejects=rejects,
    )
    _check_result(result, output, max_reject_fraction)
    result = dataclasses.replace(result, features=_features(result, output))
    storage.write_manifest(output, result)


def _features(result: Manifest, output: str) -> FeaturesInfo | None:
    """Those of the shards that stood there before, if they are the same shards."""
    path = FileSystems.join(output, manifest.FILE_NAME)
    if (text := storage.read_if_there(path)) is None:
        return None
    try:
        before = Manifest.from_json(text, path)
    except UserError:
        return None
    return before.features if before.splits == result.splits else None


def _write_rejects(summaries: Iterable[ShardSummary], output: str) -> FileInfo:
    """Gathers the rejects from the reports of all shards, one report in memory at a time."""
    size, crc = 0, 0
    with storage.create(FileSystems.join(output, manifest.REJECTS_FILE_NAME)) as file:
        rejected = (summary.info.name for summary in summaries if summary.rejected)
        for report in JobFolder(output).read_reports(rejected, ShardReport):
            for reject in report.rejects:
                line = json.dumps({"split": report.shard.split, **dataclasses.asdict(reject)}).encode() + b"\n"
                file.write(line)
                size, crc = size + len(line), crc32c(line, crc)
    return FileInfo(manifest.REJECTS_FILE_NAME, size, f"{crc:08x}")


def _split_info(split: str, summaries: Iterable[ShardSummary], listed: _Counts) -> SplitInfo:
    own = [summary for summary in summaries if summary.shard.split == split]
    written: Counter[str] = Counter()
    rejected: dict[str, Counter[Reason]] = {}
    for summary in own:
        written.update(summary.written)
        for source, by_reason in summary.rejected.items():
            rejected.setdefault(source, Counter()).update(by_reason)
    return SplitInfo(
        shards=tuple(summary.info for summary in own),
        listed={source: count for (each, source), count in sorted(listed.items()) if each == split},
        written=dict(sorted(written.items())),
        rejected={source: dict(sorted(by_reason.items())) for source, by_reason in sorted(rejected.items())},
        colors=sum((summary.colors for summary in own), color_counts.NONE),
    )


def _check_result(result: Manifest, output: str, max_reject_fraction: float) -> None:
    """Refuses a result that nobody should train on."""
    rejected = sum(result.rejected.values())
    if result.listed != result.examples + rejected:
        raise UserError(
            f"{result.listed} pictures were listed, but {result.examples} written and {rejected} rejected: the sources "
            "changed while they were read; start the job again"
        )
    reasons = ", ".join(f"{count} {reason.value}" for reason, count in result.rejected.items())
    see = f"{reasons}; {output}/{manifest.REJECTS_FILE_NAME} names each"
    if not result.splits[TRAIN].examples:
        found = f"no picture for the train split: {result.listed} found, {rejected} of them rejected"
        raise UserError(f"{found}: {see}" if rejected else f"{found}; lower dataset.validation_fraction")
    if rejected > max_reject_fraction * result.listed:
        raise UserError(
            f"{rejected} of {result.listed} pictures were rejected, more than --max_reject_fraction="
            f"{max_reject_fraction:g} allows: {see}; mend them, turn a filter off, or allow more"
        )
