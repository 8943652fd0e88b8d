"""Runs `trainer.train` with one convolution in place of Inception-ResNet-v2, in a process of its own.

Two variables of the environment serve tests: SEEN names a file that receives what every batch holds, DIE_AT the call of
a training step in which the process kills itself.
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


def die_at(call):
    original, calls = Steps.train, iter(range(1, call + 1))

    def train_or_die(self, *args):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args)

    Steps.train = train_or_die


if __name__ == "__main__":
    extractor.create = tiny_extractor
    if path := os.environ.get("SEEN"):
        write_down_batches(path)
    if call := os.environ.get("DIE_AT"):
        die_at(int(call))
    cli.launch(train.main)
