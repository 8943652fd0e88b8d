"""Colorizes pictures with a trained model.

    python -m trainer.colorize --workdir=RUN --output=DIR PICTURE...

Pictures may have any size and be gray or in color; of the latter only the lightness is used. Each becomes a PNG of its
own size and name in the output directory, in place of one that this program wrote there before. A picture that cannot
be read is named at the end, and the exit status is 1.
"""

import errno
import io
import logging
import os
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from pipeline import cli, files, image
from pipeline.errors import UsageError, UserError
from pipeline.rejects import RejectedImage
from trainer.colorizer import Colorizer

_LOGGER = logging.getLogger("trainer.colorize")
_BATCH = 8
_SOFTWARE = "koalarization"  # in each result, so that it is known when it is met again


def main(argv: Sequence[str]) -> None:
    """Colorizes the pictures that a command line names."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The directory of a training run.", flag_values=values)
    flags.DEFINE_string("output", None, "The directory for the colorized pictures.", flag_values=values)
    pictures = cli.parse(values, argv, __doc__)
    cli.require(values, "workdir", "output")
    if not pictures:
        raise UsageError("no picture is named: give files after the options")
    colorize(values.workdir, values.output, pictures)


def colorize(work_dir: str, output: str, pictures: Sequence[str]) -> None:
    """Colorizes files.

    Args:
        work_dir: a training run.
        output: the directory of the results, made if need be.
        pictures: paths.

    Raises:
        UserError: no such run, a directory that cannot be written, a file in it of another origin that would be
            overwritten, or pictures that cannot be read or written; in the last case all others were colorized.
    """
    targets = _targets(output, pictures)
    for target in targets.values():
        _check_replaceable(target)
    colorizer = Colorizer.load(work_dir)
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} cannot be created: {error.strerror}") from error
    failures: list[str] = []
    with tqdm(total=len(pictures), desc="colorize", unit="image", disable=None) as bar:
        for start in range(0, len(pictures), _BATCH):
            paths = pictures[start : start + _BATCH]
            readable = dict(_decode(paths, failures))
            for path, result in zip(readable, colorizer.colorize(list(readable.values())), strict=True):
                try:
                    _write_png(targets[path], result)
                except UserError as error:
                    failures.append(str(error))
            bar.update(len(paths))
    _LOGGER.info("%d pictures in %s", len(pictures) - len(failures), output)
    if failures:
        raise UserError(f"{len(failures)} of {len(pictures)} pictures could not be colorized: {'; '.join(failures)}")


def _targets(output: str, pictures: Sequence[str]) -> dict[str, str]:
    """The file that each picture is written to."""
    targets: dict[str, str] = {}
    owners: dict[str, str] = {}
    for path in pictures:
        target = os.path.join(output, os.path.splitext(os.path.basename(path))[0] + ".png")
        if owners.setdefault(target, path) != path:
            raise UserError(f"{owners[target]} and {path} would both be written to {target}; colorize them separately")
        if os.path.realpath(target) == os.path.realpath(path):
            raise UserError(f"{path} would be overwritten by its own result; name another --output")
        targets[path] = target
    return targets


def _check_replaceable(target: str) -> None:
    """Refuses to overwrite a file that this program did not write."""
    if not os.path.lexists(target):
        return
    try:
        with Image.open(target, formats=("PNG",)) as before:
            ours = before.info.get("Software") == _SOFTWARE
    except (OSError, SyntaxError, ValueError):  # whatever it is, it is not ours
        ours = False
    if not ours:
        raise UserError(f"{target} would be overwritten, and was not written by this program; name another --output")


def _decode(paths: Sequence[str], failures: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    for path in paths:
        try:
            if os.path.exists(path) and not os.path.isfile(path):  # a pipe might never end
                raise OSError(errno.EINVAL, "not a file")
            with open(path, "rb") as file:
                yield path, image.decode(file.read())
        except OSError as error:
            failures.append(f"{path} ({error.strerror})")
        except RejectedImage as error:
            failures.append(f"{path} ({error})")


def _write_png(path: str, rgb: np.ndarray) -> None:
    buffer, origin = io.BytesIO(), PngInfo()
    origin.add_text("Software", _SOFTWARE)
    Image.fromarray(rgb).save(buffer, format="PNG", pnginfo=origin)
    files.write(path, buffer.getvalue())


if __name__ == "__main__":
    cli.launch(main)
