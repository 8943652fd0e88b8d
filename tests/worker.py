"""Runs `trainer.train` with one convolution in place of Inception-ResNet-v2, in a process of its own.

Two variables of the environment serve tests: SEEN names a file that receives what every batch holds, DIE_AT a moment in
which the process kills itself: the third call of a training step, say, is `train:3`.
"""

from trainer import train  # isort: skip  # before TensorFlow, whose noise it keeps back
import hashlib
import json
import os
import signal

import tensorflow as tf

from pipeline import cli
from pipeline.batches import ONE_HOST, Batches
from tests.helpers import tiny_extractor
from trainer.checkpoints import Checkpoints
from trainer.models import extractor
from trainer.steps import Steps


def fingerprint(l_224):
    """16 digits that tell a picture, as it is stored, from others."""
    return hashlib.blake2b(l_224.tobytes(), digest_size=8).hexdigest()


def write_down_batches(path):
    original = Batches.train

    def say(line):
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def note(pictures):
        say([fingerprint(picture) for picture in pictures])
        return pictures

    def train_batches(self, seed, epochs, first_step=0, flip=True, context=ONE_HOST):
        say({"first_step": epochs.start * self.steps_per_epoch + first_step})

        def noted(batch):
            l_224 = tf.numpy_function(note, [batch["l_224"]], batch["l_224"].dtype)
            return {**batch, "l_224": tf.ensure_shape(l_224, batch["l_224"].shape)}

        return original(self, seed, epochs, first_step, flip, context).map(noted)

    Batches.train = train_batches


MOMENTS = {  # a step, a batch of validation, and before and after a checkpoint comes to its place
    "train": (Steps, "train"),
    "validate": (Steps, "validate"),
    "rename": (os, "rename"),
    "record": (Checkpoints, "record"),
}


def die_at(moment, call):
    owner, name = MOMENTS[moment]
    original, calls = getattr(owner, name), iter(range(1, call + 1))

    def call_or_die(*args, **kwargs):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, call_or_die)


if __name__ == "__main__":
    extractor.create = tiny_extractor
    if path := os.environ.get("SEEN"):
        write_down_batches(path)
    if when := os.environ.get("DIE_AT"):
        moment, _, call = when.partition(":")
        die_at(moment, int(call))
    cli.launch(train.main)
