"""One example of a dataset: how its tensors are laid out in a record, and the way there and back.

A record is a `tf.train.Example` whose tensors are raw little-endian bytes. Two layouts hold the same tensors:

| layout  | stored as                            | bytes per example | largest error (Lab units)  |
|---------|--------------------------------------|-------------------|----------------------------|
| full    | float16, all three channels of l_299 | 837,462           | 0.012 in L, 0.031 in a, b  |
| compact | uint8, l_299 once                    | 239,929           | 0.197 in L, 0.5 in a, b    |

The bytes are those of the tensors; key, source, label and framing add about 150.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

from pipeline import tensors
from pipeline.errors import UserError

_MOST_LENGTH_BITS = 31  # of a message, in protobuf


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
    def bits(self) -> str:
        """The dtype in which values travel as they are stored: of float16 its bits, which anything can copy."""
        return "uint16" if self.dtype == "float16" else self.dtype

    def view(self, data: bytes | memoryview) -> np.ndarray:
        """The values as they are stored, of the stored shape and dtype, in the memory of the raw bytes."""
        return np.frombuffer(data, np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `encode`: float32 of the given shape."""
        values = self.view(data).astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)
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

    In the terms of tensorflow/core/example/feature.proto: every map entry of `Features.feature`, in the order of its
    key, is a message of the key and of a `Feature`, which is a message of a `BytesList`, which is a message of one
    value.
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


def parse(record: bytes | memoryview) -> dict[str, memoryview]:
    """The inverse of `serialize`: where the record holds the value of each feature.

    Raises:
        ValueError: the record is no `tf.train.Example` of single byte strings.
    """
    try:
        values = {}
        for features in _contents(memoryview(record), 1):
            for entry in _contents(features, 1):
                parts = dict(_parts(entry))
                (bytes_list,) = _contents(parts[2], 1)
                (values[str(parts[1], "utf-8")],) = _contents(bytes_list, 1)
        return values
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"no example of single byte strings: {error!r}") from error


def _contents(message: memoryview, field: int) -> list[memoryview]:
    """The contents of a message that has nothing but one field, any number of times."""
    parts = list(_parts(message))
    if any(number != field for number, _ in parts):
        raise ValueError(f"fields {[number for number, _ in parts]} where only {field} is due")
    return [content for _, content in parts]


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that consists of messages and strings: number and content of each."""
    position = 0
    while position < len(message):
        tag, length, shift = message[position], 0, 0
        if tag > 0x7F or tag & 7 != 2:
            raise ValueError(f"tag {tag}")
        while True:
            position += 1
            length |= (message[position] & 0x7F) << shift
            if message[position] <= 0x7F:
                break
            shift += 7
            if shift > _MOST_LENGTH_BITS:
                raise ValueError("a length without end")
        position += 1 + length
        if position > len(message):
            raise ValueError(f"{position - len(message)} bytes are missing")
        yield tag >> 3, message[position - length : position]


def stored(record: bytes | memoryview, layout: Layout) -> tuple[str, dict[str, np.ndarray]]:
    """The key of an example, and its tensors as the layout stores them, float16 as its bits, in the record's memory.

    Raises:
        ValueError: the record is not an example of this layout.
    """
    with expecting(f"a record of layout '{layout.name}'"):
        features = parse(record)
        values = {name: storage.view(features[name]).view(storage.bits) for name, storage in layout.storage.items()}
        return str(features["key"], "utf-8"), values


def decode(record: bytes | memoryview, layout: Layout) -> Example:
    """The inverse of `encode`, within the layout's error.

    Raises:
        ValueError: the record is not an example of this layout.
    """
    with expecting(f"a record of layout '{layout.name}'"):
        features = parse(record)
        texts = {name: str(features[name], "utf-8") for name in ("key", "source", "label")}
        shapes = tensors.SHAPES
        values = {name: storage.decode(features[name], shapes[name]) for name, storage in layout.storage.items()}
        return Example(tensors=values, **texts)


@contextlib.contextmanager
def expecting(what: str) -> Iterator[None]:
    """Says of a record that is taken apart within the block what it is not.

    Raises:
        ValueError: a feature is missing, or is no such thing.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"not {what}: it has no {error}") from error
    except ValueError as error:
        raise ValueError(f"not {what}: {error}") from error
