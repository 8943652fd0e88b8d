"""`dataset.json`: what a dataset is. It is written last, so a directory without one is no dataset yet."""

import dataclasses
import json
from typing import Any

from pipeline import example, tensors
from pipeline.errors import UserError
from pipeline.shards import SPLITS

FILE_NAME = "dataset.json"
REJECTS_FILE_NAME = "rejects.jsonl"
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One shard file: its name, examples, size in bytes, and CRC-32C (eight hexadecimal digits)."""

    name: str
    examples: int
    bytes: int
    crc32c: str


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split: its shards in order, and counts per source of pictures written and rejected."""

    shards: tuple[ShardInfo, ...]
    examples_by_source: dict[str, int]
    rejected_by_source: dict[str, int]

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
    resize_mode: str
    seed: int
    validation_fraction: float
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
            manifest = _from_fields(fields)
            described = json.loads(json.dumps(_describe(manifest.layout)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error!r}); make the dataset again") from error
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


def _from_fields(fields: dict[str, Any]) -> Manifest:
    splits = {
        name: SplitInfo(
            shards=tuple(ShardInfo(**shard) for shard in split["shards"]),
            examples_by_source=dict(split["examples_by_source"]),
            rejected_by_source=dict(split["rejected_by_source"]),
        )
        for name, split in ((name, fields["splits"][name]) for name in SPLITS)
    }
    names = (field.name for field in dataclasses.fields(Manifest) if field.name != "splits")
    return Manifest(splits=splits, **{name: fields[name] for name in names})
