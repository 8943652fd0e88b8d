"""Files of the output directory, local or remote: written aside, then renamed."""

import contextlib
import os
import uuid
from collections.abc import Collection, Iterator
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.errors import UsageError, UserError, one_line


@contextlib.contextmanager
def create(path: str) -> Iterator[BinaryIO]:
    """Opens a file for writing under a temporary name and gives it its own when the block ends without an error.

    Whoever finds the final name finds the whole file; a block that fails leaves nothing behind.

    Raises:
        UserError: it cannot be written.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file
        FileSystems.rename([temporary], [path])
    except BaseException as error:
        with contextlib.suppress(OSError):  # the error that brought us here is the one to report
            FileSystems.delete([temporary])
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be written: {one_line(error)}; make room there, or name another") from error
        raise


def read_text(path: str) -> str:
    """The content of a text file.

    Raises:
        OSError: it cannot be read.
    """
    with open_binary(path) as file:
        return file.read().decode()


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file for reading, byte for byte."""
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def make_directory(path: str) -> None:
    """Creates a directory and its parents; one that exists is fine.

    Raises:
        UserError: it cannot be created, or written to.
    """
    try:
        if not FileSystems.exists(path):
            FileSystems.mkdirs(path)
        probe = FileSystems.join(path, f"{uuid.uuid4().hex}.tmp")
        FileSystems.create(probe, compression_type=CompressionTypes.UNCOMPRESSED).close()
        FileSystems.delete([probe])
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


def count(directory: str, names: Collection[str]) -> int:
    """How many of the named files a directory holds."""
    (result,) = FileSystems.match([FileSystems.join(directory, "*")])
    return sum(FileSystems.split(metadata.path)[1] in names for metadata in result.metadata_list)
