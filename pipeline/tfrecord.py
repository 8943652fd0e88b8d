"""TFRecord framing without TensorFlow.

A record is: length (uint64), masked CRC-32C of the length, the bytes, masked CRC-32C of the bytes; all little-endian.
Source: tensorflow/core/lib/io/record_writer.h.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import google_crc32c

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
OVERHEAD_BYTES = _HEADER.size + _FOOTER.size
# A shard is shuffled and skipped by runs of so many records: few enough to mix well, enough to be read at full speed.
SEGMENT_RECORDS = 32
_CHUNK_BYTES = 1 << 20


class Writable(Protocol):
    """Anything with a `write` for bytes: a file, or one of Beam's."""

    def write(self, data: bytes, /) -> object:
        """Appends bytes."""


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
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
            self.crc32c = google_crc32c.extend(self.crc32c, part)
            self.bytes += len(part)
        self.records += 1


def read(file: BinaryIO) -> Iterator[bytes]:
    """Yields the records of an open file, each verified against its checksums.

    Raises:
        ValueError: a checksum differs or the file ends within a record; the message has the record's byte offset.
    """
    while True:
        offset = file.tell()
        header = file.read(_HEADER.size)
        if not header:
            return
        if len(header) < _HEADER.size:
            raise ValueError(f"ends within a record at byte {offset}")
        length, length_crc = _HEADER.unpack(header)
        if length_crc != _masked_crc(header[:8]):
            raise ValueError(f"damaged record length at byte {offset}")
        record, footer = file.read(length), file.read(_FOOTER.size)
        if len(record) < length or len(footer) < _FOOTER.size:
            raise ValueError(f"ends within a record at byte {offset}")
        if _FOOTER.unpack(footer)[0] != _masked_crc(record):
            raise ValueError(f"damaged record at byte {offset}")
        yield record


def pick(file: BinaryIO, indices: Sequence[int]) -> Iterator[bytes]:
    """Yields some records of an open, seekable file, hopping over those between them.

    Args:
        file: at its start.
        indices: of the records, counted from 0, in ascending order.

    Raises:
        ValueError: a checksum differs, or the file ends before.
    """
    records, position = read(file), 0
    for index in indices:
        for _ in range(position, index):
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise ValueError(f"ends before record {index}")
            file.seek(_HEADER.unpack(header)[0] + _FOOTER.size, io.SEEK_CUR)
        record = next(records, None)
        if record is None:
            raise ValueError(f"ends before record {index}")
        yield record
        position = index + 1


def checksum(file: BinaryIO) -> int:
    """The CRC-32C of the rest of an open file."""
    crc = 0
    while chunk := file.read(_CHUNK_BYTES):
        crc = google_crc32c.extend(crc, chunk)
    return crc
