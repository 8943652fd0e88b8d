"""Where pictures come from: `KIND:PATH` on the command line, references to byte ranges after listing.

Adding a source is adding a `Kind` to `KINDS`.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple, NoReturn

from apache_beam.io.filesystem import FileSystem

from beam_jobs import storage, tar
from pipeline import gs
from pipeline.errors import UsageError, UserError, one_line
from pipeline.files import WILDCARD
from pipeline.manifest import FILE_NAME

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


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
    hidden = any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
    return None if hidden else (name, "")


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


def is_archive(source: Source) -> bool:
    """Whether a source is an archive, and not a tree, a pattern or a picture."""
    return source.path.endswith(tar.SUFFIX)


def parse_source(text: str) -> Source:
    """Reads `KIND:PATH`; a local path becomes absolute, for workers run elsewhere.

    Raises:
        UsageError: not of that form, or of an unknown kind.
    """
    kind, separator, path = text.partition(":")
    if not separator or not path or kind not in KINDS:
        raise UsageError(f"--source={text} is not KIND:PATH with KIND one of {', '.join(KINDS)}")
    if path.lower().endswith(_COMPRESSED):
        raise UsageError(f"--source={text} is a compressed archive, of which no part can be read by itself; unpack it")
    return Source(kind, storage.absolute(path))


def digest(refs: Iterable[ImageRef]) -> str:
    """Another one for other references, or another order."""
    found = hashlib.blake2b(digest_size=16)
    for ref in refs:
        found.update(repr(tuple(ref)).encode(errors="surrogateescape"))
    return found.hexdigest()


def describe(inputs: Sequence[Source]) -> dict[str, dict[str, int] | None]:
    """Sources by name; of a file, its size and when it was last written to."""
    described: dict[str, dict[str, int] | None] = {}
    for source in inputs:
        is_file = "://" not in source.path and os.path.isfile(source.path)
        described[str(source)] = storage.stat(source.path)._asdict() if is_file or is_archive(source) else None
    return described


def check_unchanged(inputs: Sequence[Source], before: Mapping[str, object]) -> None:
    """Looks whether sources are as `describe` found them.

    Raises:
        UserError: one is not.
    """
    try:
        now = describe(inputs)
    except OSError as error:
        raise UserError(f"a source was deleted while it was being read: {one_line(error)}; bring it back") from error
    for name, described in now.items():
        if described != before[name]:
            raise UserError(
                f"source {name} was written to while it was read: what was made of it is of no use; name another "
                "--output, and a source that stays as it is"
            )


def check_inputs(inputs: Sequence[Source]) -> None:
    """Looks at all sources, before anything is spent on one.

    Raises:
        UsageError: one holds another.
        UserError: as `check_readable`.
    """
    check_disjoint(inputs)
    for source in inputs:
        check_readable(source)


def check_disjoint(inputs: Sequence[Source]) -> None:
    """Refuses sources of which one holds the other: their pictures would be found twice, under two names.

    Raises:
        UsageError: two such sources.
    """
    for first, second in itertools.permutations(inputs, 2):
        if _is_within(f"{second.path}/", first.path):
            raise UsageError(f"--source={second} lies within --source={first}; name only one of them")


def check_outside(output: str, inputs: Sequence[Source]) -> None:
    """Refuses an output within a source: the next job would take its files for pictures.

    Raises:
        UsageError: it lies there.
    """
    for source in inputs:
        if KINDS[source.kind].identify(FILE_NAME) is None:  # it takes none of a dataset's files for a picture
            continue
        if _takes(source.path, f"{output}/{FILE_NAME}"):
            raise UsageError(f"--output={output} lies within --source={source}; name a directory outside of it")


def _is_within(path: str, folder: str) -> bool:
    return path.startswith(f"{folder.rstrip('/')}/")


def _takes(path: str, file: str) -> bool:
    """Whether a folder or a pattern holds a file."""
    if _is_within(file, path):
        return True
    try:
        return not _is_folder(path) and re.match(FileSystem.translate_pattern(path), file) is not None
    except re.error as error:
        raise UsageError(f"pattern {path} cannot be understood: {error}") from error


class Part(NamedTuple):
    """A piece of a source that is listed in one go.

    A tree, or else a byte range of the source's file that is an archive, with or without the archives within it.
    """

    source: Source
    offset: int
    length: int
    inner_archives: bool

    @property
    def is_archive(self) -> bool:
        """Whether it is an archive, and not a tree."""
        return is_archive(self.source)


def parts(source: Source) -> Iterator[Part]:
    """Divides a source into parts that can be listed side by side: an archive of archives, by one look at each.

    Raises:
        UserError: an archive that cannot be read.
    """
    whole = Part(source, 0, 0, inner_archives=True)
    if not whole.is_archive:
        yield whole
        return
    with _reading(source):
        whole = whole._replace(length=storage.stat(source.path).size)
        with storage.open_binary(source.path) as file:
            members = tar.members(file, 0, whole.length)
            first = next(members, None)
            if first is None or not first.is_archive:
                yield whole
                return
            for member in itertools.chain([first], members):
                if member.is_archive:
                    yield Part(source, member.offset, member.length, inner_archives=True)
            yield whole._replace(inner_archives=False)  # last, for it takes a look at all of the archive


def list_part(part: Part) -> Iterator[ImageRef]:
    """Lists the pictures of a part of a source without reading them.

    Raises:
        UserError: an archive or a folder that cannot be read; pictures before the damage were already yielded.
    """
    kind = KINDS[part.source.kind]
    for name, path, offset, length in _list_files(part):
        if identity := kind.identify(name):
            key, label = (each.encode(errors="backslashreplace").decode() for each in identity)  # UTF-8 or escaped
            yield ImageRef(f"{kind.name}/{key}", kind.name, label, os.fsencode(path), offset, length)


def list_pictures(source: Source) -> Iterator[ImageRef]:
    """Lists all parts of a source.

    Raises:
        UserError: as `parts` and `list_part`.
    """
    for part in parts(source):
        yield from list_part(part)


def check_readable(source: Source) -> None:
    """Looks for the first picture of a source, before anything is spent on the rest.

    Raises:
        UserError: nothing there, no picture among the files, or what cannot be read.
    """
    if next(list_pictures(source), None):
        return
    kind = KINDS[source.kind]
    if files := sum(1 for part in parts(source) for _ in _list_files(part)):
        raise UserError(f"source {source} holds {files} files but none is a picture of '{kind.name}': {kind.expects}")
    raise UserError(f"source {source} matches nothing; check the path")


def _list_files(part: Part) -> Iterator[tuple[str, str, int, int]]:
    """Yields (name, path, offset, length) of every file or archive member."""
    source = part.source
    if part.is_archive:
        for member in _list_archive(part):
            yield member.name, source.path, member.offset, member.length
        return
    for base, path, length in _list_remote(source) if "://" in source.path else _list_local(source):
        yield os.path.join(os.path.basename(base), os.path.relpath(path, base)), path, 0, length


def _list_archive(part: Part) -> Iterator[tar.Member]:
    with _reading(part.source), storage.open_binary(part.source.path) as file:
        yield from _members(file, part)


def _members(file: BinaryIO, part: Part) -> Iterator[tar.Member]:
    for member in tar.members(file, part.offset, part.length):
        if not member.is_archive:
            yield member
        elif part.inner_archives:
            yield from _members(file, part._replace(offset=member.offset, length=member.length))


@contextlib.contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Turns what can be wrong with an archive into one line."""
    try:
        if "://" not in source.path and os.path.exists(source.path) and not os.path.isfile(source.path):
            raise OSError("it is no file")  # reading from a pipe might never end
        yield
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the latter of numbers in a damaged header
        raise UserError(f"source {source} is not a complete, uncompressed tar archive: {error}") from error
    except OSError as error:
        raise UserError(f"source {source} cannot be read: {one_line(error)}") from error


def _list_local(source: Source) -> Iterator[tuple[str, str, int]]:
    """Yields (base, path, length) of the files of a folder, of a single file, or of those that match a pattern.

    The folder `base` is the first in the names that the files go by.
    """
    path = source.path
    if _is_folder(path):  # Beam's matching has no way to quote brackets in a folder's name
        yield from ((path, file, _size(file)) for file in _walk(source) if _is_file(file))
    elif os.path.isfile(path):
        yield os.path.dirname(path), path, _size(path)
    else:
        with _listing(source):
            yield from ((_base(path), file, length) for file, length in storage.match(path) if _is_file(file))


def _list_remote(source: Source) -> Iterator[tuple[str, str, int]]:
    """As `_list_local`; on Cloud Storage, what lies below a name with wildcards goes before what matches it."""
    path = source.path
    is_pattern = WILDCARD.search(path) is not None
    with _listing(source):
        if not is_pattern and storage.is_object(path):
            yield os.path.dirname(path), path, storage.stat(path).size
            return
        below = storage.below(path) if gs.is_path(path) or not is_pattern else iter(())
        if first := next(below, None):
            yield from ((path, *each) for each in itertools.chain([first], below))
        elif is_pattern:
            yield from ((_base(path), *each) for each in storage.match(path))


def _base(pattern: str) -> str:
    """The last folder in a pattern before its first wildcard."""
    return os.path.dirname(WILDCARD.split(pattern, maxsplit=1)[0])


@contextlib.contextmanager
def _listing(source: Source) -> Iterator[None]:
    try:
        yield
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
