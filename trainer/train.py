"""Trains a color model on a dataset.

    python -m trainer.train --config=configs/koalarization.py --data=DATA --workdir=RUN
    make tensorboard WORKDIR=RUN

All GPUs of the machine are used; those of many machines where TF_CONFIG names them (see README.md). Where there is
none, --virtual_replicas=2 splits the CPU into two replicas, so that the multi-GPU path can be tried. The same command
goes on where a stopped or killed run was: after SIGTERM (status 143) or an interrupt (130) its state is saved first.

The working directory receives config.json, checkpoints and TensorBoard's events.
"""

from collections.abc import Sequence

import tensorflow as tf
from absl import flags

from pipeline import cli
from trainer import loop, replicas


def main(argv: Sequence[str]) -> None:
    """Runs the training that a command line describes."""
    values = flags.FlagValues()
    cli.define_config(values, argv)
    flags.DEFINE_string("data", None, "The directory of a dataset, local or remote.", flag_values=values)
    flags.DEFINE_string("workdir", None, "The directory of the run, local or remote.", flag_values=values)
    flags.DEFINE_integer(
        "virtual_replicas", None, "Splits the CPU into so many replicas, on a machine without GPUs.", flag_values=values
    )
    cli.parse_flags(values, argv, __doc__)
    cli.require(values, "data", "workdir")
    if values.virtual_replicas is not None:
        replicas.split_cpu(values.virtual_replicas)
    if values.config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = replicas.create_strategy(values.config.batch_size, values.config.strategy)
    loop.train_and_evaluate(values.config, strategy, values.data, values.workdir)


if __name__ == "__main__":
    cli.launch(main)
