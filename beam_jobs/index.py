"""The members of an archive, written down when it is first listed: the next job need not pass over it again.

A file per part of a source, gzip of JSON lines: key, label, offset and length of each picture.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator

import msgspec
from apache_beam.io.filesystems import FileSystems

from beam_jobs import sources, storage
from beam_jobs.sources import ImageRef, Part
from pipeline.errors import UserError, one_line

_Line = tuple[str, str, int, int]


def list_part(part: Part, folder: str) -> Iterator[ImageRef]:
    """Lists the pictures of a part of a source, from its index in a folder if there is one; else writes it.

    Trees are listed each time: nothing about a folder tells whether its files are still the same.

    Raises:
        UserError: as `sources.list_part`, or an index that is damaged.
    """
    if not part.is_archive:
        yield from sources.list_part(part)
        return
    path = FileSystems.join(folder, _name(part))
    if os.path.basename(path) in storage.names(folder):
        yield from _read(path, part)
        return
    encoder = msgspec.json.Encoder()
    with storage.create(path) as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as lines:
        for ref in sources.list_part(part):
            lines.write(encoder.encode((ref.key, ref.label, ref.offset, ref.length)) + b"\n")
            yield ref


def _name(part: Part) -> str:
    """Another name for an archive that was written to since."""
    path = part.source.path
    identity = (part.source.kind, path, *storage.stat(path), part.offset, part.length, part.inner_archives)
    return hashlib.blake2b(repr(identity).encode(errors="surrogateescape"), digest_size=16).hexdigest() + ".jsonl.gz"


def _read(path: str, part: Part) -> Iterator[ImageRef]:
    kind, source = part.source.kind, os.fsencode(part.source.path)
    decoder = msgspec.json.Decoder(_Line)
    try:
        with storage.open_binary(path) as file, gzip.GzipFile(fileobj=file) as lines:
            for line in lines:
                key, label, offset, length = decoder.decode(line)
                yield ImageRef(key, kind, label, source, offset, length)
    except (gzip.BadGzipFile, EOFError, zlib.error, msgspec.DecodeError) as error:
        raise UserError(f"index {path} of {part.source} is damaged: {one_line(error)}; delete it") from error
    except OSError as error:
        raise UserError(f"index {path} cannot be read: {one_line(error)}; start the job again") from error
