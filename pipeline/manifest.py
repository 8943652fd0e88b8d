"""`dataset.json`: what a dataset is. It is written last, so a directory without one is no dataset yet."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, BinaryIO

import msgspec
from crc32c import crc32c
from msgspec import Meta

from pipeline import example, features, files, tensors, tfrecord
from pipeline.color_counts import ColorCounts
from pipeline.errors import UserError, one_line
from pipeline.filters import Filters
from pipeline.image import ResizeMode
from pipeline.rejects import Reason
from pipeline.shards import SPLITS, Partition

FILE_NAME = "dataset.json"
REJECTS_FILE_NAME = "rejects.jsonl"
SCHEMA_VERSION = 4
MEND_SHARD = "run beam_jobs.preprocess again as before: it makes anew what is damaged"
MEND_SIDECAR = "run beam_jobs.embed again as before: it makes anew what is damaged"
_SEAL = "crc32c"
_Count = Annotated[int, Meta(ge=0)]


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """One file of a dataset: its name, size in bytes, and CRC-32C (eight hexadecimal digits)."""

    name: Annotated[str, Meta(pattern=r"^[^/]+$")]
    bytes: _Count
    crc32c: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}$")]


@dataclasses.dataclass(frozen=True)
class ShardInfo(FileInfo):
    """One shard file: how many examples it holds, and at which byte the first and then every 32nd begins."""

    examples: _Count
    segments: tuple[_Count, ...]

    @classmethod
    def of(cls, name: str, writer: tfrecord.Writer) -> "ShardInfo":
        """The entry of a file that a writer has written."""
        return cls(name, writer.bytes, f"{writer.crc32c:08x}", writer.records, tuple(writer.segments))


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split: its shards in order, and what became of the pictures of each source.

    Listed = written + rejected, for every source; `rejected` also tells them apart by reason. `colors` counts pixels of
    the pictures that were written.
    """

    shards: tuple[ShardInfo, ...]
    listed: dict[str, _Count]
    written: dict[str, _Count]
    rejected: dict[str, dict[Reason, _Count]]
    colors: ColorCounts

    @property
    def examples(self) -> int:
        """Examples of all shards together."""
        return sum(shard.examples for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class FeaturesInfo:
    """The features that `beam_jobs.embed` made: the fingerprint of the extractor, and a sidecar for every shard."""

    extractor: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]
    classes: Annotated[int, Meta(ge=1)]
    shards: dict[str, tuple[ShardInfo, ...]]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A dataset: how it was made, what each split holds, and, if they were made, the features of its pictures."""

    layout: str
    resize_mode: ResizeMode
    seed: _Count
    validation_fraction: Annotated[float, Meta(ge=0, lt=1)]
    filters: Filters
    splits: dict[str, SplitInfo]
    rejects: FileInfo
    features: FeaturesInfo | None = None

    @property
    def examples(self) -> int:
        """Examples of all splits together."""
        return sum(split.examples for split in self.splits.values())

    @property
    def partition(self) -> Partition:
        """The rule by which pictures were dealt to the shards."""
        train, validation = (len(self.splits[split].shards) for split in SPLITS)
        return Partition(self.seed, self.validation_fraction, train, validation)

    @property
    def listed(self) -> int:
        """Pictures that were found."""
        return sum(sum(split.listed.values()) for split in self.splits.values())

    @property
    def rejected(self) -> dict[Reason, int]:
        """Pictures that were found but could not be used, by reason; reasons that did not occur are left out."""
        counts: Counter[Reason] = Counter()
        for split in self.splits.values():
            for by_reason in split.rejected.values():
                counts.update(by_reason)
        return dict(counts)

    def to_json(self) -> str:
        """The text of `dataset.json`; equal manifests give equal text."""
        fields = {"schema_version": SCHEMA_VERSION, "tensors": _describe(self.layout), **dataclasses.asdict(self)}
        for split in fields["splits"].values():
            split["examples"] = sum(shard["examples"] for shard in split["shards"])
        return _sealed(fields)

    @classmethod
    def from_json(cls, text: str, path: str) -> "Manifest":
        """Reads the text of `dataset.json`.

        Args:
            text: the file's content.
            path: where it was read, for messages.

        Raises:
            UserError: not a manifest, of another schema version, or altered since it was written.
        """
        try:
            fields = json.loads(text)
            version = fields["schema_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is not a dataset manifest ({error!r}); make the dataset again") from error
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; make the dataset again "
                "with this version of the program"
            )
        if text != _sealed({name: value for name, value in fields.items() if name != _SEAL}):
            raise UserError(f"{path} is damaged: its checksum differs; make the dataset again")
        try:
            manifest = msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise UserError(f"{path} is damaged ({error}); make the dataset again") from error
        _check(manifest, path)
        if fields.get("tensors") != json.loads(json.dumps(_describe(manifest.layout))):
            raise UserError(
                f"{path} describes other tensors than layout '{manifest.layout}' has; make the dataset again"
            )
        return manifest


def read(directory: str, open_binary: Callable[[str], BinaryIO] = files.open_binary) -> Manifest:
    """Reads the manifest of a dataset.

    Args:
        directory: local or remote.
        open_binary: opens its file; another than the default where there is no TensorFlow.

    Raises:
        UserError: there is none, or none that can be used.
    """
    path = os.path.join(directory, FILE_NAME)
    try:
        with open_binary(path) as file:
            text = file.read().decode(errors="replace")
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(
            f"{directory} is no dataset: {path} cannot be read ({reason}); it is written last, so a job that was "
            "interrupted leaves none"
        ) from error
    return Manifest.from_json(text, path)


def _sealed(fields: dict[str, Any]) -> str:
    """JSON that ends in the CRC-32C of all of it but that line, so that no altered digit goes unnoticed."""
    crc = crc32c(json.dumps(fields, indent=1).encode())
    return json.dumps({**fields, _SEAL: f"{crc:08x}"}, indent=1)


def _describe(layout: str) -> dict[str, Any]:
    """Shape, range and storage of each tensor, for people and for programs in other languages."""
    return {
        name: {"shape": tensors.SHAPES[name], "range": tensors.RANGE, "stored": dataclasses.asdict(storage)}
        for name, storage in example.layout(layout).storage.items()
    }


def _check(manifest: Manifest, path: str) -> None:
    """What types cannot say."""
    if set(manifest.splits) != set(SPLITS):
        raise UserError(f"{path} is damaged (splits {sorted(manifest.splits)}); make the dataset again")
    for name, split in manifest.splits.items():
        accounted = Counter(split.written)
        for source, by_reason in split.rejected.items():
            accounted[source] += sum(by_reason.values())
        if accounted != Counter(split.listed):
            raise UserError(
                f"{path} is damaged ({name}: {split.listed} listed, {dict(accounted)} written or rejected); "
                "make the dataset again"
            )
        for info in split.shards:
            _check_segments(info, path)
        written = sum(split.written.values())
        if written != split.examples:
            raise UserError(
                f"{path} is damaged ({name} shards of {split.examples} examples from sources of {written}); "
                "make the dataset again"
            )
    if manifest.features is not None:
        expected = {
            split: [
                (features.sidecar_name(info.name, manifest.features.extractor), info.examples) for info in own.shards
            ]
            for split, own in manifest.splits.items()
        }
        found = {split: [(info.name, info.examples) for info in own] for split, own in manifest.features.shards.items()}
        if found != expected:
            raise UserError(f"{path} is damaged (features of other shards); make the dataset again")
        for own in manifest.features.shards.values():
            for info in own:
                _check_segments(info, path)


def _check_segments(info: ShardInfo, path: str) -> None:
    if len(info.segments) != -(-info.examples // tfrecord.SEGMENT_RECORDS):
        raise UserError(
            f"{path} is damaged ({len(info.segments)} segments of {info.examples} examples in {info.name}); make the "
            "dataset again"
        )
