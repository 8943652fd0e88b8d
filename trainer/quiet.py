"""Keeps what TensorFlow prints while it is loaded from the user: none of it is an error, and none can be acted on."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# TensorFlow writes these before its log level is in force; cuInit "fails" on every machine without a GPU.
_NOISE = re.compile(rb"^(WARNING: All log messages before absl|I0000 |W0000 |E0000 .*cuInit|To enable the following)")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Holds back what the process writes to its standard error in the block; passes on all but the known noise."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        original = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            held.seek(0)
            os.write(2, b"".join(line for line in held if not _NOISE.match(line)))
