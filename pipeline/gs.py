"""Paths on Cloud Storage: gs://BUCKET/OBJECT, where folders are no more than how the names of objects begin."""

import re

from pipeline.errors import UsageError

SCHEME = "gs://"
# https://cloud.google.com/storage/docs/buckets#naming and /objects#naming
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_OBJECT = re.compile(r"[^/\r\n][^\r\n]*")


def is_path(path: str) -> bool:
    """Whether a path is meant for Cloud Storage."""
    return path.startswith(SCHEME)


def split(path: str) -> tuple[str, str]:
    """Bucket and object of a path."""
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    return bucket, name


def has_bucket(path: str) -> bool:
    """Whether a path is on Cloud Storage, and in a bucket that there may be."""
    return is_path(path) and _BUCKET.fullmatch(split(path)[0]) is not None


def check_directory(name: str, path: str) -> None:
    """Looks whether what an option names is a directory of a bucket.

    Raises:
        UsageError: it is on no bucket, or is all of one.
    """
    if not has_object(path):
        raise UsageError(f"--{name}={path} is no directory of a bucket; name one as gs://BUCKET/DIRECTORY")


def has_object(path: str) -> bool:
    """Whether a path leads to something in a bucket, and not to all of it."""
    return has_bucket(path) and _OBJECT.fullmatch(split(path)[1]) is not None
