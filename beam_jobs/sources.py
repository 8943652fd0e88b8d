"""Where pictures come from: `KIND:PATH` on the command line, references to byte ranges after listing.

Adding a source is adding a `Kind` to `KINDS`.
"""

import dataclasses
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, NoReturn

from apache_beam.io.filesystems import FileSystems

from beam_jobs import storage, tar
from pipeline.errors import UsageError, UserError, one_line

_WILDCARDS = re.compile(r"[*?\[]")


class ImageRef(NamedTuple):
    """A picture that was found but not read: what crosses the shuffle in its place.

    `key` names it in the dataset, `source` is the kind of its source, `label` its class or "". Its bytes are
    `path[offset : offset + length]`.
    """

    key: str
    source: str
    label: str
    path: bytes  # of a file system that need not be UTF-8
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of collection.

    Attributes:
        name: KIND on the command line.
        expects: the names of its files, for messages.
        identify: from a file's name, which begins with the folder that the source names, or from a member's name, to
            the key and the label; None for a file that is no picture of the collection.
    """

    name: str
    expects: str
    identify: Callable[[str], tuple[str, str] | None]


_PLACES = re.compile(r"(?:^|/)((?:data|val)_(?:256|large)(/.+)?/[^/]+\.jpg)$")
_IMAGENET = re.compile(r"(?:^|/)((?:(n\d{8})|ILSVRC2012_val)_[^/]+\.JPEG)$")


def _identify_places(name: str) -> tuple[str, str] | None:
    """`data_256/a/airfield/00000001.jpg` has the label `/a/airfield`, as in `categories_places365.txt`."""
    match = _PLACES.search(name)
    return (match[1], match[2] or "") if match else None


def _identify_imagenet(name: str) -> tuple[str, str] | None:
    """File names are unique in ImageNet; those of the train set begin with their class."""
    match = _IMAGENET.search(name)
    return (match[1], match[2] or "") if match else None


def _identify_any(name: str) -> tuple[str, str] | None:
    """Every file that is not hidden: what it holds is for the decoder to say."""
    return None if "/." in name else (name, "")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("places365", "data_256/a/airfield/00000001.jpg or val_256/Places365_val_00000001.jpg", _identify_places),
        Kind("imagenet", "n01440764_10026.JPEG or ILSVRC2012_val_00000001.JPEG", _identify_imagenet),
        Kind("images", "any file that is not hidden", _identify_any),
    )
}


class Source(NamedTuple):
    """A collection of pictures: its kind, and an archive, a folder, or (for `images`) a pattern or a file."""

    kind: str
    path: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}"


def parse_source(text: str) -> Source:
    """Reads `KIND:PATH`; a local path becomes absolute, for workers run elsewhere.

    Raises:
        UsageError: not of that form, or of an unknown kind.
    """
    kind, separator, path = text.partition(":")
    if not separator or not path or kind not in KINDS:
        raise UsageError(f"--source={text} is not KIND:PATH with KIND one of {', '.join(KINDS)}")
    return Source(kind, storage.absolute(path))


def check_disjoint(inputs: Sequence[Source]) -> None:
    """Refuses sources of which one holds the other: their pictures would be found twice, under two names.

    Raises:
        UsageError: two such sources.
    """
    for first, second in itertools.permutations(inputs, 2):
        if f"{second.path}/".startswith(f"{first.path.rstrip('/')}/"):
            raise UsageError(f"--source={second} lies within --source={first}; name only one of them")


def list_pictures(source: Source) -> Iterator[ImageRef]:
    """Lists the pictures of a source without reading them.

    Raises:
        UserError: nothing there, no picture among the files, or an archive that cannot be read; in the last case
            pictures before the damage were already yielded.
    """
    kind = KINDS[source.kind]
    files = found = 0
    for name, path, offset, length in _list_files(source):
        files += 1
        if identity := kind.identify(name):
            key, label = identity
            found += 1
            key = key.encode(errors="backslashreplace").decode()  # what is not UTF-8 in a name, escaped
            yield ImageRef(f"{kind.name}/{key}", kind.name, label, os.fsencode(path), offset, length)
    if not files:
        raise UserError(f"source {source} matches nothing; check the path")
    if not found:
        raise UserError(f"source {source} holds {files} files but none is a picture of '{kind.name}': {kind.expects}")


def check_readable(source: Source) -> None:
    """Looks for the first picture of a source, before anything is spent on the rest.

    Raises:
        UserError: as `list_pictures`.
    """
    next(list_pictures(source))


def _list_files(source: Source) -> Iterator[tuple[str, str, int, int]]:
    """Yields (name, path, offset, length) of every file or archive member."""
    path = source.path
    if path.endswith(".tar"):
        for member in _list_archive(source):
            yield member.name, path, member.offset, member.length
        return
    wildcard = None if _is_folder(path) else _WILDCARDS.search(path)
    folder = os.path.dirname(path[: wildcard.start()]) if wildcard else path
    for file_path, length in _list_tree(source):
        base = os.path.dirname(path) if file_path == path else folder
        yield os.path.join(os.path.basename(base), os.path.relpath(file_path, base)), file_path, 0, length


def _list_archive(source: Source) -> Iterator[tar.Member]:
    try:
        with storage.open_binary(source.path) as file:
            yield from tar.members(file)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # numbers in a damaged header
        raise UserError(f"source {source} is not a complete, uncompressed tar archive: {error}") from error
    except OSError as error:
        raise UserError(f"source {source} cannot be read: {one_line(error)}") from error


def _list_tree(source: Source) -> Iterator[tuple[str, int]]:
    """Yields (path, length) of the files of a folder, a pattern, or a single file."""
    path = source.path
    if _is_folder(path):  # Beam's matching has no way to quote brackets in a folder's name
        yield from ((file_path, _size(file_path)) for file_path in _walk(source) if _is_file(file_path))
        return
    if os.path.isfile(path):
        yield path, _size(path)
        return
    if "://" in path and not _WILDCARDS.search(path):
        path = path.rstrip("/") + "/**"
    try:
        for metadata in itertools.chain.from_iterable(r.metadata_list for r in FileSystems.match([path])):
            if "://" in path or _is_file(metadata.path):
                yield metadata.path, metadata.size_in_bytes
    except OSError as error:
        raise UserError(f"source {source} cannot be listed: {one_line(error)}") from error


def _is_folder(path: str) -> bool:
    return "://" not in path and os.path.isdir(path)


def _walk(source: Source) -> Iterator[str]:
    """The files below a local folder; links to folders are followed, each folder once."""

    def fail(error: OSError) -> NoReturn:
        raise UserError(f"source {source} cannot be listed: {one_line(error)}") from error

    seen = set()
    for folder, below, names in os.walk(source.path, onerror=fail, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (os.path.join(folder, name) for name in names)


def _is_file(path: str) -> bool:
    """Whether a local path is a file, or a broken link to one; reading from a pipe or a device might never end."""
    return os.path.isfile(path) or not os.path.exists(path)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # a broken link: it is listed all the same, and rejected when it cannot be read
        return 0


class RangeReader:
    """Reads the bytes behind references; keeps the last file open, since many references share an archive."""

    def __init__(self) -> None:
        self._path = b""
        self._file: BinaryIO | None = None

    def read(self, ref: ImageRef) -> bytes:
        """Reads a picture's bytes.

        Raises:
            OSError: the file cannot be read, or ends before the picture does.
        """
        if self._file is None or self._path != ref.path:
            self.close()
            self._file, self._path = storage.open_binary(os.fsdecode(ref.path)), ref.path
        self._file.seek(ref.offset)
        data = self._file.read(ref.length)
        if len(data) < ref.length:
            raise OSError(f"{len(data)} of {ref.length} bytes at {ref.offset} of {os.fsdecode(ref.path)}")
        return data

    def close(self) -> None:
        """Closes the file that is open, if any."""
        if self._file is not None:
            self._file.close()
            self._file = None
