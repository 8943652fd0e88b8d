r"""Measures a trained model on pictures, beside two baselines: all gray, and the mean color of the train split.

    python -m trainer.evaluate --workdir=RUN --data=DATA                     the validation split of a dataset
    python -m trainer.evaluate --workdir=RUN PICTURE FOLDER 'PATTERN'...     any pictures that it was not trained on

Prints mean squared error, PSNR, SSIM, colorfulness and the area under the curve of color errors (AuC), plain and with
rare colors counted as much as others, each with its 95 % interval, and writes RUN/evaluation/: metrics.json with the
figures, what they mean exactly and what was measured, pictures.jsonl with those of each picture, and some pictures
(gray, predicted, true): the best, the worst and random ones. What an earlier evaluation found there is replaced.
"""

import dataclasses
import hashlib
import heapq
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from pipeline import cli, files, image, reader, tensors
from pipeline.errors import UsageError, UserError, one_line, printable
from pipeline.example import Example
from pipeline.image import ResizeMode
from pipeline.shards import SPLITS, TRAIN, VALIDATION
from trainer import evaluation, trained
from trainer.evaluation import METHODS, MODEL, Evaluator, Interval, Measured
from trainer.tasks import Outcome

_LOGGER = logging.getLogger("trainer.evaluate")
FOLDER = "evaluation"
METRICS = "metrics.json"
PICTURES = "pictures.jsonl"
_SHOWN = 8  # of the best, of the worst, and of others
TITLES = {
    "mse": "MSE", "psnr": "PSNR, dB", "ssim": "SSIM", "colorfulness": "colorfulness", "auc": "AuC, %",
    "balanced_auc": "balanced AuC, %",
}  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Measures the run that a command line names."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The directory of a training run.", flag_values=values)
    flags.DEFINE_string("data", None, "A dataset, in place of pictures.", flag_values=values)
    flags.DEFINE_enum("split", VALIDATION, list(SPLITS), "Which split of the dataset.", flag_values=values)
    named = cli.parse(values, argv, __doc__)
    cli.require(values, "workdir")
    if bool(values.data) == bool(named):
        raise UsageError("name either a dataset, as --data=DATA, or pictures after the options")
    evaluate(values.workdir, values.data, values.split, named)


def evaluate(
    work_dir: str, data: str | None, split: str = VALIDATION, named: Sequence[str] = ()
) -> dict[str, dict[str, Interval]]:
    """Measures the last checkpoint of a run, prints the figures, and writes them below its directory.

    Args:
        work_dir: of the run.
        data: a dataset; None for pictures.
        split: of the dataset.
        named: paths of pictures and folders, and patterns.

    Returns:
        The figures by method and metric.

    Raises:
        UserError: no such run or dataset, no pictures, or some that cannot be read; in the last case the others were
            measured.
    """
    run = trained.load(work_dir)
    evaluator = Evaluator(run.model, run.dataset.splits[TRAIN].colors)
    outcome = Outcome()
    if data is not None:
        dataset = reader.open_dataset(data)
        resize_mode, count = dataset.manifest.resize_mode, dataset.manifest.splits[split].examples
        examples, measured = reader.examples(dataset, split), [f"--data={data}", f"--split={split}"]
    else:
        paths = files.find_all(named)
        resize_mode, count = run.dataset.resize_mode, len(paths)
        examples, measured = _examples(paths, resize_mode, outcome), list(named)
    rows, selection = [], Selection()
    for each in tqdm(evaluator.measure(examples), total=count, desc="evaluate", unit="image", disable=None):
        rows.append(each.without_pictures())
        selection.add(each)
    failures = [f"{path} ({reason})" for path, reason in outcome.failures.items()]
    if not rows:
        raise UserError(f"there is nothing to measure: {'; '.join(failures) or f'{data} has no {split} examples'}")
    figures = evaluation.summarize(np.stack([each.values for each in rows]))
    print(describe(figures, len(rows)))
    about = {
        "step": run.step, "measured": measured, "protocol": evaluation.protocol(resize_mode.value, len(rows))
    }  # fmt: skip
    _write(work_dir, about, figures, rows, selection)
    if failures:
        raise UserError(f"{len(failures)} of {count} pictures could not be measured: {'; '.join(failures)}")
    return figures


def _examples(paths: Sequence[str], resize_mode: ResizeMode, outcome: Outcome) -> Iterator[Example]:
    """Files as a dataset would hold them."""
    for path in paths:
        own = None
        with outcome.naming(path):
            own = tensors.from_image(image.decode(files.read(path)), resize_mode)
        if own is not None:
            yield Example(printable(path), "pictures", "", own)


class Selection:
    """Of all pictures some to look at: those of the least and of the largest error, and some that a hash chose."""

    KINDS = ("best", "worst", "random")

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[float, str, Measured]]] = {kind: [] for kind in self.KINDS}

    def add(self, measured: Measured) -> None:
        """Looks at another picture."""
        error = measured.column("ab_error")[METHODS.index(MODEL)]
        chance = int.from_bytes(hashlib.blake2b(measured.key.encode(), digest_size=6).digest(), "big")
        for kind, rank in zip(self.KINDS, (-error, error, chance), strict=True):
            heap = self._heaps[kind]
            heapq.heappush(heap, (rank, measured.key, measured))
            if len(heap) > _SHOWN:
                heapq.heappop(heap)

    def of(self, kind: str) -> list[Measured]:
        """Those of a kind, the most extreme first."""
        return [measured for _, _, measured in sorted(self._heaps[kind], reverse=True)]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is written of an evaluation.

    Attributes:
        metrics: the content of metrics.json.
        figures: those in it, by method and metric.
        pictures: the content of pictures.jsonl.
    """

    metrics: dict[str, Any]
    figures: dict[str, dict[str, Interval]]
    pictures: list[dict[str, Any]]


def load(work_dir: str) -> Evaluation | None:
    """Reads what the last evaluation of a run found; None where there was none.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    folder = os.path.join(work_dir, FOLDER)
    try:
        if not files.exists(os.path.join(folder, METRICS)):
            return None
        metrics = json.loads(files.read(os.path.join(folder, METRICS)))
        pictures = [json.loads(line) for line in files.read(os.path.join(folder, PICTURES)).splitlines()]
        figures = {
            method: {name: Interval(**own) for name, own in of_method.items()}
            for method, of_method in metrics["figures"].items()
        }
        _check(metrics, pictures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # what it holds may be anything
        raise UserError(f"{folder} is damaged ({one_line(error)}); run trainer.evaluate again") from error
    return Evaluation(metrics, figures, pictures)


def _check(metrics: dict[str, Any], pictures: list[dict[str, Any]]) -> None:
    """Looks for what both files have; raises what Python does where something is missing."""
    _ = int(metrics["step"]), metrics["protocol"].items(), " ".join(metrics["measured"])
    for shown in metrics["shown"]:
        _ = shown["kind"], shown["file"], shown["key"], shown["label"], [shown[name]["ab_error"] for name in METHODS]
    if not pictures:
        raise ValueError("it has no pictures")
    for picture in pictures:
        values = [picture["colorfulness"]]
        values += [picture[method][name] for method in METHODS for name in ("ab_error", "colorfulness")]
        if not all(isinstance(value, float) for value in values):
            raise TypeError("figures that are no numbers")
        _ = picture["source"], picture["label"]


def describe(figures: dict[str, dict[str, Interval]], count: int) -> str:
    """A table for people."""
    cells = [["", *TITLES.values()]]
    for method, own in figures.items():
        cells.append([method, *(describe_figure(own[name]) for name in TITLES)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([f"{count} pictures, with 95 % intervals", *lines])


def describe_figure(figure: Interval) -> str:
    """A figure and its interval, for people."""
    digits = 4 if abs(figure.value) < 10 else 2
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def _write(
    work_dir: str,
    about: dict[str, object],
    figures: dict[str, dict[str, Interval]],
    rows: Sequence[Measured],
    selection: Selection,
) -> None:
    """Writes what was found; metrics.json last, so that it never speaks of other files.

    Pictures are named by what they show: those of an earlier evaluation stay until nothing speaks of them.
    """
    folder = os.path.join(work_dir, FOLDER)
    files.make_folder(folder)
    shown = []
    for kind in Selection.KINDS:
        for number, measured in enumerate(selection.of(kind)):
            png = image.encode_png(measured.pictures)
            name = f"{kind}-{number}-{hashlib.blake2b(png, digest_size=4).hexdigest()}.png"
            files.write(os.path.join(folder, name), png)
            shown.append({"kind": kind, "file": name, **measured.to_dict()})
    files.remove(os.path.join(folder, METRICS))
    files.write(os.path.join(folder, PICTURES), b"".join(json.dumps(row.to_dict()).encode() + b"\n" for row in rows))
    found = {
        method: {name: dataclasses.asdict(figure) for name, figure in own.items()} for method, own in figures.items()
    }
    content = {**about, "figures": found, "shown": shown}
    files.write(os.path.join(folder, METRICS), json.dumps(content, indent=1).encode())
    _remove_others(folder, {str(each["file"]) for each in shown})
    _LOGGER.info("written to %s", folder)


def _remove_others(folder: str, shown: set[str]) -> None:
    """Deletes pictures of earlier evaluations, and what one left that was killed."""
    for name in files.names(folder):
        if name not in shown and name.startswith(tuple(f"{kind}-" for kind in Selection.KINDS)):
            files.remove(os.path.join(folder, name))


if __name__ == "__main__":
    cli.launch(main)
