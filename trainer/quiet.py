"""Keeps what TensorFlow prints while it loads itself or a model from the user: none is an error, or can be mended."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# TensorFlow writes these before its log level is in force; cuInit "fails" on every machine without a GPU.
# oneDNN says of each process's first uint8 that another implementation takes it.
_NOISE = re.compile(
    rb"^(WARNING: All log messages before absl|I0000 |W0000 |E0000 .*cuInit|E0000 .*oneDNN supports DT_UINT8 only|"
    rb"To enable the following)"
)


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
