"""Sidecar shards: the extractor's scores of every example of a shard, so that training runs without the extractor.

Beside `train-00003-of-00016.tfrecord` stands `train-00003-of-00016.89abcdef01234567.features`, with the fingerprint of
the extractor: TFRecords, one for each of the shard's, in their order. Each is a `tf.train.Example` of the example's key
and its features, raw little-endian float32.
"""

import re

import numpy as np

from pipeline.example import expecting, parse, serialize
from pipeline.shards import is_shard_name

VIEWS = 2  # the picture, and its mirror image
_NAME = re.compile(r"(.*)\.[0-9a-f]{16}\.features")
_DTYPE = np.dtype("<f4")


def sidecar_name(shard: str, extractor: str) -> str:
    """The file name of the sidecar that an extractor makes of a shard."""
    return f"{shard.removesuffix('.tfrecord')}.{extractor}.features"


def is_sidecar_name(name: str) -> bool:
    """Whether a file name is one that `sidecar_name` gives."""
    match = _NAME.fullmatch(name)
    return match is not None and is_shard_name(f"{match[1]}.tfrecord")


def encode(key: str, features: np.ndarray) -> bytes:
    """Serializes the features of an example: float32 [2, classes], of the picture and of its mirror image."""
    return serialize({"key": key.encode(), "features": features.astype(_DTYPE).tobytes()})


def decode(record: bytes | memoryview, classes: int) -> tuple[str, np.ndarray]:
    """The inverse of `encode`: the key, and float32 [2, classes], in the memory of the record.

    Raises:
        ValueError: the record does not hold finite features of so many classes.
    """
    with expecting(f"features of {classes} classes"):
        feature = parse(record)
        key = str(feature["key"], "utf-8")
        values = np.frombuffer(feature["features"], _DTYPE).reshape(VIEWS, classes)
    if not np.isfinite(values).all():
        raise ValueError(f"features of {key} are not finite")
    return key, values
