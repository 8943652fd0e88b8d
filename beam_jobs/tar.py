"""Members of tar archives as byte ranges of the archive's file, so that archives are read in place.

An archive inside an archive (ImageNet's train tar holds a tar per class) is a byte range too, and can be listed by
itself.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from beam_jobs.positioned import Positioned

SUFFIX = ".tar"
_BLOCK_BYTES = 512
_LARGEST_PADDING = 4 << 20  # after the end; tar fills up to 10 kB, or to what -b says


class Member(NamedTuple):
    """A regular file of an archive: its name and where its bytes stand in the outermost file."""

    name: str
    offset: int
    length: int

    @property
    def is_archive(self) -> bool:
        """Whether its name is that of an archive."""
        return self.name.endswith(SUFFIX)


class _Window(Positioned):
    """A byte range of a seekable file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        super().__init__(length)
        self._file, self._start = file, start

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._start + self._position)
        data = self._file.read(self._wanted(size))
        self._position += len(data)
        return data


def members(file: BinaryIO, start: int, length: int) -> Iterator[Member]:
    """Lists the regular files of an uncompressed tar archive.

    One pass over the headers, in flat memory. Links are listed as empty files, so that none goes uncounted.

    Args:
        file: a seekable file; it can be listed by several generators in turn, not by several threads.
        start: where the archive begins in the file, in bytes.
        length: of the archive, in bytes.

    Raises:
        tarfile.TarError: not a tar archive, or damaged or cut short; members before the damage were already yielded.
        ValueError: a damaged header.
        OverflowError: a damaged header.
    """
    window = _Window(file, start, length)
    with tarfile.open(fileobj=window, mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # the listing that tarfile keeps would grow with the archive
            if info.size < 0 or info.offset_data + info.size > length:
                raise tarfile.ReadError(f"member {info.name!r} of {info.size} bytes at byte {info.offset} of {length}")
            if info.isreg() or info.islnk() or info.issym():
                yield Member(info.name, start + info.offset_data, info.size if info.isreg() else 0)
        _check_end(window, archive.offset, length)


def _check_end(window: _Window, offset: int, length: int) -> None:
    """The end is a block of zeros and no more than padding after it.

    Tarfile takes a damaged header for the end as well, and a hole, as an unfinished download leaves.
    """
    window.seek(offset)
    if window.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
        raise tarfile.ReadError(f"no member and no end of the archive at byte {offset}")
    rest = length - offset
    if rest > _LARGEST_PADDING or any(window.read(rest)):
        raise tarfile.ReadError(f"it ends at byte {offset}, {rest} bytes before the end of the file")
