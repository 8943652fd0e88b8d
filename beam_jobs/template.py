"""The entry of the Flex Template: what its parameters say, as the command line of `beam_jobs.preprocess`.

A template has each parameter once, so that several sources, and several fields of the configuration, share one:

    --sources="places365:gs://BUCKET/val_256.tar imagenet:gs://BUCKET/ILSVRC2012_img_train.tar"
    --settings="dataset.layout=compact seed=7"

Dataflow's launcher calls it with the parameters of `docker/preprocess_template.json` and options of its own.
"""

from collections.abc import Sequence

from absl import flags

from beam_jobs import preprocess
from pipeline import cli

_CONFIG = "configs/koalarization.py"  # unless another is named


def main(argv: Sequence[str]) -> None:
    """Writes down the job that parameters describe, for Dataflow to run."""
    values = flags.FlagValues()
    flags.DEFINE_string("sources", None, "KIND:PATH of pictures, with blanks between several.", flag_values=values)
    flags.DEFINE_string(
        "settings", "", "Fields of the configuration as NAME=VALUE, with blanks between several.", flag_values=values
    )
    rest = cli.parse(values, argv, __doc__, known_only=True)
    cli.require(values, "sources")
    sources = [f"--source={source}" for source in values.sources.split()]
    settings = [f"--config.{setting}" for setting in values.settings.split()]
    if not any(argument.startswith("--config=") for argument in rest):
        rest.append(f"--config={_CONFIG}")
    preprocess.main([argv[0], *rest, *settings, *sources])
