"""`dataset.json`: what a dataset is. It is written last, so a directory without one is no dataset yet."""

import dataclasses
import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pipeline import example, tensors
from pipeline.errors import UserError
from pipeline.image import ResizeMode
from pipeline.shards import SPLITS

FILE_NAME = "dataset.json"
REJECTS_FILE_NAME = "rejects.jsonl"
SCHEMA_VERSION = 1
_Count = Annotated[int, Meta(ge=0)]


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One shard file: its name, examples, size in bytes, and CRC-32C (eight hexadecimal digits)."""

    name: Annotated[str, Meta(pattern=r"^[^/]+$")]
    examples: _Count
    bytes: _Count
    crc32c: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}$")]


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split: its shards in order, and counts per source of pictures written and rejected."""

    shards: tuple[ShardInfo, ...]
    examples_by_source: dict[str, _Count]
    rejected_by_source: dict[str, _Count]

    @property
    def examples(self) -> int:
        """Examples of all shards together."""
        return sum(shard.examples for shard in self.shards)

    @property
    def rejected(self) -> int:
        """Pictures that were found but could not be used."""
        return sum(self.rejected_by_source.values())


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A dataset: how it was made and what each split holds."""

    layout: str
    resize_mode: ResizeMode
    seed: _Count
    validation_fraction: Annotated[float, Meta(ge=0, lt=1)]
    splits: dict[str, SplitInfo]

    @property
    def examples(self) -> int:
        """Examples of all splits together."""
        return sum(split.examples for split in self.splits.values())

    @property
    def rejected(self) -> int:
        """Pictures of all splits that were found but could not be used."""
        return sum(split.rejected for split in self.splits.values())

    def to_json(self) -> str:
        """The text of `dataset.json`; equal manifests give equal text."""
        fields = dataclasses.asdict(self)
        for split in fields["splits"].values():
            split["examples"] = sum(shard["examples"] for shard in split["shards"])
        return json.dumps({"schema_version": SCHEMA_VERSION, "tensors": _describe(self.layout), **fields}, indent=1)

    @classmethod
    def from_json(cls, text: str, path: str) -> "Manifest":
        """Reads the text of `dataset.json`.

        Args:
            text: the file's content.
            path: where it was read, for messages.

        Raises:
            UserError: not a manifest, of another schema version, or of an unknown layout.
        """
        try:
            fields = json.loads(text)
            version = fields["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a dataset manifest ({error!r}); make the dataset again") from error
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; make the dataset again "
                "with this version of the program"
            )
        try:
            manifest = msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise UserError(f"{path} is damaged ({error}); make the dataset again") from error
        _check(manifest, path)
        described = json.loads(json.dumps(_describe(manifest.layout)))
        if fields.get("tensors") != described:
            raise UserError(
                f"{path} describes other tensors than layout '{manifest.layout}' has; make the dataset again"
            )
        return manifest


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
        by_source = sum(split.examples_by_source.values())
        if by_source != split.examples:
            raise UserError(
                f"{path} is damaged ({name} shards of {split.examples} examples from sources of {by_source}); "
                "make the dataset again"
            )
