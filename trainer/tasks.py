"""What is to be colorized, and what became of it; the same for pictures and videos."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline import color
from pipeline.errors import UserError, one_line
from pipeline.rejects import RejectedImage

SOFTWARE = "koalarization"  # in each result, so that it is known when it is met again
_VISIBLE = 1.0  # a difference of a or b that a person might see
# Videos are known by their names, so that of a million pictures none has to be opened twice. The results of the first
# have the same names; those of others are Matroska files, which hold any sound.
CONTAINERS = {".m4v": "mp4", ".mkv": "matroska", ".mov": "mov", ".mp4": "mp4"}  # in FFmpeg's terms
_OTHER_SUFFIXES = (  # of those that FFmpeg reads, those that people have
    ".3gp", ".avi", ".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip


class Task(NamedTuple):
    """The path of a picture or video and that of its result, local or remote."""

    path: str
    target: str


@dataclasses.dataclass
class Outcome:
    """What did not go well.

    Attributes:
        failures: the reason for which there is no result, by path.
        gray: paths of what the model knew no color for.
        damaged: how many parts of a video are missing in its result, by path.
    """

    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    gray: set[str] = dataclasses.field(default_factory=set)
    damaged: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, other: "Outcome") -> None:
        """Adds what did not go well with other files."""
        self.failures |= other.failures
        self.gray |= other.gray
        self.damaged |= other.damaged

    @contextlib.contextmanager
    def naming(self, path: str) -> Iterator[None]:
        """Keeps what is wrong with a file from the others."""
        try:
            yield
        except (RejectedImage, UserError) as error:
            self.failures[path] = str(error)
        except OSError as error:
            self.failures[path] = error.strerror or one_line(error)
        except MemoryError:
            self.failures[path] = "more memory than there is"


def is_video(path: str) -> bool:
    """Whether a file has the name of a video."""
    return os.path.splitext(path)[1].lower() in {*CONTAINERS, *_OTHER_SUFFIXES}


def result_name(name: str) -> str:
    """The name of the result for a picture or video of a name."""
    stem, suffix = os.path.splitext(name)
    if not is_video(name):
        return f"{stem}.png"
    return stem + (suffix.lower() if suffix.lower() in CONTAINERS else ".mkv")


def is_gray(ab: np.ndarray) -> bool:
    """Whether normalized a and b are none that a person would see as color."""
    return bool(color.denormalize_ab(max(ab.max(), -ab.min())) < _VISIBLE)  # no copy: the whole may be large
