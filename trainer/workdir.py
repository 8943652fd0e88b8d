"""The directory of a run: its configuration, its dataset's manifest, checkpoints and TensorBoard events."""

import json
import logging
import uuid

import tensorflow as tf
from ml_collections import ConfigDict

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.manifest import Manifest

_LOGGER = logging.getLogger(__name__)
_CONFIG = "config.json"
# What cannot change between the parts of a run: the rest of it would no longer be the same run.
_FIXED = ("model", "seed", "batch_size")


def prepare(workdir: str, config: ConfigDict, dataset: Manifest) -> None:
    """Saves configuration and manifest, or compares them with those of the run that is to go on.

    Raises:
        UserError: the directory belongs to a run of another model or dataset, or cannot be written.
    """
    try:
        if tf.io.gfile.exists(_path(workdir, _CONFIG)):
            _check_same_run(workdir, config, dataset)
        tf.io.gfile.makedirs(workdir)
        _write(workdir, manifest.FILE_NAME, dataset.to_json())
        _write(workdir, _CONFIG, config.to_json_best_effort(indent=1))
    except tf.errors.OpError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.message}") from error


def load(workdir: str) -> tuple[ConfigDict, Manifest]:
    """The configuration and the dataset's manifest of a run.

    Raises:
        UserError: there is no run.
    """
    return ConfigDict(json.loads(_read(workdir, _CONFIG))), _load_manifest(workdir)


def _load_manifest(workdir: str) -> Manifest:
    return Manifest.from_json(_read(workdir, manifest.FILE_NAME), _path(workdir, manifest.FILE_NAME))


def _check_same_run(workdir: str, config: ConfigDict, dataset: Manifest) -> None:
    saved, current = json.loads(_read(workdir, _CONFIG)), json.loads(config.to_json_best_effort())
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


def _path(workdir: str, name: str) -> str:
    return tf.io.gfile.join(workdir, name)


def _read(workdir: str, name: str) -> str:
    try:
        with tf.io.gfile.GFile(_path(workdir, name)) as file:
            return file.read()
    except tf.errors.OpError as error:
        raise UserError(f"--workdir={workdir} holds no run: {name} cannot be read") from error


def _write(workdir: str, name: str, text: str) -> None:
    temporary = _path(workdir, f"{name}.{uuid.uuid4().hex}.tmp")
    with tf.io.gfile.GFile(temporary, "w") as file:
        file.write(text)
    tf.io.gfile.rename(temporary, _path(workdir, name), overwrite=True)
