"""Sidecar shards: the extractor's scores of every example of a shard, so that training runs without the extractor.

`train-00003-of-00016.features.tfrecord` stands beside `train-00003-of-00016.tfrecord` and holds a record for each of
its records, in their order: a `tf.train.Example` of the example's key and its features, raw little-endian float32.
"""

import re

import numpy as np

from pipeline import example_pb2
from pipeline.example import serialize

VIEWS = 2  # the picture, and its mirror image
_SUFFIX = ".features.tfrecord"
_DTYPE = np.dtype("<f4")


def sidecar_name(shard: str) -> str:
    """The file name of the sidecar of a shard."""
    return re.sub(r"\.tfrecord$", _SUFFIX, shard)


def is_sidecar_name(name: str) -> bool:
    """Whether a file name is one that `sidecar_name` gives."""
    return name.endswith(_SUFFIX)


def encode(key: str, features: np.ndarray) -> bytes:
    """Serializes the features of an example: float32 [2, classes], of the picture and of its mirror image."""
    return serialize({"key": key.encode(), "features": features.astype(_DTYPE).tobytes()})


def decode(record: bytes, classes: int) -> tuple[str, np.ndarray]:
    """The inverse of `encode`: the key, and float32 [2, classes].

    Raises:
        ValueError: the record does not hold finite features of so many classes.
    """
    try:
        feature = example_pb2.Example.FromString(record).features.feature
        key = feature["key"].bytes_list.value[0].decode()
        values = np.frombuffer(feature["features"].bytes_list.value[0], _DTYPE).reshape(VIEWS, classes)
    except Exception as error:  # protobuf's DecodeError is no ValueError in every implementation
        raise ValueError(f"not features of {classes} classes: {error}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"features of {key} are not finite")
    return key, values
