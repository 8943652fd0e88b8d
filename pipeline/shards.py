"""Which shard a picture belongs to, and what the shard is called.

Split, shard and order come from a hash of the picture's key and the seed alone. So they depend neither on the order in
which pictures are found nor on the machine, and a picture stays in its split when others are added.
"""

import dataclasses
import hashlib
import re
from typing import NamedTuple

from pipeline.errors import UserError

TRAIN = "train"
VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)
_HASH_SPACE = 1 << 64
_SHARD_NAME = re.compile(rf"^({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.tfrecord$")


def shard_name(split: str, number: int, count: int) -> str:
    """The file name of a shard, as in `train-00003-of-00016.tfrecord`."""
    return f"{split}-{number:05d}-of-{count:05d}.tfrecord"


def is_shard_name(name: str) -> bool:
    """Whether a file name is one that `shard_name` gives."""
    return _SHARD_NAME.match(name) is not None


class Shard(NamedTuple):
    """One shard: its split and its number."""

    split: str
    number: int


class Place(NamedTuple):
    """Where a picture goes: its shard, and its rank there (pictures stand in ascending order of rank, then of key)."""

    shard: Shard
    rank: int


@dataclasses.dataclass(frozen=True)
class Partition:
    """The rule by which pictures are dealt to splits and shards.

    Attributes:
        seed: another seed gives another deal.
        validation_fraction: the share of pictures held out, in [0, 1).
        train_shards: number of shards of the train split, at least 1.
        validation_shards: number of shards of the validation split, at least 1.

    Raises:
        UserError: a value outside of its range.
    """

    seed: int
    validation_fraction: float
    train_shards: int
    validation_shards: int

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise UserError(
                f"dataset.validation_fraction is {self.validation_fraction}; choose a share from 0 to below 1"
            )
        for split in SPLITS:
            count = self.shard_count(split)
            if not 1 <= count <= 99_999:  # five digits in the name
                raise UserError(f"dataset.{split}_shards is {count}; choose a number from 1 to 99999")

    def shard_count(self, split: str) -> int:
        """How many shards a split has."""
        return self.train_shards if split == TRAIN else self.validation_shards

    def shards(self) -> list[Shard]:
        """All shards of the dataset, in order."""
        return [Shard(split, number) for split in SPLITS for number in range(self.shard_count(split))]

    def file_name(self, shard: Shard) -> str:
        """The file name of a shard of this partition."""
        return shard_name(shard.split, shard.number, self.shard_count(shard.split))

    def place(self, key: str) -> Place:
        """Deals a picture. Read in order, the shards of a split give its pictures in the order of their hashes."""
        digest = hashlib.blake2b(key.encode(), digest_size=16, salt=self.seed.to_bytes(8, "little", signed=True))
        lot, rank = (int.from_bytes(part, "big") for part in (digest.digest()[:8], digest.digest()[8:]))
        split = VALIDATION if lot < self.validation_fraction * _HASH_SPACE else TRAIN
        number = rank * self.shard_count(split) // _HASH_SPACE
        return Place(Shard(split, number), rank)
