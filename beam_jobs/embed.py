r"""Runs the frozen feature extractor once over a dataset, so that training need not run it in every step.

    python -m beam_jobs.embed --config=configs/koalarization.py --data=DATA

Beside each shard a sidecar is written with the extractor's scores of every example and of its mirror image, and
dataset.json says which extractor made them. The trainer then reads these in place of the picture at 299.

The extractor is the one that --config.model names. Its weights must be at hand wherever a worker runs: a file of that
path, or Keras's download. A job that was killed goes on when the same command is given again. Beam's own options follow
as they are, as --direct_num_workers=4; without --runner the job uses all cores, and the GPU, of this machine.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Sequence

import apache_beam as beam
from absl import flags
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import RunInference
from ml_collections import ConfigDict

from beam_jobs import runner, storage
from beam_jobs.job_folder import JobFolder
from beam_jobs.sidecar_writer import ExtractorHandler, FindMissing, WriteSidecar, other_extractor
from pipeline import cli, features, manifest
from pipeline.errors import UserError
from pipeline.manifest import FeaturesInfo, Manifest, ShardInfo
from trainer import models

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
    runner.check_output(options, directory)
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
    path = FileSystems.join(directory, manifest.FILE_NAME)
    extractor = models.create_extractor(config.model, config.seed)
    fingerprint, classes = extractor.fingerprint, extractor.classes
    del extractor  # the workers build their own
    _read(path)  # before anything is written there
    with JobFolder(directory).claimed():
        found = _read(path)
        if found.features is not None and found.features.extractor != fingerprint:
            if not overwrite:
                raise other_extractor(directory, found.features.extractor, fingerprint)
            found = dataclasses.replace(found, features=None)
            _write(found, path)  # which must not name what is now replaced
        shards = [info for split in found.splits.values() for info in split.shards]
        names = {features.sidecar_name(info.name) for info in shards}

        def build(pipeline: beam.Pipeline) -> None:
            divided = (
                pipeline
                | beam.Create(shards)
                | beam.Reshuffle()
                | beam.ParDo(FindMissing(directory, fingerprint, overwrite)).with_outputs(
                    FindMissing.WHOLE, main="missing"
                )
            )
            handler = ExtractorHandler(directory, found.layout, config, fingerprint)
            made = divided.missing | RunInference(handler) | beam.ParDo(WriteSidecar(directory, fingerprint))
            infos = (made, divided[FindMissing.WHOLE]) | beam.Flatten() | beam.combiners.ToList()
            infos | "WriteManifest" >> beam.Map(_register, found, fingerprint, classes, path)

        runner.run(build, options, progress=lambda: len(storage.names(directory) & names), total=len(names))
        result = _read(path)
    seconds = time.monotonic() - start
    _LOGGER.info(
        "%s: features of %d examples, of extractor %s; %.1f images/s in %.0f s",
        directory, result.examples, fingerprint, result.examples / seconds, seconds,
    )  # fmt: skip
    return result


def _read(path: str) -> Manifest:
    try:
        return Manifest.from_json(storage.read_text(path), path)
    except OSError as error:
        raise UserError(f"{path} cannot be read; --data names no dataset") from error


def _write(described: Manifest, path: str) -> None:
    with storage.create(path) as file:
        file.write(described.to_json().encode())


def _register(infos: Sequence[ShardInfo], found: Manifest, fingerprint: str, classes: int, path: str) -> None:
    by_name = {info.name: info for info in infos}
    shards = {
        split: tuple(by_name[features.sidecar_name(info.name)] for info in own.shards)
        for split, own in found.splits.items()
    }
    _write(dataclasses.replace(found, features=FeaturesInfo(fingerprint, classes, shards)), path)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv))
