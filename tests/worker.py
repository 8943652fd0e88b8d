"""Runs `trainer.train` with one convolution in place of Inception-ResNet-v2, as a worker of a cluster."""

from trainer import train  # isort: skip  # before TensorFlow, whose noise it keeps back
from pipeline import cli
from tests.helpers import tiny_extractor
from trainer.models import extractor

if __name__ == "__main__":
    extractor.create = tiny_extractor
    cli.launch(train.main)
