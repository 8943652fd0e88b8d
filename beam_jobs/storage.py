"""Files of the output directory, local or remote: written aside, then renamed."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from beam_jobs import gcs, write_behind
from pipeline import gs, tfrecord
from pipeline.errors import UsageError, UserError, one_line
from pipeline.files import TEMPORARY, temporary_name
from pipeline.manifest import FILE_NAME, FileInfo, Manifest

_GLANCE = 1000  # files


@contextlib.contextmanager
def create(path: str, folder: str | None = None) -> Iterator[BinaryIO]:
    """Opens a file for writing, which has its name when the block ends without an error.

    Whoever finds the name finds the whole file; a block that fails leaves nothing behind.

    Args:
        path: of the file.
        folder: for a temporary file, where one is needed, on the same file system; by default that of the file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with _create_object(path) if gs.is_path(path) else _create_aside(path, folder) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be written: {one_line(error)}; make room there, or name another") from error


@contextlib.contextmanager
def _create_object(path: str) -> Iterator[BinaryIO]:
    with _os_errors(path):
        writer = gcs.create(path)
    try:
        yield cast(BinaryIO, _RemoteFile(path, writer))
        with _os_errors(path):
            writer.close()
    except BaseException:
        gcs.abandon(writer)
        raise


@contextlib.contextmanager
def _create_aside(path: str, folder: str | None) -> Iterator[BinaryIO]:
    temporary = temporary_name(path if folder is None else FileSystems.join(folder, "new"))
    try:
        with _open_new(temporary) as file:
            yield file
        with _os_errors(path):
            FileSystems.rename([temporary], [path])
    except BaseException:
        with contextlib.suppress(OSError):  # the error that brought us here is the one to report
            delete(temporary)
        raise


def _open_new(path: str) -> BinaryIO:
    if "://" not in path:
        return write_behind.create(path)
    with _os_errors(path):
        file = FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return cast(BinaryIO, _RemoteFile(path, file))


class _RemoteFile(io.RawIOBase):
    """A file of a client library, with errors of one class."""

    def __init__(self, path: str, file: BinaryIO | gcs.ObjectReader):
        super().__init__()
        self._path = path
        self._file = file

    def readable(self) -> bool:
        return self._file.readable()

    def writable(self) -> bool:
        return self._file.writable()

    def seekable(self) -> bool:
        return self._file.seekable()

    def read(self, size: int = -1) -> bytes:
        with _os_errors(self._path):
            return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        with _os_errors(self._path):
            return self._file.write(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _os_errors(self._path):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            super().close()
            with _os_errors(self._path):
                self._file.close()


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """Gives the errors of remote storage, for which each client library has its own classes, that of everyone else's.

    Raises:
        FileNotFoundError: what the block works with is not there.
        OSError: anything else that went wrong in the block, which does nothing else.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if "://" not in path:
            raise
        kind = FileNotFoundError if getattr(error, "code", None) == 404 else OSError  # as HTTP has it
        raise kind(f"{path}: {one_line(error)}") from error


def read_text(path: str) -> str:
    """The content of a text file.

    Raises:
        OSError: it cannot be read.
    """
    with open_binary(path) as file:
        return file.read().decode(errors="replace")  # a damaged one: for who parses it to say


def read_if_there(path: str) -> str | None:
    """The content of a text file; None, if there is none.

    Raises:
        UserError: it cannot be read, which says nothing of whether it is there.
    """
    try:
        return read_text(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; start the job again") from error


def read_version(path: str) -> tuple[bytes, int]:
    """The content of a small file, and its version, for `replace`; 0 where none is known.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    if gs.is_path(path):
        with _os_errors(path):
            return gcs.read_generation(path)
    with open_binary(path) as file:
        return file.read(), 0


def replace(path: str, content: bytes, version: int) -> bool:
    """Writes a small file; on Cloud Storage only if it is of a version still, of which 0 says that there is none.

    Args:
        path: of the file.
        content: which nobody else writes.
        version: that was seen.

    Returns:
        Whether it was written.

    Raises:
        UserError: it cannot be written.
    """
    if gs.is_path(path):
        try:
            with _os_errors(path):
                return gcs.replace(path, content, version)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {one_line(error)}; name another directory") from error
    with create(path) as file:
        file.write(content)
    return True


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file for reading, byte for byte.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened.
    """
    if "://" not in path:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    with _os_errors(path):
        if gs.is_path(path):
            file: BinaryIO | gcs.ObjectReader = gcs.ObjectReader(path)
        else:
            file = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return cast(BinaryIO, _RemoteFile(path, file))


def read_range(path: str, offset: int, length: int) -> bytes:
    """Some bytes of an object of Cloud Storage; fewer, where it ends before.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    with _os_errors(path):
        return gcs.read(path, offset, length)


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
    probe = temporary_name(FileSystems.join(path, "probe"))
    try:
        if gs.is_path(path):  # there, it need not be created
            with _create_object(probe):
                pass
        else:
            with _os_errors(path):
                if not FileSystems.exists(path):
                    FileSystems.mkdirs(path)
            _open_new(probe).close()
        delete(probe)
    except OSError as error:
        raise UserError(f"directory {path} cannot be written: {one_line(error)}; name another") from error


def absolute(path: str) -> str:
    """A local path made absolute, for workers that run elsewhere; a remote one without a slash at its end.

    Raises:
        UsageError: a remote one that nothing here can open.
    """
    if "://" not in path:
        return os.path.abspath(path)
    if gs.is_path(path) and not gs.has_bucket(path):
        raise UsageError(f"{path} names no bucket; name one as gs://BUCKET/DIRECTORY")
    try:
        FileSystems.get_filesystem(path)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{path} cannot be opened: no file system of that kind is installed; give a local path, or install "
            "koalarization[gcp] for gs://"
        ) from error
    return path.rstrip("/")


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
    with _os_errors(path):
        if gs.is_path(path):
            found = gcs.stat(path)
            return FileStatus(found.size, round(found.created.timestamp() * 1e6) * 1000)
        (result,) = FileSystems.match([path])
    if not result.metadata_list:
        raise FileNotFoundError(f"{path} does not exist")
    (metadata,) = result.metadata_list
    return FileStatus(metadata.size_in_bytes, int(metadata.last_updated_in_seconds * 1e9))


def names(directory: str) -> set[str]:
    """The names of the files of a directory; none, where there is no directory.

    Raises:
        OSError: it cannot be listed.
    """
    if "://" not in directory:  # Beam's matching would take brackets in the directory's name for a pattern
        return set(os.listdir(directory)) if os.path.isdir(directory) else set()
    with _os_errors(directory):
        if gs.is_path(directory):
            return set(gcs.names(directory))
        (result,) = FileSystems.match([FileSystems.join(directory, "*")])
        return {FileSystems.split(metadata.path)[1] for metadata in result.metadata_list}


def match(pattern: str) -> Iterator[tuple[str, int]]:
    """Path and size in bytes of each file that matches a pattern; the first of them at once, however many there are.

    Raises:
        OSError: they cannot be listed.
    """
    with _os_errors(pattern):
        if gs.is_path(pattern):
            yield from gcs.match(pattern)
            return
        (glance,) = FileSystems.match([pattern], limits=[_GLANCE])
        yield from map(_path_and_size, glance.metadata_list)
        if len(glance.metadata_list) == _GLANCE:
            seen = {metadata.path for metadata in glance.metadata_list}
            (result,) = FileSystems.match([pattern])
            yield from (_path_and_size(metadata) for metadata in result.metadata_list if metadata.path not in seen)


def below(folder: str) -> Iterator[tuple[str, int]]:
    """Path and size in bytes of each file below a remote folder, whose name Cloud Storage takes as it is.

    Raises:
        OSError: they cannot be listed.
    """
    if not gs.is_path(folder):
        yield from match(f"{folder.rstrip('/')}/**")
        return
    with _os_errors(folder):
        yield from gcs.below(folder)


def _path_and_size(metadata: FileMetadata) -> tuple[str, int]:
    return metadata.path, metadata.size_in_bytes


def is_object(path: str) -> bool:
    """Whether a path is an object of Cloud Storage, and not, or not only, a folder of them.

    Raises:
        OSError: the store does not answer.
    """
    if not gs.has_object(path) or path.endswith("/"):
        return False
    with _os_errors(path):
        return gcs.exists(path)


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
    if "://" not in path:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        return
    with _os_errors(path):
        if gs.is_path(path):
            gcs.delete(path)
        elif FileSystems.exists(path):
            FileSystems.delete([path])


def delete_temporaries(directory: str) -> None:
    """Deletes what `create` left in a directory when its process was killed."""
    for name in names(directory):
        if TEMPORARY.search(name):
            delete(FileSystems.join(directory, name))
