"""Files of the output directory, local or remote: written aside, then renamed."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_jobs import write_behind
from pipeline import tfrecord
from pipeline.errors import UsageError, UserError, one_line
from pipeline.manifest import FILE_NAME, FileInfo, Manifest

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp$")


def _temporary(path: str) -> str:
    return f"{path}.{uuid.uuid4().hex}.tmp"


@contextlib.contextmanager
def create(path: str, folder: str | None = None) -> Iterator[BinaryIO]:
    """Opens a file for writing under a temporary name and gives it its own when the block ends without an error.

    Whoever finds the final name finds the whole file; a block that fails leaves nothing behind.

    Args:
        path: of the file.
        folder: for the temporary file, on the same file system; by default that of the file.

    Raises:
        UserError: it cannot be written.
    """
    temporary = _temporary(path if folder is None else FileSystems.join(folder, "new"))
    try:
        with _open_new(temporary) as file:
            yield file
        FileSystems.rename([temporary], [path])
    except BaseException as error:
        with contextlib.suppress(OSError):  # the error that brought us here is the one to report
            delete(temporary)
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be written: {one_line(error)}; make room there, or name another") from error
        raise


def _open_new(path: str) -> BinaryIO:
    if "://" not in path:
        return write_behind.create(path)
    return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_text(path: str) -> str:
    """The content of a text file.

    Raises:
        OSError: it cannot be read.
    """
    with open_binary(path) as file:
        return file.read().decode(errors="replace")  # a damaged one: for who parses it to say


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file for reading, byte for byte.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened.
    """
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except OSError:
        raise
    except Exception as error:  # of a client library; those of Cloud Storage have the code of HTTP
        kind = FileNotFoundError if getattr(error, "code", None) == 404 else OSError
        raise kind(f"{path}: {one_line(error)}") from error


def write_manifest(directory: str, described: Manifest) -> None:
    """Writes the manifest of a dataset.

    Raises:
        UserError: it cannot be written.
    """
    with create(FileSystems.join(directory, FILE_NAME)) as file:
        file.write(described.to_json().encode())


def make_directory(path: str) -> None:
    """Creates a directory and its parents; one that exists is fine.

    Raises:
        UserError: it cannot be created, or written to.
    """
    try:
        if not FileSystems.exists(path):
            FileSystems.mkdirs(path)
        probe = _temporary(FileSystems.join(path, "probe"))
        _open_new(probe).close()
        delete(probe)
    except OSError as error:
        raise UserError(f"directory {path} cannot be written: {one_line(error)}; name another") from error


def absolute(path: str) -> str:
    """A local path made absolute, for workers that run elsewhere; a remote one as it is.

    Raises:
        UsageError: a remote one that nothing here can open.
    """
    if "://" not in path:
        return os.path.abspath(path)
    try:
        FileSystems.get_filesystem(path)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{path} cannot be opened: no file system of that kind is installed; give a local path, or install "
            "apache-beam[gcp] for gs://"
        ) from error
    return path


class FileStatus(NamedTuple):
    """A file's size in bytes, and when it was last written, in nanoseconds since 1970."""

    size: int
    modified: int


def stat(path: str) -> FileStatus:
    """Looks at a file without opening it.

    Raises:
        OSError: there is none, or it cannot be looked at.
    """
    if "://" not in path:
        status = os.stat(path)
        return FileStatus(status.st_size, status.st_mtime_ns)
    (result,) = FileSystems.match([path])
    if not result.metadata_list:
        raise FileNotFoundError(f"{path} does not exist")
    (metadata,) = result.metadata_list
    return FileStatus(metadata.size_in_bytes, int(metadata.last_updated_in_seconds * 1e9))


def names(directory: str) -> set[str]:
    """The names of the files of a directory; none, where there is no directory."""
    if "://" not in directory:  # Beam's matching would take brackets in the directory's name for a pattern
        return set(os.listdir(directory)) if os.path.isdir(directory) else set()
    (result,) = FileSystems.match([FileSystems.join(directory, "*")])
    return {FileSystems.split(metadata.path)[1] for metadata in result.metadata_list}


def has_size(directory: str, info: FileInfo) -> bool:
    """Whether a file of a directory is there, and as large as what was written."""
    try:
        return stat(FileSystems.join(directory, info.name)).size == info.bytes
    except FileNotFoundError:
        return False


def holds(directory: str, info: FileInfo) -> bool:
    """Whether a file of a directory is, byte for byte, what was written.

    Raises:
        UserError: it is there, but cannot be read.
    """
    path = FileSystems.join(directory, info.name)
    try:
        if not has_size(directory, info):
            return False
        with open_binary(path) as file:
            return f"{tfrecord.checksum(file):08x}" == info.crc32c
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; start the job again") from error


def delete(path: str) -> None:
    """Deletes a file; one that is not there is fine.

    Raises:
        OSError: it cannot be deleted.
    """
    if "://" in path:
        if FileSystems.exists(path):
            FileSystems.delete([path])
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def delete_temporaries(directory: str) -> None:
    """Deletes what `create` left in a directory when its process was killed."""
    for name in names(directory):
        if _TEMPORARY.search(name):
            delete(FileSystems.join(directory, name))
