"""Cuts the photographs that ship inside scikit-image into archives of Places365's and ImageNet's layouts.

    python -m tools.photographs --output=demo

writes `archives/val_256.tar`, `archives/ILSVRC2012_img_train.tar` and `held_out/*.png`: from each photograph a ninth
that no archive shows any of.
"""

import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import flags
from PIL import Image
from skimage import data

from pipeline import cli, files, image

# The class under which each photograph stands in the ImageNet archive.
_CLASSES = {
    "astronaut": "n04266014",
    "chelsea": "n02124075",
    "coffee": "n07920052",
    "hubble_deep_field": "n04044716",
    "immunohistochemistry": "n03692522",
    "motorcycle": "n03791053",
    "retina": "n04355933",
    "rocket": "n03773504",
}
_CUTS = 12  # of each photograph; they alternate between the archives
_SEED = 1


def main(argv: Sequence[str]) -> None:
    """Writes archives and held-out pictures below a directory."""
    values = flags.FlagValues()
    flags.DEFINE_string("output", None, "The directory to write to.", flag_values=values)
    cli.parse(values, argv, __doc__)
    cli.require(values, "output")
    write(values.output)


def write(output: str) -> None:
    """Writes `archives/` and `held_out/` below a directory, local or remote; the same bytes each time."""
    archives, held_out = os.path.join(output, "archives"), os.path.join(output, "held_out")
    for folder in (archives, held_out):
        files.make_folder(folder)
    places: list[np.ndarray] = []
    imagenet: dict[str, list[np.ndarray]] = {}
    for index, (name, photograph) in enumerate(photographs()):
        cuts, hidden = cut(photograph, np.random.default_rng([_SEED, index]))
        places += cuts[::2]
        imagenet[_CLASSES[name]] = cuts[1::2]
        files.write(os.path.join(held_out, f"{name}.png"), image.encode_png(hidden))
    with files.aside(os.path.join(archives, "val_256.tar")) as path:
        write_places_val(path, places)
    with files.aside(os.path.join(archives, "ILSVRC2012_img_train.tar")) as path:
        write_imagenet_train(path, imagenet)


def photographs() -> Iterator[tuple[str, np.ndarray]]:
    """Name and RGB, uint8 [H, W, 3], of each photograph; none is downloaded."""
    for name in _CLASSES:
        yield name, data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()


def cut(photograph: np.ndarray, generator: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Cuts windows of a third to two thirds of a photograph's sides around one ninth that is held out.

    Returns:
        The windows, and the held-out part, with which they share no pixel.
    """
    height, width = photograph.shape[:2]
    row, column = generator.integers(0, 3, 2)
    hidden = _Window(row * (height // 3), column * (width // 3), height // 3, width // 3)
    cuts: list[np.ndarray] = []
    while len(cuts) < _CUTS:
        scale = generator.uniform(1 / 3, 2 / 3)
        rows, columns = int(height * scale), int(width * scale)
        top, left = generator.integers(0, (height - rows + 1, width - columns + 1))
        window = _Window(top, left, rows, columns)
        if not window.overlaps(hidden):
            cuts.append(window.of(photograph))
    return cuts, hidden.of(photograph)


class _Window:
    """A rectangle of a picture."""

    def __init__(self, top: int, left: int, height: int, width: int):
        self.top, self.left, self.bottom, self.right = top, left, top + height, left + width

    def overlaps(self, other: "_Window") -> bool:
        return (
            self.top < other.bottom and other.top < self.bottom and self.left < other.right and other.left < self.right
        )

    def of(self, picture: np.ndarray) -> np.ndarray:
        return picture[self.top : self.bottom, self.left : self.right]


def write_places_val(path: str, pictures: Sequence[np.ndarray]) -> None:
    """An archive as `val_256.tar`: flat, 256x256 JPEGs."""
    with tarfile.open(path, "w") as archive:
        for number, picture in enumerate(pictures, 1):
            small = Image.fromarray(picture).resize((256, 256), Image.Resampling.BOX)
            add_member(archive, f"val_256/Places365_val_{number:08d}.jpg", jpeg(small))


def write_imagenet_train(path: str, pictures_by_class: Mapping[str, Sequence[np.ndarray]]) -> None:
    """An archive as `ILSVRC2012_img_train.tar`: an inner archive per class, JPEGs of any size."""
    with tarfile.open(path, "w") as archive:
        for synset, pictures in sorted(pictures_by_class.items()):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for number, picture in enumerate(pictures, 1):
                    add_member(inner, f"{synset}_{number}.JPEG", jpeg(Image.fromarray(picture)))
            add_member(archive, f"{synset}.tar", buffer.getvalue())


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Appends a file to an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def jpeg(picture: Image.Image) -> bytes:
    """The bytes of a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


if __name__ == "__main__":
    cli.launch(main)
