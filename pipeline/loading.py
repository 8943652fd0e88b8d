"""Loads TensorFlow, and keeps what it prints while it loads itself or a model from the user: none can be mended."""

import contextlib
import importlib.abc
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

GCS_BLOCK_MIB = 1  # what TensorFlow is told to ask Cloud Storage for at a time, and to keep of each open file
# TensorFlow writes these before its log level is in force; cuInit "fails" on every machine without a GPU.
# oneDNN says of each process's first uint8 that another implementation takes it.
_NOISE = re.compile(
    rb"^(WARNING: All log messages before absl|I0000 |W0000 |E0000 .*cuInit|E0000 .*oneDNN supports DT_UINT8 only|"
    rb"To enable the following)"
)


def tensorflow() -> Any:
    """The module; loaded when first asked for, since a worker has none, and local files need none."""
    keep_quiet()
    import tensorflow as tf

    return tf


def keep_quiet() -> None:
    """Keeps TensorFlow's noise from the user, whoever in this process is the first to import it."""
    if "tensorflow" not in sys.modules and not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow where others find it, and gives it a loader that keeps it quiet."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        for other in sys.meta_path:
            if other is not self and (spec := other.find_spec(name, path, target)):
                if spec.loader:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads TensorFlow as another loader does, without its noise."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors
        os.environ["GCS_READ_CACHE_BLOCK_SIZE_MB"] = str(GCS_BLOCK_MIB)  # else 64, of each of some dozens of open files
        with quiet_loading():
            self._loader.exec_module(module)
            module.config.list_physical_devices()
        module.get_logger().setLevel(logging.ERROR)  # it tells of strategies and traces in words meant for its makers


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
