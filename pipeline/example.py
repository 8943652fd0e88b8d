"""One example of a dataset: how its tensors are laid out in a record, and the way there and back.

A record is a `tf.train.Example` whose tensors are raw little-endian bytes. Two layouts hold the same tensors:

| layout  | stored as                            | bytes per example | largest error (Lab units)  |
|---------|--------------------------------------|-------------------|----------------------------|
| full    | float16, all three channels of l_299 | 837,462           | 0.012 in L, 0.031 in a, b  |
| compact | uint8, l_299 once                    | 239,929           | 0.197 in L, 0.5 in a, b    |

The bytes are those of the tensors; key, source, label and framing add about 150.
"""

import dataclasses
import math

import cv2
import numpy as np

from pipeline import example_pb2, tensors
from pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class Storage:
    """How one tensor stands in a record: value = stored * scale + offset, channels repeated to the tensor's own.

    `error` is the largest difference between a value and the value read back, both normalized; L in [-1, 1], a and b in
    [-1, 127 / 128], which all of sRGB is.
    """

    dtype: str
    shape: tuple[int, int, int]
    scale: float
    offset: float
    error: float

    def encode(self, values: np.ndarray) -> bytes:
        """float32 values in [-1, 1], of the tensor's shape, to raw bytes."""
        repeated = self.shape[-1] == 3  # of l_299, whose channels are alike: one is converted, then repeated
        values = np.ascontiguousarray(values[..., :1] if repeated else values[..., : self.shape[-1]])
        if self.dtype == "uint8":
            stored = np.clip(np.rint((values - self.offset) / self.scale), 0, 255).astype(np.uint8)
        else:
            stored = cv2.add(values, 0.0, dtype=cv2.CV_16F)  # as `astype` rounds, in a tenth of the time
        return (cv2.cvtColor(stored.view(np.uint16), cv2.COLOR_GRAY2RGB) if repeated else stored).tobytes()

    @property
    def nbytes(self) -> int:
        """Bytes of one example's tensor."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `encode`: float32 of the given shape."""
        stored = np.frombuffer(data, np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)
        values = stored.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
        return np.broadcast_to(values, shape)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A name and the storage of each tensor."""

    name: str
    storage: dict[str, Storage]


def _half(name: str) -> Storage:
    # Half precision keeps 11 bits: below 1 the step is 2**-11, and rounding errs by half of it.
    return Storage("float16", tensors.SHAPES[name], scale=1.0, offset=0.0, error=2.0**-12)


LAYOUTS = {
    "full": Layout("full", {name: _half(name) for name in tensors.SHAPES}),
    "compact": Layout(
        "compact",
        {
            "l_224": Storage("uint8", (224, 224, 1), scale=2 / 255, offset=-1.0, error=1 / 255),
            "l_299": Storage("uint8", (299, 299, 1), scale=2 / 255, offset=-1.0, error=1 / 255),
            # Whole units of a and b, so that gray is exact.
            "ab_224": Storage("uint8", (224, 224, 2), scale=1 / 128, offset=-1.0, error=0.5 / 128),
        },
    ),
}


def layout(name: str) -> Layout:
    """Finds a layout by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in LAYOUTS:
        raise UserError(f"layout '{name}' is unknown; choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


@dataclasses.dataclass(frozen=True)
class Example:
    """One picture of a dataset.

    `key` names the picture once and for all, `source` is the kind of collection it came from, `label` its class or "".
    `tensors` are float32 with the shapes of `pipeline.tensors.SHAPES`.
    """

    key: str
    source: str
    label: str
    tensors: dict[str, np.ndarray]


def encode(example: Example, layout: Layout) -> bytes:
    """Serializes an example; equal examples give equal bytes, those of protobuf's deterministic serialization."""
    features = {name: getattr(example, name).encode() for name in ("key", "source", "label")}
    features |= {name: storage.encode(example.tensors[name]) for name, storage in layout.storage.items()}
    return serialize(features)


def serialize(features: dict[str, bytes]) -> bytes:
    """The bytes of a `tf.train.Example` of single byte strings, in a quarter of protobuf's time.

    In the terms of example.proto: every map entry of `Features.feature`, in the order of its key, is a message of the
    key and of a `Feature`, which is a message of a `BytesList`, which is a message of one value.
    """
    entries: list[bytes] = []
    for name in sorted(features, key=str.encode):
        value = features[name]
        values = _tag(1, len(value))
        bytes_list = _tag(1, len(values) + len(value))
        feature = _tag(2, len(bytes_list) + len(values) + len(value))
        key = _tag(1, len(name.encode())) + name.encode()
        head = b"".join((key, feature, bytes_list, values))
        entries += (_tag(1, len(head) + len(value)), head, value)
    return b"".join((_tag(1, sum(map(len, entries))), *entries))


def _tag(field: int, length: int) -> bytes:
    """What precedes a message or a string of so many bytes in a field of another message."""
    tag = bytearray([field << 3 | 2])
    while length > 0x7F:
        tag.append(length & 0x7F | 0x80)
        length >>= 7
    tag.append(length)
    return bytes(tag)


def decode(record: bytes, layout: Layout) -> Example:
    """The inverse of `encode`, within the layout's error.

    Raises:
        ValueError: the record is not an example of this layout.
    """
    try:
        feature = example_pb2.Example.FromString(record).features.feature
        texts = {name: feature[name].bytes_list.value[0].decode() for name in ("key", "source", "label")}
        values = {
            name: storage.decode(feature[name].bytes_list.value[0], tensors.SHAPES[name])
            for name, storage in layout.storage.items()
        }
    except Exception as error:  # protobuf's DecodeError is no ValueError in every implementation
        raise ValueError(f"not a record of layout '{layout.name}': {error}") from error
    return Example(tensors=values, **texts)
