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
dataset.json.
"""

import logging
import sys
import time
from collections.abc import Sequence

from absl import flags
from apache_beam.io.filesystems import FileSystems

from beam_jobs import dataset, runner, sources, storage
from beam_jobs.dataset import DatasetSpec
from pipeline import cli, manifest
from pipeline.errors import UserError
from pipeline.manifest import Manifest

_LOGGER = logging.getLogger("beam_jobs.preprocess")


def main(argv: Sequence[str]) -> None:
    """Runs the job that a command line describes."""
    values = flags.FlagValues()
    cli.define_config(values, argv)
    flags.DEFINE_multi_string("source", [], "KIND:PATH of pictures; may be repeated.", flag_values=values)
    flags.DEFINE_string("output", None, "The directory of the dataset, local or remote.", flag_values=values)
    rest = cli.parse(values, argv, __doc__, known_only=True)
    cli.require(values, "source", "output")
    options = runner.parse_options(rest)
    spec = DatasetSpec.from_config(values.config)
    inputs = [sources.parse_source(text) for text in values.source]
    preprocess(inputs, storage.absolute(values.output), spec, options)


def preprocess(
    inputs: Sequence[sources.Source], output: str, spec: DatasetSpec, options: runner.PipelineOptions
) -> Manifest:
    """Makes a dataset and says what became of it.

    Args:
        inputs: collections of pictures.
        output: the dataset's directory, absolute.
        spec: what the dataset is to be.
        options: Beam's.

    Returns:
        The dataset's manifest.

    Raises:
        UserError: an input that cannot be read, an output that holds a dataset already, or no picture to write.
    """
    manifest_path = FileSystems.join(output, manifest.FILE_NAME)
    sources.check_disjoint(inputs)
    for source in inputs:
        sources.check_readable(source)
    storage.make_directory(output)
    if FileSystems.exists(manifest_path):
        raise UserError(f"--output={output} holds a dataset already; name another directory or delete it")
    start = time.monotonic()
    names = {spec.partition.file_name(shard) for shard in spec.partition.shards()}
    runner.run(
        lambda pipeline: dataset.write_dataset(pipeline, inputs, output, spec),
        options,
        progress=lambda: storage.count(output, names),
        total=len(names),
    )
    result = Manifest.from_json(storage.read_text(manifest_path), manifest_path)
    _report(result, output, time.monotonic() - start)
    return result


def _report(result: Manifest, output: str, seconds: float) -> None:
    splits = ", ".join(
        f"{split.examples} {name} examples in {len(split.shards)} shards" for name, split in result.splits.items()
    )
    listed = result.examples + result.rejected
    _LOGGER.info(
        "%s: %s; %d of %d pictures rejected%s; %.1f images/s in %.0f s",
        output, splits, result.rejected, listed, f" (see {manifest.REJECTS_FILE_NAME})" if result.rejected else "",
        listed / seconds, seconds,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv))
