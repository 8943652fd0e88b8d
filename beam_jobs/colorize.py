r"""Colorizes collections of pictures, of any number, with a trained model.

    python -m beam_jobs.colorize --workdir=RUN --source=images:photos --output=DIR

Sources are those of beam_jobs.preprocess and are read in place: --source=places365:PATH, imagenet:PATH or images:PATH,
the last for any folder, pattern or archive. Each picture becomes a PNG of its own size and transparency, called as it
is with .png at the end, below DIR/<kind of the source>/. rejects.jsonl names those that could not be read, and why;
colorized.json, written last, counts all.

A job that was killed goes on when the same command is given again, with the pictures that are missing. Beam's own
options follow as they are, as --direct_num_workers=4; without --runner the job uses all cores, and the GPU, of this
machine. The run must be within reach of every worker, and must not go on training meanwhile.
"""

import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
from absl import flags
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import RunInference

from beam_jobs import picture_writer, runner, sources, storage
from beam_jobs.job_folder import JobFolder
from beam_jobs.listing import ListPictures
from beam_jobs.picture_writer import (
    COLORIZED,
    LISTED,
    ColorizerHandler,
    FindPictures,
    PartReport,
    Recipe,
    WritePictures,
)
from pipeline import cli, manifest
from pipeline.errors import UserError
from trainer import colorizer, workdir
from trainer.models import extractor

_LOGGER = logging.getLogger("beam_jobs.colorize")
SUMMARY = "colorized.json"
_NAMED = 20  # of the pictures that stayed gray
_Counts = dict[tuple[str, str], int]  # by source, and by what became of pictures


def main(argv: Sequence[str]) -> None:
    """Runs the job that a command line describes."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The directory of a training run, local or remote.", flag_values=values)
    flags.DEFINE_multi_string("source", [], "KIND:PATH of pictures; may be repeated.", flag_values=values)
    flags.DEFINE_string("output", None, "The directory of the results, local or remote.", flag_values=values)
    colorizer.define_flags(values)
    rest = cli.parse(values, argv, __doc__, known_only=True)
    cli.require(values, "workdir", "source", "output")
    colorizer.check_flags(values)
    options = runner.parse_options(rest)
    inputs = [sources.parse_source(text) for text in values.source]
    work_dir, output = storage.absolute(values.workdir), storage.absolute(values.output)
    sources.check_outside(output, inputs)
    runner.check_output(options, work_dir)
    runner.check_credentials(options, work_dir)
    weights = extractor.find_file(workdir.load(work_dir)[0].model)
    read = [work_dir, *([weights] if weights else []), *(source.path for source in inputs)]
    runner.prepare(options, "colorize", output, read, picture_writer.PARTS, needs_image=True)
    runner.check_servers(options)
    sources.check_inputs(inputs)
    colorize(inputs, output, picture_writer.recipe(work_dir, values.saturation, values.native_size), options)


def colorize(
    inputs: Sequence[sources.Source], output: str, recipe: Recipe, options: runner.PipelineOptions
) -> dict[str, Any]:
    """Colorizes collections, or what is missing of them, and says what became of all pictures.

    Args:
        inputs: collections of pictures.
        output: the directory of the results, absolute.
        recipe: what makes a picture's colors.
        options: Beam's.

    Returns:
        What stands in `SUMMARY`.

    Raises:
        UserError: an input that cannot be read, an output that holds something else or is being written by another
            job, or no picture that could be colorized.
    """
    start = time.monotonic()
    job = JobFolder(output)
    parts = {picture_writer.part_name(number) for number in range(picture_writer.PARTS)}
    settings = {"job": "colorize", "sources": sources.describe(inputs), **recipe.to_dict()}
    with job.claimed():
        job.resume(settings)
        done = runner.run(
            lambda pipeline: _build(pipeline, inputs, output, recipe, settings),
            options,
            progress=lambda: len(job.reported() & parts),
            total=len(parts),
            title="colorize",
            unit="part",
        )["colorized"]
        with storage.open_binary(FileSystems.join(output, SUMMARY)) as file:
            summary = json.load(file)
    _report(summary, output, done, time.monotonic() - start)
    return summary


def _build(
    pipeline: beam.Pipeline,
    inputs: Sequence[sources.Source],
    output: str,
    recipe: Recipe,
    settings: Mapping[str, Any],
) -> None:
    """Adds the whole job to a pipeline; it is complete when `SUMMARY` stands in the output."""
    placed = pipeline | ListPictures(inputs, output, picture_writer.PARTITION)
    listed = placed | "CountListed" >> beam.Map(lambda placed: ((placed[1].source, LISTED), placed[1].pictures))
    found = (
        placed
        | beam.GroupByKey()
        | beam.ParDo(FindPictures(output)).with_outputs(
            FindPictures.COUNTS, FindPictures.GRAY, FindPictures.REPORTS, main="missing"
        )
    )
    written = (
        found.missing
        | RunInference(ColorizerHandler(recipe))
        | beam.ParDo(WritePictures(output)).with_outputs(WritePictures.GRAY, main="counts")
    )
    counts = (listed, found[FindPictures.COUNTS], written.counts) | "Counts" >> beam.Flatten()
    gray = (found[FindPictures.GRAY], written[WritePictures.GRAY]) | "Gray" >> beam.Flatten()
    (
        found[FindPictures.REPORTS]
        | beam.combiners.ToList()
        | "WriteSummary"
        >> beam.Map(
            _write_summary,
            beam.pvalue.AsDict(counts | beam.CombinePerKey(sum)),
            beam.pvalue.AsSingleton(gray | beam.combiners.Count.Globally()),
            beam.pvalue.AsSingleton(gray | beam.combiners.Top.Smallest(_NAMED)),
            inputs,
            settings,
            output,
        )
    )


def _write_summary(
    reports: Sequence[str],
    counts: _Counts,
    gray: int,
    some_gray: Sequence[str],
    inputs: Sequence[sources.Source],
    settings: Mapping[str, Any],
    output: str,
) -> None:
    """Writes `rejects.jsonl`, looks whether every picture is accounted for, and writes `SUMMARY`.

    Raises:
        UserError: pictures are missing, or none could be colorized.
    """
    sources.check_unchanged(inputs, settings["sources"])
    rejects = FileSystems.join(output, manifest.REJECTS_FILE_NAME)
    with storage.create(rejects) as file:
        for report in JobFolder(output).read_reports(sorted(reports), PartReport):
            for reject in report.rejects:
                file.write(json.dumps(dataclasses.asdict(reject)).encode() + b"\n")
    by_source: dict[str, dict[str, int]] = {}
    for (source, outcome), number in sorted(counts.items()):
        by_source.setdefault(source, {})[outcome] = number
    _check(by_source, rejects)
    summary = {"pictures": by_source, "gray": gray, "some_gray": list(some_gray)}
    with storage.create(FileSystems.join(output, SUMMARY)) as file:
        file.write(json.dumps(summary, indent=1).encode())


def _check(by_source: dict[str, dict[str, int]], rejects: str) -> None:
    for source, numbers in by_source.items():
        others = sum(numbers.values()) - numbers[LISTED]
        if others != numbers[LISTED]:
            raise UserError(
                f"{numbers[LISTED]} pictures of {source} were listed, but {others} colorized or rejected: the sources "
                "changed while they were read; start the job again"
            )
    if not any(COLORIZED in numbers for numbers in by_source.values()):
        raise UserError(f"no picture could be colorized; {rejects} says why")


def _report(summary: dict[str, Any], output: str, done: int, seconds: float) -> None:
    totals = sum(map(Counter, summary["pictures"].values()), Counter[str]())
    listed, colorized = totals.pop(LISTED), totals.pop(COLORIZED)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(totals.items()))
    _LOGGER.info(
        "%s: %d of %d pictures in color%s; %s",
        output, colorized, listed,
        f"; {totals.total()} rejected ({reasons}; see {manifest.REJECTS_FILE_NAME})" if reasons else "",
        runner.describe_speed(done, colorized, seconds),
    )  # fmt: skip
    if summary["gray"]:
        _LOGGER.warning(
            "WARNING: the model knew no color for %d of them, which are gray, as %s",
            summary["gray"], "; ".join(summary["some_gray"]),
        )  # fmt: skip


if __name__ == "__main__":
    cli.launch(main)
