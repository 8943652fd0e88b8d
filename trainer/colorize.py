r"""Colorizes pictures and videos with a trained model.

    python -m trainer.colorize --workdir=RUN --output=DIR PICTURE VIDEO FOLDER 'PATTERN'...

They are files, all files of folders, or those of patterns such as 'photos/**.jpg', local or remote. Pictures are JPEG,
PNG, TIFF, WebP, GIF or BMP of any size, gray or in color; of the latter only the lightness is used. Each becomes a PNG
of its own size, transparency and name in the output directory, in place of one that this program wrote there before;
what lies below a folder keeps its place. A video (.mp4, .mov, .mkv, .avi, .webm and others that FFmpeg reads) becomes
H.264 with the same frames, times and sound, in a file of its own kind, or .mkv. What cannot be colorized is named at
the end, and the exit status is 1.
"""

import logging
import os
from collections.abc import Sequence, Set
from types import ModuleType

from absl import flags
from tqdm import tqdm

from pipeline import cli, files
from pipeline.errors import UsageError, UserError, one_line
from trainer import colorizer, pictures
from trainer.colorizer import Colorizer
from trainer.tasks import Outcome, Task, is_video, result_name

_LOGGER = logging.getLogger("trainer.colorize")
DEFAULT_SMOOTHING = 0.8


def main(argv: Sequence[str]) -> None:
    """Colorizes what a command line names."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The directory of a training run.", flag_values=values)
    flags.DEFINE_string("output", None, "The directory for the colorized pictures.", flag_values=values)
    colorizer.define_flags(values)
    flags.DEFINE_float(
        "smoothing", DEFAULT_SMOOTHING, "Of videos: how much of a thing's color is kept from the frame before; more of "
        "it is less flicker.", flag_values=values,
    )  # fmt: skip
    named = cli.parse(values, argv, __doc__)
    cli.require(values, "workdir", "output")
    if not named:
        raise UsageError("no picture is named: give files, folders or patterns after the options")
    colorizer.check_flags(values)
    if not 0 <= values.smoothing < 1:
        raise UsageError(f"--smoothing={values.smoothing:g}; choose from 0, for none, to below 1")
    colorize(values.workdir, values.output, named, values.saturation, values.native_size, values.smoothing)


def colorize(
    work_dir: str,
    output: str,
    named: Sequence[str],
    saturation: float = 1.0,
    native_size: bool = False,
    smoothing: float = DEFAULT_SMOOTHING,
) -> None:
    """Colorizes files.

    Args:
        work_dir: a training run.
        output: the directory of the results, made if need be.
        named: paths of files and folders, and patterns.
        saturation: what the predicted a and b are multiplied by.
        native_size: show the network pictures in their own size.
        smoothing: of videos, in [0, 1).

    Raises:
        UserError: no such run, a directory that cannot be written, a file in it of another origin that would be
            overwritten, or files that cannot be read or written; in the last case all others were colorized.
    """
    tasks = _tasks(output, named)
    own = colorizer.load(work_dir, saturation, native_size)
    for folder in sorted({os.path.dirname(task.target) for task in tasks}):
        files.make_folder(folder)
    outcome = _colorize_all(own, tasks, smoothing)
    _LOGGER.info("%d of %d files are in %s", len(tasks) - len(outcome.failures), len(tasks), output)
    _report(outcome, tasks)


def _colorize_all(own: Colorizer, tasks: Sequence[Task], smoothing: float) -> Outcome:
    """Pictures as one, then video by video."""
    videos = [task for task in tasks if is_video(task.path)]
    stills = [task for task in tasks if not is_video(task.path)]
    outcome = Outcome()
    if stills:
        with tqdm(total=len(stills), desc="colorize", unit="image", disable=None) as bar:
            outcome.add(pictures.colorize(own, stills, bar.update))
    for task in videos:
        with outcome.naming(task.path):
            outcome.add(_video().colorize(own, task, smoothing))
    return outcome


def _video() -> ModuleType:
    """The module for videos; pictures do without what it needs.

    Raises:
        UserError: that is not installed.
    """
    try:
        from trainer import video
    except ModuleNotFoundError as error:
        raise UserError("videos need PyAV; install koalarization[video]") from error
    return video


def _is_result(path: str) -> bool:
    return _video().is_result(path) if is_video(path) else pictures.is_result(path)


def _report(outcome: Outcome, tasks: Sequence[Task]) -> None:
    """Names what did not go well, in the order in which it was named to us."""
    gray = [task.path for task in tasks if task.path in outcome.gray]
    if gray:
        _LOGGER.warning("WARNING: the model knew no color for %d of them, which are gray: %s", len(gray), _list(gray))
    failures = [f"{task.path} ({outcome.failures[task.path]})" for task in tasks if task.path in outcome.failures]
    damaged = [f"{task.path} ({outcome.damaged[task.path]})" for task in tasks if task.path in outcome.damaged]
    messages = []
    if failures:
        messages.append(f"{len(failures)} of {len(tasks)} files could not be colorized: {_list(failures)}")
    if damaged:
        count = f"{len(damaged)} of {len(tasks)} files"
        messages.append(f"{count} had damaged parts, which their results lack: {_list(damaged)}")
    if messages:
        raise UserError("; ".join(messages))


def _list(texts: Sequence[str]) -> str:
    return "; ".join(texts)


def _tasks(output: str, named: Sequence[str]) -> list[Task]:
    """The files that were named, each once, and where their results go.

    Raises:
        UserError: two results of one name, or a file that would be lost.
    """
    tasks: dict[str, Task] = {}  # by target
    for each in named:
        if _is_within(output, each):
            raise UserError(f"--output={output} lies within {each}; name a directory outside of it")
        for path, name in files.find(each):
            target = os.path.join(output, result_name(name))
            before = tasks.setdefault(target, Task(path, target))
            if before.path != path:
                raise UserError(f"{before.path} and {path} would both be written to {target}; colorize them separately")
    sources = {os.path.realpath(task.path) for task in tasks.values()}
    for task in tasks.values():
        _check_target(task, sources)
    return list(tasks.values())


def _is_within(path: str, folder: str) -> bool:
    if "://" in folder:
        return path.startswith(f"{folder.rstrip('/')}/")
    return os.path.isdir(folder) and os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), ""))


def _check_target(task: Task, sources: Set[str]) -> None:
    """Refuses to overwrite files that are to be colorized, and what this program did not write."""
    if os.path.realpath(task.target) in sources:
        raise UserError(f"{task.target} would be overwritten by the result of {task.path}; name another --output")
    try:
        replaceable = not files.exists(task.target) or _is_result(task.target)
    except OSError as error:
        raise UserError(f"{task.target} cannot be read: {one_line(error)}; start again") from error
    if not replaceable:
        raise UserError(
            f"{task.target} would be overwritten, and was not written by this program; name another --output"
        )


if __name__ == "__main__":
    cli.launch(main)
