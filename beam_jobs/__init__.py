"""Apache Beam jobs that write datasets. They know sources and Beam, nothing of models, and import no TensorFlow."""

import logging

import pipeline  # noqa: F401  # whose interrupts are brief, before what takes long to load

# Beam warns of Google clients that are not installed as it is imported, whether or not they are wanted.
logging.disable(logging.WARNING)
import apache_beam  # noqa: E402, F401

logging.disable(logging.NOTSET)
