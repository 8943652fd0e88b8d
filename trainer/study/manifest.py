"""`study.json`: what a study shows. It tells real from predicted, so it is never served."""

import dataclasses
import os
from typing import Annotated

import msgspec
from msgspec import Meta

from pipeline import files
from pipeline.errors import UserError, one_line

FILE_NAME = "study.json"
PICTURES = "pictures"  # the folder of all versions
_FileName = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\.png$")]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture's two versions, of one size.

    Attributes:
        path: of the picture that they were made of.
        real: the file with its own colors, in the folder `PICTURES`.
        predicted: the file with the model's.
    """

    path: str
    real: _FileName
    predicted: _FileName


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study shows.

    Attributes:
        step: of the run whose model predicted.
        seed: of the orders in which participants see the pictures.
        pairs: the pictures.
    """

    step: int
    seed: Annotated[int, Meta(ge=0)]
    pairs: Annotated[tuple[Pair, ...], Meta(min_length=1)]

    def file(self, picture: int, predicted: bool) -> str:
        """The name of the file of one version of a picture."""
        pair = self.pairs[picture]
        return pair.predicted if predicted else pair.real


def save(folder: str, study: Study) -> None:
    """Writes `study.json`.

    Raises:
        UserError: it cannot be written.
    """
    files.write(os.path.join(folder, FILE_NAME), msgspec.json.format(msgspec.json.encode(study), indent=1))


def load(folder: str) -> Study:
    """Reads `study.json`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = os.path.join(folder, FILE_NAME)
    try:
        return msgspec.json.decode(files.read(path), type=Study)
    except OSError as error:
        raise UserError(
            f"--study={folder} holds no study: {FILE_NAME} cannot be read; name what `trainer.study make` wrote"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); make the study again") from error
