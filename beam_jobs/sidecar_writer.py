"""Shards to sidecar shards: the extractor runs over whole shards, in batches, and what it says is written beside them.

Source of the features: Baldassarre, Morín and Rodés-Guirao, "Deep Koalarization" (2017), section 3.2.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import ModelHandler
from ml_collections import ConfigDict

from beam_jobs import counters, storage
from beam_jobs.job_folder import JobFolder
from pipeline import example, features, manifest, tfrecord
from pipeline.errors import UserError, one_line
from pipeline.manifest import FeaturesInfo, Manifest, ShardInfo
from trainer import devices, models  # before TensorFlow, whose noise it keeps back
from trainer.models.extractor import Extractor

_BATCH = 32  # pictures in memory at a time, 34 MB of them; another size could change the last digits


@dataclasses.dataclass(frozen=True)
class SidecarReport:
    """What a sidecar was made from, and what is in it."""

    info: ShardInfo
    shard_crc32c: str


class ShardFeatures(NamedTuple):
    """The features of a shard's examples: their keys, and float32 [examples, 2, classes]."""

    shard: ShardInfo
    keys: list[str]
    values: np.ndarray


class FindMissing(beam.DoFn):
    """Shards to those whose sidecar has yet to be made, and, tagged `WHOLE`, the sidecars that stand there whole."""

    WHOLE = "whole"

    def __init__(self, directory: str, extractor: str):
        self._directory = directory
        self._extractor = extractor

    def process(self, shard: ShardInfo) -> Iterable[ShardInfo | beam.pvalue.TaggedOutput[Literal["whole"], ShardInfo]]:
        """Sends a shard one way or the other."""
        name = features.sidecar_name(shard.name, self._extractor)
        report = JobFolder(self._directory).read_report(name, SidecarReport)
        if (
            report is not None
            and report.shard_crc32c == shard.crc32c
            and storage.has_size(self._directory, shard)
            and storage.holds(self._directory, report.info)
        ):
            yield beam.pvalue.TaggedOutput(self.WHOLE, report.info)
        else:
            yield shard


class ExtractorHandler(ModelHandler[ShardInfo, ShardFeatures, Extractor]):
    """Runs the extractor over shards; a shard is an element, since its pictures would be a million times the bytes.

    Args:
        directory: of the dataset.
        layout: its name.
        config: the `model` fields and the seed of a configuration.
        fingerprint: of the extractor that the configuration names; a worker that builds another one fails.
    """

    def __init__(self, directory: str, layout: str, config: ConfigDict, fingerprint: str):
        super().__init__()
        self._directory = directory
        self._layout = layout
        self._config = config
        self._fingerprint = fingerprint

    def load_model(self) -> Extractor:
        """Called once in each process.

        Raises:
            UserError: the worker has other weights.
        """
        devices.configure(self._config.deterministic)
        extractor = models.create_extractor(self._config.model, self._config.seed)
        if extractor.fingerprint != self._fingerprint:
            raise UserError(
                f"a worker built extractor {extractor.fingerprint}, the job began with {self._fingerprint}: "
                "give model.feature_weights the same file, and the same version of Keras, everywhere"
            )
        return extractor

    def run_inference(
        self, batch: Sequence[ShardInfo], model: Extractor, inference_args: dict[str, Any] | None = None
    ) -> Iterator[ShardFeatures]:
        """The features of all examples of some shards."""
        for shard in batch:
            yield self._run(shard, model)

    def batch_elements_kwargs(self) -> dict[str, Any]:
        """A shard at a time; the batches that count are made within."""
        return {"min_batch_size": 1, "max_batch_size": 1}

    def _run(self, shard: ShardInfo, model: Extractor) -> ShardFeatures:
        layout = example.layout(self._layout)
        keys: list[str] = []
        values = np.empty((shard.examples, features.VIEWS, model.classes), np.float32)
        path = FileSystems.join(self._directory, shard.name)
        if not storage.holds(self._directory, shard):
            raise UserError(f"shard {path} is missing or damaged: its checksum differs; {manifest.MEND_SHARD}")
        try:
            with storage.open_binary(path) as file:
                records = (example.decode(record, layout) for record in tfrecord.read(file))
                while some := list(itertools.islice(records, _BATCH)):
                    start, end = len(keys), len(keys) + len(some)
                    keys += [each.key for each in some]
                    values[start:end] = model.features(np.stack([each.tensors["l_299"] for each in some]))
            if len(keys) != shard.examples:
                raise ValueError(f"{len(keys)} examples, {shard.examples} were written")
        except ValueError as error:
            raise UserError(f"shard {path} is damaged: {one_line(error)}; {manifest.MEND_SHARD}") from error
        return ShardFeatures(shard, keys, values)


class WriteSidecar(beam.DoFn):
    """Features of a shard to the sidecar's entry in the manifest."""

    def __init__(self, directory: str, extractor: str):
        self._directory = directory
        self._extractor = extractor

    def process(self, found: ShardFeatures) -> Iterable[ShardInfo]:
        """Writes one sidecar under its final name, then its report."""
        name = features.sidecar_name(found.shard.name, self._extractor)
        with storage.create(FileSystems.join(self._directory, name)) as file:
            writer = tfrecord.Writer(file)
            for key, values in zip(found.keys, found.values, strict=True):
                writer.write(features.encode(key, values))
        info = ShardInfo.of(name, writer)
        JobFolder(self._directory).write_report(name, SidecarReport(info, found.shard.crc32c))
        counters.count("embedded", writer.records)
        yield info


def register(infos: Sequence[ShardInfo], found: Manifest, extractor: str, classes: int, directory: str) -> None:
    """Enters the sidecars of all shards into the manifest.

    Raises:
        UserError: the dataset is no longer the one that was found when the job began.
    """
    by_name = {info.name: info for info in infos}
    shards = {
        split: tuple(by_name[features.sidecar_name(info.name, extractor)] for info in own.shards)
        for split, own in found.splits.items()
    }
    made = dataclasses.replace(found, features=FeaturesInfo(extractor, classes, shards))
    if manifest.read(directory, storage.open_binary) not in (found, made):  # the latter where an engine tries again
        raise UserError(f"{directory} was made anew, or other features of it, in the meantime; start the job again")
    storage.write_manifest(directory, made)
