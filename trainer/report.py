r"""Writes a page about a run: what it has learned, how well it does, on what, and how to do it again.

    python -m trainer.report --workdir=RUN

The page is RUN/report.html, one file that needs no other and no network: curves, pictures (gray, predicted, true) of
the best, the worst and at random, errors by source and class, colorfulness, configuration, dataset, commands. What
`trainer.evaluate` finds has to be there first for all that is about quality.
"""

import base64
import collections
import importlib.resources
import io
import logging
import os
import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from configs import koalarization
from pipeline import cli, files, image
from pipeline.config import fields
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.rejects import RejectedImage
from trainer import evaluate, events, workdir
from trainer.evaluate import Evaluation
from trainer.evaluation import METHODS, MODEL
from trainer.events import Scalars

_LOGGER = logging.getLogger("trainer.report")
FILE_NAME = "report.html"
_TEMPLATE = "report.html"
_CLASSES = 10  # with the least error, and as many with the largest
_QUALITY = 88  # of JPEGs, of 100
_CURVES = (  # title, unit, whether the axis is logarithmic, and tags by name
    ("Loss", "mean squared error", True, {"training": "loss", "validation": "validation/loss"}),
    ("PSNR", "dB", False, {"validation": "validation/psnr"}),
    ("Colorfulness", "M3", False, {"predicted": "validation/colorfulness", "true": "validation/true_colorfulness"}),
    ("Learning rate", "", True, {"learning rate": "learning_rate"}),
    ("Norm of the gradient", "", True, {"norm": "gradient_norm"}),
    ("Speed", "images per second", False, {"images per second": "images_per_second"}),
    ("Waiting for data, at most", "part of the time", False, {"part of the time": "waiting_for_data"}),
    ("Memory", "MiB", False, {"peak": "memory_mib"}),
)
_KINDS = {"best": "The best", "worst": "The worst", "random": "At random"}


def main(argv: Sequence[str]) -> None:
    """Writes the page of the run that a command line names."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The directory of a training run.", flag_values=values)
    cli.parse_flags(values, argv, __doc__)
    cli.require(values, "workdir")
    report(values.workdir)


def report(work_dir: str) -> None:
    """Writes RUN/report.html.

    Args:
        work_dir: of a run.

    Raises:
        UserError: there is no run, it cannot be read, or what draws is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401  # for trainer.plots
    except ModuleNotFoundError as error:
        raise UserError(f"the report needs {error.name}; install koalarization[report]") from error
    config, dataset = workdir.load(work_dir)
    found = evaluate.load(work_dir)
    if found is None:
        _LOGGER.warning("WARNING: %s has no evaluation, so that the report says nothing of quality", work_dir)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(importlib.resources.files("trainer").joinpath(_TEMPLATE).read_text())
    page = template.render(
        work_dir=work_dir,
        name=os.path.basename(os.path.abspath(work_dir)),
        curves=list(_curves(events.scalars(work_dir))),
        config=fields(config),
        dataset=dataset,
        commands=_commands(work_dir, config, dataset, found.metrics["measured"] if found else ["--data=DATA"]),
        quality=None if found is None else _quality(work_dir, found),
    )
    path = os.path.join(work_dir, FILE_NAME)
    files.write(path, page.encode())
    _LOGGER.info("%s, %.1f MB: open it in a browser", path, len(page.encode()) / 1e6)


class _Plot(NamedTuple):
    """A plot, and what it shows in words, for those who do not see it."""

    title: str
    svg: str
    text: str


def _curves(scalars: Scalars) -> Iterator[_Plot]:
    """All curves for which a run has values."""
    from trainer import plots

    for title, unit, logarithmic, names in _CURVES:
        if series := {name: scalars[tag] for name, tag in names.items() if tag in scalars}:
            text = "; ".join(f"{name}: {_describe(values)}" for name, values in series.items())
            yield _Plot(title, plots.curves(title, series, unit, logarithmic), text)


def _describe(values: dict[int, float]) -> str:
    steps = list(values)
    text = f"{values[steps[-1]]:.4g} at step {steps[-1]}"
    if len(steps) > 1:
        text += f", from {values[steps[0]]:.4g} at step {steps[0]}; {min(values.values()):.4g} at least"
    return text


class _Picture(NamedTuple):
    """Gray, predicted and true color side by side, as an address that holds the picture itself."""

    address: str
    caption: str
    errors: dict[str, float]


class _Group(NamedTuple):
    """Pictures of a source or class: how many, and the mean distance of a and b from the truth by method."""

    name: str
    pictures: int
    errors: dict[str, float]


def _quality(work_dir: str, found: Evaluation) -> dict[str, Any]:
    """What the page says about quality."""
    from trainer import plots

    true = np.array([row["colorfulness"] for row in found.pictures])
    predicted = np.array([row[MODEL]["colorfulness"] for row in found.pictures])
    known = np.isfinite(predicted)  # a model that went wrong may predict what is no number
    true, predicted = true[known], predicted[known]
    classes = _groups(row | {"group": row["label"]} for row in found.pictures if row["label"])
    few = classes if len(classes) <= 2 * _CLASSES else classes[:_CLASSES] + classes[-_CLASSES:]
    return {
        "step": found.metrics["step"],
        "measured": shlex.join(found.metrics["measured"]),
        "protocol": found.metrics["protocol"],
        "titles": evaluate.TITLES,
        "figures": {
            method: {name: evaluate.describe_figure(own[name]) for name in evaluate.TITLES}
            for method, own in found.figures.items()
        },
        "pictures": {
            title: [_picture(work_dir, each) for each in found.metrics["shown"] if each["kind"] == kind]
            for kind, title in _KINDS.items()
        },
        "sources": _groups(row | {"group": row["source"]} for row in found.pictures),
        "classes": few,
        "all_classes": len(classes),
        "scatter": _Plot(
            "Colorfulness of predictions beside that of the truth",
            plots.scatter("Colorfulness of pictures", true, predicted, "of the truth (M3)", "of the prediction (M3)"),
            f"mean {predicted.mean():.1f} of predictions, {true.mean():.1f} of the truth, "
            f"correlation {_correlation(true, predicted):.2f}"
            if known.any()
            else "no prediction is a number",
        ),
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and x.std() and y.std() else 0.0


def _errors(row: dict[str, Any]) -> dict[str, float]:
    return {method: row[method]["ab_error"] for method in METHODS}


def _picture(work_dir: str, shown: dict[str, Any]) -> _Picture:
    path = os.path.join(work_dir, evaluate.FOLDER, shown["file"])
    try:
        picture = image.decode(files.read(path))
    except (OSError, RejectedImage) as error:
        raise UserError(f"{path} cannot be read; run trainer.evaluate again") from error
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=_QUALITY, subsampling=0)
    address = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return _Picture(address, shown["key"] + (f" ({shown['label']})" if shown["label"] else ""), _errors(shown))


def _groups(rows: Iterable[dict[str, Any]]) -> list[_Group]:
    """Groups of pictures, that of the model's least error first."""
    members = collections.defaultdict(list)
    for row in rows:
        members[row["group"]].append(_errors(row))
    groups = [
        _Group(name, len(own), {method: statistics.fmean(each[method] for each in own) for method in METHODS})
        for name, own in members.items()
    ]
    return sorted(groups, key=lambda group: (group.errors[MODEL], group.name))


def _commands(work_dir: str, config: ConfigDict, dataset: Manifest, measured: Sequence[str]) -> list[str]:
    """What makes the dataset and the run again, but for the paths of the sources, and this page."""
    made = {
        "seed": dataset.seed,
        "dataset.layout": dataset.layout,
        "dataset.resize_mode": dataset.resize_mode.value,
        "dataset.validation_fraction": dataset.validation_fraction,
        **{f"dataset.{split}_shards": len(info.shards) for split, info in dataset.splits.items()},
        **{f"dataset.filters.{name}": value for name, value in vars(dataset.filters).items()},
    }
    trained = {name: value for name, value in fields(config).items() if not name.startswith("dataset.")}
    extracts = {name: value for name, value in trained.items() if name == "seed" or name.startswith("model.")}
    kinds = sorted({kind for split in dataset.splits.values() for kind in split.listed})
    sources, run = [f"--source={kind}:PATH" for kind in kinds], f"--workdir={work_dir}"
    programs = {
        "beam_jobs.preprocess": [*_options(made), *sources, "--output=DATA"],
        "beam_jobs.embed": [*_options(extracts), "--data=DATA"],
        "trainer.train": [*_options(trained), "--data=DATA", run],
        "trainer.evaluate": [run, *measured],
        "trainer.report": [run],
    }
    if dataset.features is None:
        del programs["beam_jobs.embed"]
    return [shlex.join([".venv/bin/python", "-m", program, *options]) for program, options in programs.items()]


def _options(values: dict[str, Any]) -> list[str]:
    """What makes a configuration of these values out of the recipe."""
    recipe = fields(koalarization.get_config())
    changed = [name for name, value in values.items() if _as_option(value) != _as_option(recipe[name])]
    return [
        "--config=configs/koalarization.py", *(f"--config.{name}={_as_option(values[name])}" for name in changed)
    ]  # fmt: skip


def _as_option(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


if __name__ == "__main__":
    cli.launch(main)
