"""What a dataset is to be; all that workers need of the configuration."""

import dataclasses
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from pipeline import example
from pipeline.errors import UserError
from pipeline.filters import Filters
from pipeline.image import ResizeMode
from pipeline.shards import Partition


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """How pictures are dealt, converted, filtered and laid out."""

    partition: Partition
    layout: str
    resize_mode: ResizeMode
    filters: Filters

    @classmethod
    def from_config(cls, config: ConfigDict) -> "DatasetSpec":
        """Reads the seed and the `dataset` fields.

        Raises:
            UserError: a value outside of its range.
        """
        fields = config.dataset
        modes = [mode.value for mode in ResizeMode]
        if fields.resize_mode not in modes:
            raise UserError(f"dataset.resize_mode is '{fields.resize_mode}'; choose one of {', '.join(modes)}")
        partition = Partition(config.seed, fields.validation_fraction, fields.train_shards, fields.validation_shards)
        layout = example.layout(fields.layout).name
        return cls(partition, layout, ResizeMode(fields.resize_mode), Filters(**fields.filters))

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return dataclasses.asdict(self)

    def digest(self) -> str:
        """16 hexadecimal digits that depend on every field."""
        return hashlib.blake2b(json.dumps(self.to_dict(), sort_keys=True).encode(), digest_size=8).hexdigest()
