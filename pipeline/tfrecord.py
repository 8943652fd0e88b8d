"""TFRecord framing without TensorFlow.

A record is: length (uint64), masked CRC-32C of the length, the bytes, masked CRC-32C of the bytes; all little-endian.
Source: tensorflow/core/lib/io/record_writer.h.
"""

import io
import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

from crc32c import crc32c

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
OVERHEAD_BYTES = _HEADER.size + _FOOTER.size
# A shard is shuffled and skipped by runs of so many records: few enough to mix well, enough to be read at full speed.
SEGMENT_RECORDS = 32
_CHUNK_BYTES = 1 << 20
_MOST_BYTES = 1 << 31  # of an example; more is damage that its checksum does not show


class Writable(Protocol):
    """Anything with a `write` for bytes: a file, or one of Beam's."""

    def write(self, data: bytes, /) -> object:
        """Appends bytes."""


def _masked_crc(data: bytes | memoryview) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class Writer:
    """Writes records to an open file and knows what the file's manifest entry needs.

    Attributes:
        records: how many records were written.
        bytes: how many bytes were written.
        crc32c: the CRC-32C of all of them, the checksum that Cloud Storage keeps of every object.
        segments: at which byte the first, and then every 32nd (`SEGMENT_RECORDS`) record begins.
    """

    def __init__(self, file: Writable):
        self._file = file
        self.records = 0
        self.bytes = 0
        self.crc32c = 0
        self.segments: list[int] = []

    def write(self, record: bytes) -> None:
        """Appends one record."""
        if self.records % SEGMENT_RECORDS == 0:
            self.segments.append(self.bytes)
        length = struct.pack("<Q", len(record))
        for part in (length, _FOOTER.pack(_masked_crc(length)), record, _FOOTER.pack(_masked_crc(record))):
            self._file.write(part)
            self.crc32c = crc32c(part, self.crc32c)
            self.bytes += len(part)
        self.records += 1


class RecordBuffer:
    """Room for a record, used again for the next: what the processor's caches still hold is the fastest to fill."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def read(self, file: BinaryIO) -> memoryview | None:
        """Reads the next record of an open file and verifies it against its checksums.

        Returns:
            The record, which is valid until the next is read; None at the end of the file.

        Raises:
            ValueError: a checksum differs or the file ends within the record; the message has its byte offset.
        """
        offset = file.tell()
        length = _read_length(file, offset)
        if length is None:
            return None
        if length + _FOOTER.size > len(self._memory):
            self._memory = bytearray(length + _FOOTER.size)
        found = memoryview(self._memory)[: length + _FOOTER.size]
        if file.readinto(found) < len(found):  # type: ignore[attr-defined]  # all files of bytes have it
            raise ValueError(f"ends within a record at byte {offset}")
        record = found[:length].toreadonly()
        if _FOOTER.unpack_from(found, length)[0] != _masked_crc(record):
            raise ValueError(f"damaged record at byte {offset}")
        return record


def _read_length(file: BinaryIO, offset: int) -> int | None:
    """The length of the record that begins at an offset; None at the end of the file."""
    header = file.read(_HEADER.size)
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise ValueError(f"ends within a record at byte {offset}")
    length, length_crc = _HEADER.unpack(header)
    if length_crc != _masked_crc(header[:8]):
        raise ValueError(f"damaged record length at byte {offset}")
    if length > _MOST_BYTES:
        raise ValueError(f"a record of {length} bytes at byte {offset}")
    return length


def read(file: BinaryIO) -> Iterator[bytes]:
    """Yields the records of an open file, each verified against its checksums.

    Raises:
        ValueError: as `RecordBuffer.read`.
    """
    buffer = RecordBuffer()
    while (record := buffer.read(file)) is not None:
        yield bytes(record)


def skip(file: BinaryIO, records: int) -> None:
    """Hops over the next records of an open, seekable file without reading them.

    Raises:
        ValueError: their lengths are damaged, or the file ends before.
    """
    for _ in range(records):
        offset = file.tell()
        length = _read_length(file, offset)
        if length is None:
            raise ValueError(_ends_early(offset))
        file.seek(length + _FOOTER.size, io.SEEK_CUR)


def _ends_early(offset: int) -> str:
    return f"ends at byte {offset}, where another record is due"


def pick(file: BinaryIO, indices: Sequence[int]) -> Iterator[bytes]:
    """Yields some records of an open, seekable file, hopping over those between them.

    Args:
        file: at its start.
        indices: of the records, counted from 0, in ascending order.

    Raises:
        ValueError: a checksum differs, or the file ends before.
    """
    buffer = RecordBuffer()
    for before, index in itertools.pairwise((-1, *indices)):
        skip(file, index - before - 1)
        record = buffer.read(file)
        if record is None:
            raise ValueError(_ends_early(file.tell()))
        yield bytes(record)


def checksum(file: BinaryIO) -> int:
    """The CRC-32C of the rest of an open file."""
    crc = 0
    while chunk := file.read(_CHUNK_BYTES):
        crc = crc32c(chunk, crc)
    return crc
