r"""Runs the frozen feature extractor once over a dataset, so that training need not run it in every step.

    python -m beam_jobs.embed --config=configs/koalarization.py --data=DATA

Beside each shard a sidecar is written with the extractor's scores of every example and of its mirror image, and
dataset.json says which extractor made them. The trainer then reads these in place of the picture at 299.

The extractor is the one that --config.model names. Its weights must be at hand wherever a worker runs: a file of that
path (absolute, for workers elsewhere), or Keras's download. The same kind of device gives the same bytes. A job that
was killed goes on when the same command is given again. Beam's own options follow as they are, as
--direct_num_workers=4; without --runner the job uses all cores, and the GPU, of this machine.
"""

import logging
import time
from collections.abc import Sequence

import apache_beam as beam
from absl import flags
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import RunInference
from ml_collections import ConfigDict

from beam_jobs import runner, storage
from beam_jobs.job_folder import JobFolder
from beam_jobs.sidecar_writer import ExtractorHandler, FindMissing, WriteSidecar, register
from pipeline import cli, features, manifest
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from trainer import devices, models
from trainer.models import extractor

_LOGGER = logging.getLogger("beam_jobs.embed")


def main(argv: Sequence[str]) -> None:
    """Runs the job that a command line describes."""
    values = flags.FlagValues()
    cli.define_config(values, argv)
    flags.DEFINE_string("data", None, "The directory of a dataset, local or remote.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replaces features of another extractor.", flag_values=values)
    rest = cli.parse(values, argv, __doc__, known_only=True)
    cli.require(values, "data")
    options = runner.parse_options(rest)
    directory = storage.absolute(values.data)
    runner.check_credentials(options, directory)
    shards = sum(len(split.shards) for split in manifest.read(directory, storage.open_binary).splits.values())
    weights = extractor.find_file(values.config.model)
    runner.prepare(options, "embed", directory, [weights] if weights else [], shards, needs_image=True)
    runner.check_servers(options)
    embed(directory, values.config, options, values.overwrite)


def embed(directory: str, config: ConfigDict, options: runner.PipelineOptions, overwrite: bool) -> Manifest:
    """Writes the features of a dataset, or what is missing of them, and registers them in its manifest.

    Args:
        directory: of the dataset, absolute.
        config: names the extractor.
        options: Beam's.
        overwrite: replace features of another extractor instead of refusing them.

    Returns:
        The dataset's manifest.

    Raises:
        UserError: no dataset there, one that is damaged or has features of another extractor, weights that cannot be
            had, or another job at work there.
    """
    start = time.monotonic()
    manifest.read(directory, storage.open_binary)  # before an extractor is built, and before anything is written there
    devices.configure(config.deterministic)
    built = models.create_extractor(config.model, config.seed)
    built.warn_if_random()
    fingerprint, classes = built.fingerprint, built.classes
    del built  # the workers build their own
    job = JobFolder(directory)
    with job.claimed():
        found = manifest.read(directory, storage.open_binary)
        if found.features is not None and found.features.extractor != fingerprint and not overwrite:
            raise UserError(
                f"{directory} has features of extractor {found.features.extractor}, the configuration names "
                f"{fingerprint}; set --config.model and --config.seed as they were, or replace them with --overwrite"
            )
        shards = [info for split in found.splits.values() for info in split.shards]
        names = {features.sidecar_name(info.name, fingerprint) for info in shards}

        def build(pipeline: beam.Pipeline) -> None:
            divided = (
                pipeline
                | beam.Create(shards)
                | beam.Reshuffle()
                | beam.ParDo(FindMissing(directory, fingerprint)).with_outputs(FindMissing.WHOLE, main="missing")
            )
            handler = ExtractorHandler(directory, found.layout, config, fingerprint)
            made = divided.missing | RunInference(handler) | beam.ParDo(WriteSidecar(directory, fingerprint))
            infos = (made, divided[FindMissing.WHOLE]) | beam.Flatten() | beam.combiners.ToList()
            infos | "WriteManifest" >> beam.Map(register, found, fingerprint, classes, directory)

        counters = runner.run(
            build, options, progress=lambda: len(storage.names(directory) & names), total=len(names), title="embed"
        )
        for name in storage.names(directory):
            if features.is_sidecar_name(name) and name not in names:  # which dataset.json no longer names
                storage.delete(FileSystems.join(directory, name))
                job.delete_report(name)
        result = manifest.read(directory, storage.open_binary)
    seconds = time.monotonic() - start
    _LOGGER.info(
        "%s: features of %d examples, of extractor %s; %s",
        directory, result.examples, fingerprint, runner.describe_speed(counters["embedded"], result.examples, seconds),
    )  # fmt: skip
    return result


if __name__ == "__main__":
    cli.launch(main)
