"""Draws gray, predicted and true color of pictures side by side.

python -m tools.sheet --truth=demo/held_out --colorized=demo/colorized --output=demo/colorized/sheet.png
"""

import os
from collections.abc import Sequence

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from pipeline import cli, color, files, image
from pipeline.errors import UserError, one_line
from pipeline.rejects import RejectedImage

_TILE = 224
_MARGIN = 8
_HEADER = 20


def main(argv: Sequence[str]) -> None:
    """Writes the sheet that a command line describes."""
    values = flags.FlagValues()
    flags.DEFINE_string("truth", None, "The directory of the original PNGs.", flag_values=values)
    flags.DEFINE_string("colorized", None, "The directory of their colorized forms.", flag_values=values)
    flags.DEFINE_string("output", None, "The PNG to write.", flag_values=values)
    cli.parse(values, argv, __doc__)
    cli.require(values, "truth", "colorized", "output")
    rows = []
    for path, name in files.find(os.path.join(values.truth, "*.png")):
        rows.append((os.path.splitext(name)[0], read(path), read(os.path.join(values.colorized, name))))
    files.write(values.output, image.encode_png(np.asarray(draw(rows))))


def read(path: str) -> np.ndarray:
    """A picture, uint8 [H, W, 3].

    Raises:
        UserError: it cannot be read.
    """
    try:
        return image.decode(files.read(path))
    except (OSError, RejectedImage) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; colorize it first") from error


def draw(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Image.Image:
    """Name, truth and prediction (uint8 [H, W, 3]) of each picture to a sheet with a row each."""
    width, height = 3 * (_TILE + _MARGIN) + _MARGIN, len(rows) * (_TILE + _HEADER + _MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, truth, predicted) in enumerate(rows):
        top = row * (_TILE + _HEADER + _MARGIN)
        tiles = (("gray", gray(truth)), (f"{name}: predicted", predicted), ("truth", truth))
        for column, (title, tile) in enumerate(tiles):
            left = _MARGIN + column * (_TILE + _MARGIN)
            pen.text((left, top + _MARGIN / 2), title, fill="black")
            shown = image.fit(tile, _TILE, image.ResizeMode.PAD)
            sheet.paste(Image.fromarray(shown), (left, top + _HEADER))
    return sheet


def gray(rgb: np.ndarray) -> np.ndarray:
    """A picture with its lightness and no color; uint8 [H, W, 3]."""
    lightness = color.rgb_to_l(rgb)
    zeros = np.zeros_like(lightness)
    return color.lab_to_rgb(np.stack([lightness, zeros, zeros], axis=-1))


if __name__ == "__main__":
    cli.launch(main)
