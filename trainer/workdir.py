"""The directory of a run: its configuration, its dataset's manifest, checkpoints and TensorBoard events."""

import json
import logging

import tensorflow as tf
from ml_collections import ConfigDict

from pipeline import manifest
from pipeline.errors import UserError, one_line
from pipeline.manifest import Manifest
from trainer import files

_LOGGER = logging.getLogger(__name__)
_CONFIG = "config.json"
# What cannot change between the parts of a run: the rest of it would no longer be the same run.
_FIXED = ("model", "seed", "batch_size")


def check(workdir: str, config: ConfigDict, dataset: Manifest) -> None:
    """Compares configuration and dataset with those of the run that is to go on, and says what differs.

    Raises:
        UserError: the directory belongs to a run of another model or dataset.
    """
    saved, current = (json.loads(_to_json(each)) for each in (load(workdir)[0], config))
    for field in sorted(saved.keys() | current.keys()):
        before, now = saved.get(field), current.get(field)
        if before == now:
            continue
        if field in _FIXED:
            raise UserError(
                f"--workdir={workdir} holds a run whose {field} is {before}, not {now}; name another directory"
            )
        _LOGGER.info("%s was %s until now and is %s from here on", field, before, now)
    if _load_manifest(workdir) != dataset:
        raise UserError(f"--workdir={workdir} holds a run on another dataset; name another directory")


def save(workdir: str, config: ConfigDict, dataset: Manifest) -> None:
    """Saves the resolved configuration and the dataset's manifest with the run.

    Raises:
        UserError: the directory cannot be written.
    """
    try:
        tf.io.gfile.makedirs(workdir)
        files.write(_path(workdir, manifest.FILE_NAME), dataset.to_json().encode())
        files.write(_path(workdir, _CONFIG), _to_json(config).encode())
    except tf.errors.OpError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {one_line(error)}") from error


def load(workdir: str) -> tuple[ConfigDict, Manifest]:
    """The configuration and the dataset's manifest of a run.

    Raises:
        UserError: there is no run, or its files are damaged.
    """
    try:
        config = ConfigDict(json.loads(_read(workdir, _CONFIG)))
    except ValueError as error:
        raise UserError(f"{_path(workdir, _CONFIG)} is damaged: {one_line(error)}") from error
    return config, _load_manifest(workdir)


def _load_manifest(workdir: str) -> Manifest:
    return Manifest.from_json(_read(workdir, manifest.FILE_NAME), _path(workdir, manifest.FILE_NAME))


def _to_json(config: ConfigDict) -> str:
    return config.to_json_best_effort(indent=1)


def _path(workdir: str, name: str) -> str:
    return tf.io.gfile.join(workdir, name)


def _read(workdir: str, name: str) -> str:
    try:
        with tf.io.gfile.GFile(_path(workdir, name), "rb") as file:
            return file.read().decode(errors="replace")
    except tf.errors.OpError as error:
        raise UserError(f"--workdir={workdir} holds no run: {name} cannot be read") from error
