"""Pictures that were found and could not be used, as jobs report them."""

import dataclasses
import os

from beam_jobs.sources import ImageRef
from pipeline.errors import one_line
from pipeline.rejects import Reason, RejectedImage


@dataclasses.dataclass(frozen=True)
class Reject:
    """A picture that was found but is not in the result, and why."""

    key: str
    source: str
    path: str
    reason: Reason
    detail: str

    @classmethod
    def of(cls, ref: ImageRef, error: RejectedImage) -> "Reject":
        """That of a reference, for what was said of its picture."""
        return cls(ref.key, ref.source, os.fsdecode(ref.path), error.reason, error.detail)


def read(data: bytes | OSError) -> bytes:
    """What `read_ahead` gives of a picture.

    Raises:
        RejectedImage: it could not be read.
    """
    if isinstance(data, OSError):
        raise RejectedImage(Reason.UNREADABLE_BYTES, one_line(data)) from data
    return data


def duplicate(of: ImageRef) -> RejectedImage:
    """What is said of a picture whose key another has."""
    return RejectedImage(Reason.DUPLICATE_KEY, f"the key is taken by {os.fsdecode(of.path)} at byte {of.offset}")
