"""Configuration files: what they must hold, checked before anything is done with them.

`configs/koalarization.py` is the measure: a configuration has all of its fields, each of the same type.
"""

import difflib
import errno
import os
import runpy
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from configs import koalarization
from pipeline.errors import UserError, one_line

_LARGEST_SEED = 2**32 - 1  # that Keras takes


def load(path: str) -> ConfigDict:
    """What the `get_config()` of a configuration file returns.

    Raises:
        UserError: there is no such file, it fails, or it returns something else.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "a folder")
        config = runpy.run_path(path)["get_config"]()
    except OSError as error:
        raise UserError(
            f"--config={path} cannot be read ({error.strerror}); name a configuration file, as configs/koalarization.py"
        ) from error
    except Exception as error:  # it is a program, and may fail in any way
        raise UserError(f"--config={path} fails: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returns {config!r}; it must return an ml_collections.ConfigDict"
        )
    return config


def check_names(config: ConfigDict, names: Iterable[str]) -> None:
    """Refuses names that are no fields of a configuration, as `sed` or `dataset`.

    Raises:
        UserError: the first of them, with a field that resembles it.
    """
    known = fields(config)
    for name in names:
        if name in known:
            continue
        if inner := [field for field in known if field.startswith(f"{name}.")]:
            raise UserError(f"configuration field '{name}' is a section; set one of its fields, as '{inner[0]}'")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        raise UserError(f"no configuration field '{name}'" + (f": did you mean '{near[0]}'?" if near else ""))


def check(config: ConfigDict, origin: str) -> None:
    """Looks for every field of the recipe, of the recipe's type; what the values may be is for their users to say.

    Args:
        config: a configuration.
        origin: where it comes from, for messages.

    Raises:
        UserError: a field that is missing or of another type, or a seed out of range.
    """
    own, recipe = fields(config), fields(koalarization.get_config())
    if missing := [name for name in recipe if name not in own]:
        raise UserError(f"{origin} has no field '{missing[0]}'; start from configs/koalarization.py")
    for name, example in recipe.items():
        if not _alike(own[name], example):
            raise UserError(f"{name} is {own[name]!r} in {origin}; give a value like {example!r}")
    if not 0 <= config.seed <= _LARGEST_SEED:
        raise UserError(f"seed is {config.seed}; choose a whole number from 0 to {_LARGEST_SEED}")


def fields(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The values by name, those of a section as `section.field`."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        values |= fields(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name: value}
    return values


def _alike(value: Any, example: Any) -> bool:
    """Whether a value is of the type of an example; a whole number will do for a fraction, and None for a text."""
    if isinstance(example, tuple):  # of one kind of number; a list where it was read from JSON
        return isinstance(value, tuple | list) and all(_alike(each, example[0]) for each in value)
    if isinstance(example, float):
        return type(value) in (int, float)
    return type(value) is type(example) or (isinstance(example, str) and value is None)
