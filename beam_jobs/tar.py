"""Members of tar archives as byte ranges of the archive's file, so that archives are read in place.

An archive inside an archive (ImageNet's train tar holds a tar per class) is a byte range too, and so are its members.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK_BYTES = 512


class Member(NamedTuple):
    """A regular file of an archive: its name and where its bytes stand in the outermost file."""

    name: str
    offset: int
    length: int


class _Window(io.RawIOBase):
    """A byte range of a seekable file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data


def members(file: BinaryIO) -> Iterator[Member]:
    """Lists the regular files of an uncompressed tar archive, those of archives within it included.

    One pass over the headers, in flat memory.

    Args:
        file: a seekable file at its start; it must not be used by others while the listing goes on.

    Raises:
        tarfile.TarError: not a tar archive, or damaged or cut short; members before the damage were already yielded.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # the listing that tarfile keeps would grow with the archive
            if info.size < 0 or info.offset_data + info.size > end:
                raise tarfile.ReadError(f"member {info.name!r} of {info.size} bytes at byte {info.offset} of {end}")
            if not info.isreg():
                continue
            if info.name.endswith(".tar"):
                inner = _Window(file, info.offset_data, info.size)
                for member in members(inner):  # type: ignore[arg-type]  # all that tarfile needs of a file
                    yield member._replace(offset=info.offset_data + member.offset)
            else:
                yield Member(info.name, info.offset_data, info.size)
        _check_end(file, archive.offset)


def _check_end(file: BinaryIO, offset: int) -> None:
    """Tarfile takes a damaged header for the end of the archive; the true end is a block of zeros."""
    file.seek(offset)
    if file.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
        raise tarfile.ReadError(f"no member and no end of the archive at byte {offset}")
