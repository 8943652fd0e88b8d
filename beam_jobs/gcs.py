"""Cloud Storage by Google's own client, where Beam's file system would move and ask far more than is needed.

Beam connects anew for every file, reads at least 16 MiB at a time, of a picture of 100 kB in an archive as well, and
lists all that stands below a folder, in memory, to name what stands in it. An object has its name only once all of it
was uploaded, so that nothing need be written aside. Requests that fail for a reason that may pass are sent again, for
two minutes.
"""

import contextlib
import functools
import re
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from apache_beam.io.filesystem import FileSystem
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_jobs.positioned import Positioned
from pipeline import gs
from pipeline.errors import UserError
from pipeline.files import WILDCARD

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client
    from google.cloud.storage.fileio import BlobWriter

_CONNECTIONS = 512  # that may be kept open: more than a machine has threads that read
_CHUNK_BYTES = 16 << 20  # at most in one request; a writer and a reader keep this much
_FIRST_BYTES = 64 << 10  # that a reader asks for after a leap


class Status(NamedTuple):
    """Size in bytes, and when it was written."""

    size: int
    created: datetime  # and not updated, which labels and changes of the storage class do as well


def check_credentials(path: str) -> None:
    """Looks for credentials; Beam would look for half a minute, with traces, and go on without.

    Raises:
        UserError: there are none for what a path names.
    """
    from cloud.api import find_credentials

    try:
        find_credentials()
    except UserError as error:
        raise UserError(f"{path}: {error} (--no_auth does without, for what is public)") from error


@functools.cache
def _client() -> "Client":
    """The client of this process, with the credentials that Beam found; any number of threads can use it."""
    from apache_beam.io.gcp import gcsio
    from requests.adapters import HTTPAdapter

    options = FileSystems.get_filesystem(gs.SCHEME)._pipeline_options  # those of the job, wherever it runs
    if not isinstance(options, PipelineOptions):
        options = PipelineOptions([])
    client = gcsio.create_storage_client(options, not options.view_as(GoogleCloudOptions).no_auth)
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=_CONNECTIONS))
    return client


def _blob(path: str) -> "Blob":
    bucket, name = gs.split(path)
    return _client().bucket(bucket).blob(name)


# The functions below raise `google.api_core.exceptions.GoogleAPIError`, `google.auth.exceptions.GoogleAuthError` and
# `OSError` for what goes wrong, with the `code` 404 for what is not there.


def abandon(writer: "BlobWriter") -> None:
    """Ends an upload, of which there will be nothing."""
    try:
        with contextlib.suppress(Exception):  # one that is left alone ends by itself, in a week
            writer.terminate()
    finally:
        writer._buffer.close()  # else what collects garbage would finish the upload


class ObjectReader(Positioned):
    """An object that is read from front to back, or here and there.

    What is asked for at a time grows as long as the reader goes on, past gaps as those between the headers of an
    archive, and is small again after a leap.
    """

    def __init__(self, path: str):
        found = _blob(path)
        found.reload()
        super().__init__(found.size)
        # From here on it is this generation that is read, or none, whatever is written meanwhile.
        self._blob = found.bucket.blob(found.name, generation=found.generation)
        self._buffer, self._start = b"", 0
        self._step = _FIRST_BYTES // 2

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or all that are left."""
        pieces, wanted = [], self._wanted(size)
        while wanted:
            piece = self._some(wanted)
            pieces.append(piece)
            wanted -= len(piece)
            self._position += len(piece)
        return b"".join(pieces)

    def _some(self, wanted: int) -> bytes:
        """Up to so many bytes at the position."""
        if not self._start <= self._position < self._start + len(self._buffer):
            gap = self._position - self._start - len(self._buffer)
            self._step = min(2 * self._step, _CHUNK_BYTES) if 0 <= gap <= self._step else _FIRST_BYTES
            self._buffer = _read(self._blob, self._position, max(self._step, min(wanted, _CHUNK_BYTES)))
            self._start = self._position
            if not self._buffer:
                raise OSError(f"it ends at byte {self._position} of {self._size}")
        begin = self._position - self._start
        return self._buffer[begin : begin + wanted]


def create(path: str) -> "BlobWriter":
    """Opens an object for writing; it is there when the writer is closed, and never, if that is terminated."""
    from google.cloud.storage.fileio import BlobWriter

    return BlobWriter(_blob(path), _CHUNK_BYTES, ignore_flush=True, content_type="application/octet-stream")


def read(path: str, offset: int, length: int) -> bytes:
    """A byte range of an object, by one request; shorter, where the object ends before."""
    return _read(_blob(path), offset, length)


def _read(blob: "Blob", offset: int, length: int) -> bytes:
    from google.api_core.exceptions import RequestRangeNotSatisfiable
    from google.api_core.retry import Retry, if_exception_type
    from requests.exceptions import ChunkedEncodingError

    if length == 0:
        return b""
    download = Retry(if_exception_type(ChunkedEncodingError))(blob.download_as_bytes)  # of a refusal that is cut off
    try:  # raw: none is unpacked on the way; and the checksum that is known is of the whole object
        return download(start=offset, end=offset + length - 1, raw_download=True, checksum=None)
    except RequestRangeNotSatisfiable:
        return b""


def read_generation(path: str) -> tuple[bytes, int]:
    """The content of a small object, and which of all that ever had its name it is."""
    found = _blob(path)
    found.reload()
    return found.bucket.blob(found.name, generation=found.generation).download_as_bytes(), found.generation


def replace(path: str, content: bytes, generation: int) -> bool:
    """Writes a small object if that of its name is still of a generation, 0 for none; else False, and nothing is done.

    Args:
        path: of the object.
        content: which nobody else writes.
        generation: that was seen.
    """
    from google.cloud.exceptions import NotFound, PreconditionFailed
    from google.cloud.storage.retry import DEFAULT_RETRY

    try:
        _blob(path).upload_from_string(content, if_generation_match=generation, retry=DEFAULT_RETRY)
    except PreconditionFailed:  # perhaps by an upload of ours whose answer was lost
        try:
            return read_generation(path)[0] == content
        except NotFound:
            return False
    return True


def stat(path: str) -> Status:
    """Looks at an object."""
    blob = _blob(path)
    blob.reload()
    return Status(blob.size, blob.time_created)


def exists(path: str) -> bool:
    """Whether there is an object of a name."""
    return _blob(path).exists()


def delete(path: str) -> None:
    """Deletes an object; one that is not there is fine."""
    from google.cloud.exceptions import NotFound
    from google.cloud.storage.retry import DEFAULT_RETRY

    with contextlib.suppress(NotFound):
        _blob(path).delete(retry=DEFAULT_RETRY)


def names(directory: str) -> Iterator[str]:
    """The names of the objects that stand in a folder; folders in it are left out."""
    bucket, prefix = gs.split(f"{directory.rstrip('/')}/")
    found = _client().list_blobs(bucket, prefix=prefix, delimiter="/", fields="items/name,nextPageToken")
    return (blob.name[len(prefix) :] for blob in found if not blob.name.endswith("/"))  # which stands for a folder


def below(folder: str) -> Iterator[tuple[str, int]]:
    """Path and size in bytes of each object below a folder, or in a bucket; a thousand of them in memory."""
    bucket, name = gs.split(folder.rstrip("/"))
    for blob in _client().list_blobs(bucket, prefix=name and f"{name}/", fields="items(name,size),nextPageToken"):
        if not blob.name.endswith("/"):  # which stands for a folder
            yield f"{gs.SCHEME}{bucket}/{blob.name}", blob.size


def match(pattern: str) -> Iterator[tuple[str, int]]:
    """Path and size in bytes of each object that matches a pattern of Beam's; a thousand of them in memory.

    Raises:
        re.error: the pattern cannot be understood.
    """
    wildcard = WILDCARD.search(pattern)
    bucket, prefix = gs.split(pattern[: wildcard.start()] if wildcard else pattern)
    matches = re.compile(FileSystem.translate_pattern(pattern)).match
    for blob in _client().list_blobs(bucket, prefix=prefix, fields="items(name,size),nextPageToken"):
        path = f"{gs.SCHEME}{bucket}/{blob.name}"
        if matches(path) and not path.endswith("/"):  # which stands for a folder
            yield path, blob.size
