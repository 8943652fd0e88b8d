"""Makes a study: each picture in its own colors and in predicted ones, alike in all else."""

import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from pipeline import color, files, image
from pipeline.errors import UserError, printable
from pipeline.filters import Filters
from pipeline.rejects import RejectedImage
from trainer import trained
from trainer.colorizer import FixedSizeColorizer
from trainer.study import manifest
from trainer.study.manifest import PICTURES, Pair, Study
from trainer.tasks import Outcome

_LOGGER = logging.getLogger("trainer.study")
_LONG_SIDE = 640  # pixels: it fits most screens, and larger pictures say no more about color
_IN_COLOR = Filters(min_side=0, max_pixels=0, reject_grayscale=True, min_chroma=0, min_lightness=0)


def make(work_dir: str, output: str, named: Sequence[str]) -> None:
    """Makes a study.

    Args:
        work_dir: a training run.
        output: the folder of the study; local, and there is none yet. It has its name once it is complete.
        named: paths of pictures and folders, and patterns.

    Raises:
        UserError: no such run, a folder that is there already or cannot be written, no picture in color, or pictures
            that cannot be read; in the last case the study is made of the others.
    """
    _check(output)
    paths = files.find_all(named)
    gray: list[str] = []
    outcome = Outcome()
    with files.folder_aside(output) as folder:
        files.make_folder(os.path.join(folder, PICTURES))
        run = trained.load(work_dir)
        colorizer = FixedSizeColorizer(run.model, run.dataset.resize_mode)
        pairs = []
        for path, rgb in _pictures(tqdm(paths, desc="make", unit="image", disable=None), gray, outcome):
            (predicted,) = colorizer.colorize([rgb])
            pairs.append(Pair(printable(path), _write(folder, rgb), _write(folder, predicted)))
        failures = [f"{path} ({reason})" for path, reason in outcome.failures.items()]
        if not pairs:
            reasons = [*failures, *(f"{path} (no color)" for path in gray)]
            raise UserError(f"there is no picture in color to show: {'; '.join(reasons)}")
        manifest.save(folder, Study(run.step, secrets.randbits(63), tuple(pairs)))
    _LOGGER.info("%d pictures in %s", len(pairs), output)
    if gray:
        _LOGGER.warning("WARNING: %d have no color, and were left out: %s", len(gray), "; ".join(gray))
    if failures:
        raise UserError(f"{len(failures)} of {len(paths)} pictures could not be used: {'; '.join(failures)}")


def _check(output: str) -> None:
    if "://" in output:
        raise UserError(f"--output={output} is remote, and answers need a local folder; name one")
    if os.path.lexists(output):
        raise UserError(f"--output={output} exists; name a folder that does not, or remove it with its answers")


def _pictures(paths: Iterable[str], gray: list[str], outcome: Outcome) -> Iterator[tuple[str, np.ndarray]]:
    """The path of each picture in color, and what is shown of it: uint8 [height, width, 3]."""
    for path in paths:
        rgb = None
        with outcome.naming(path):
            rgb = _shrink(image.decode(files.read(path)))
        if rgb is None:
            continue
        if _is_in_color(rgb):
            yield path, rgb
        else:
            gray.append(path)


def _is_in_color(rgb: np.ndarray) -> bool:
    try:
        _IN_COLOR.check_color(*color.rgb_to_normalized(rgb))
    except RejectedImage:
        return False
    return True


def _shrink(rgb: np.ndarray) -> np.ndarray:
    """A picture at the size at which people see it; before it is colorized, so that both versions lose the same."""
    height, width = rgb.shape[:2]
    scale = min(1.0, _LONG_SIDE / max(height, width))
    return image.resize(rgb, max(1, round(height * scale)), max(1, round(width * scale)))


def _write(folder: str, rgb: np.ndarray) -> str:
    """Writes one version of a picture under a name that tells nothing, and from which no other can be guessed."""
    name = f"{secrets.token_hex(16)}.png"
    files.write(os.path.join(folder, PICTURES, name), image.encode_png(rgb))
    return name
