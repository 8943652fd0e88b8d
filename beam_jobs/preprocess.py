r"""Turns archives and folders of pictures into TFRecord shards that hold the model's tensors.

    python -m beam_jobs.preprocess --config=configs/koalarization.py \
        --source=places365:val_256.tar --output=DATA

Sources, of which there can be several:
  --source=places365:PATH   train_256_places365standard.tar, val_256.tar, their large forms, or the extracted tree
  --source=imagenet:PATH    ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, or the extracted tree
  --source=images:PATH      a folder of pictures, or a pattern as 'photos/**.jpg' (quoted from the shell)

Archives are read in place. A picture's split, shard and order depend on its name and --config.seed alone: the same
input gives the same bytes on any number of workers and on any runner. Beam's own options follow as they are, as
--direct_num_workers=4; without --runner the job uses all cores of this machine.

The output directory receives the shards, rejects.jsonl (the pictures that could not be used, and why) and, last,
dataset.json. A job that was killed goes on when the same command is given again: it makes the shards that are missing
or damaged. What it needs for that stands in the folder job/ of the output.
"""

import logging
import time
from collections.abc import Sequence

from absl import flags

from beam_jobs import dataset, plan, runner, sources, storage
from beam_jobs.job_folder import JobFolder
from beam_jobs.spec import DatasetSpec
from pipeline import cli, manifest
from pipeline.errors import UsageError
from pipeline.manifest import Manifest

_LOGGER = logging.getLogger("beam_jobs.preprocess")


def main(argv: Sequence[str]) -> None:
    """Runs the job that a command line describes."""
    values = flags.FlagValues()
    cli.define_config(values, argv)
    flags.DEFINE_multi_string("source", [], "KIND:PATH of pictures; may be repeated.", flag_values=values)
    flags.DEFINE_string("output", None, "The directory of the dataset, local or remote.", flag_values=values)
    flags.DEFINE_boolean(
        "overwrite", False, "Deletes a dataset of other settings that stands in the output.", flag_values=values
    )
    flags.DEFINE_float(
        "max_reject_fraction", 0.5, "Fails, after all pictures were read, if more than this share is rejected.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "dry_run", False, "Lists the pictures, tries some, and tells counts, bytes and hours; writes nothing.",
        flag_values=values,
    )  # fmt: skip
    rest = cli.parse(values, argv, __doc__, known_only=True)
    cli.require(values, "source", "output")
    if not 0 <= values.max_reject_fraction <= 1:
        raise UsageError(f"--max_reject_fraction={values.max_reject_fraction}; choose a share from 0 to 1")
    options = runner.parse_options(rest)
    spec = DatasetSpec.from_config(values.config)
    inputs = [sources.parse_source(text) for text in values.source]
    output = storage.absolute(values.output)
    sources.check_outside(output, inputs)
    shards = len(spec.partition.shards())
    runner.prepare(options, "preprocess", output, [source.path for source in inputs], shards)
    if values.dry_run:
        print_plan(inputs, output, spec, values.overwrite, values.max_reject_fraction, runner.cores(options))
        return
    runner.check_servers(options)
    try:
        preprocess(inputs, output, spec, options, values.overwrite, values.max_reject_fraction)
    except runner.TemplateWritten as template:
        _LOGGER.info("the job is written down in %s, from where Dataflow takes it", template)


def print_plan(
    inputs: Sequence[sources.Source],
    output: str,
    spec: DatasetSpec,
    overwrite: bool,
    max_reject_fraction: float,
    cores: int,
) -> None:
    """Says what a job would do on so many cores; the other arguments are those of `preprocess`.

    Raises:
        UserError: the job would fail, for all that can be told.
    """
    sources.check_inputs(inputs)
    if not overwrite:
        JobFolder(output).check(dataset.settings_of(inputs, spec))
    found = plan.make_plan(inputs, spec)
    print(found.describe(spec, cores))
    found.check(spec, output, max_reject_fraction)


def preprocess(
    inputs: Sequence[sources.Source],
    output: str,
    spec: DatasetSpec,
    options: runner.PipelineOptions,
    overwrite: bool,
    max_reject_fraction: float,
) -> Manifest:
    """Makes a dataset, or what is missing of it, and says what became of it.

    Args:
        inputs: collections of pictures.
        output: the dataset's directory, absolute.
        spec: what the dataset is to be.
        options: Beam's.
        overwrite: delete what other settings have made in the output.
        max_reject_fraction: the share of rejected pictures, in [0, 1], above which the job fails.

    Returns:
        The dataset's manifest.

    Raises:
        UserError: an input that cannot be read, an output that holds another dataset or is being written by another
            job, too many rejected pictures, or none to write.
        runner.TemplateWritten: the options ask for no more.
    """
    sources.check_inputs(inputs)
    if runner.is_dataflow(options):
        about = plan.make_plan(inputs, spec, glance=True)
        _LOGGER.info("about:\n%s", about.describe(spec, runner.cores(options)))
    start = time.monotonic()
    names = {spec.partition.file_name(shard) for shard in spec.partition.shards()}
    settings = dataset.settings_of(inputs, spec)
    with JobFolder(output).open(settings, overwrite):
        if found := storage.names(output) & names:
            _LOGGER.info(
                "goes on: %d of %d shards stand in %s; those that are whole are kept", len(found), len(names), output
            )
        counters = runner.run(
            lambda pipeline: dataset.write_dataset(
                pipeline, inputs, output, spec, settings, overwrite, max_reject_fraction
            ),
            options,
            progress=lambda: len(storage.names(output) & names),
            total=len(names),
            title="preprocess",
        )
    result = manifest.read(output, storage.open_binary)
    _report(result, output, counters["converted"], time.monotonic() - start)
    return result


def _report(result: Manifest, output: str, converted: int, seconds: float) -> None:
    splits = ", ".join(
        f"{split.examples} {name} examples in {len(split.shards)} shards" for name, split in result.splits.items()
    )
    rejected = sum(result.rejected.values())
    reasons = ", ".join(f"{count} {reason.value}" for reason, count in result.rejected.items())
    _LOGGER.info(
        "%s: %s; %d of %d pictures rejected%s; %s",
        output, splits, rejected, result.listed, f" ({reasons}; see {manifest.REJECTS_FILE_NAME})" if rejected else "",
        runner.describe_speed(converted, result.listed, seconds),
    )  # fmt: skip


if __name__ == "__main__":
    cli.launch(main)
