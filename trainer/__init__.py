"""Trains color models on the datasets of `pipeline`, and uses them."""

import logging
import os

from pipeline.files import GCS_BLOCK_MIB
from trainer.quiet import quiet_loading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors
os.environ["GCS_READ_CACHE_BLOCK_SIZE_MB"] = str(GCS_BLOCK_MIB)  # else 64, of each of some dozens of open files
with quiet_loading():
    import tensorflow as tf

    tf.config.list_physical_devices()

tf.get_logger().setLevel(logging.ERROR)  # it tells of strategies and traces in words meant for its own makers
