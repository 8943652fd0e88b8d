"""The directory of a run: its configuration, its dataset's manifest, checkpoints and TensorBoard events."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Iterator

import tensorflow as tf
from ml_collections import ConfigDict

from pipeline import config, files, manifest
from pipeline.errors import UserError, one_line
from pipeline.manifest import Manifest
from trainer.files import reading, writing

_LOGGER = logging.getLogger(__name__)
_CONFIG = "config.json"
# What cannot change between the parts of a run: the rest of it would no longer be the same run.
_FIXED = ("model", "seed", "batch_size", "precision")


def check(workdir: str, settings: ConfigDict, dataset: Manifest) -> None:
    """Compares configuration and dataset with those of the run that is to go on, and says what differs.

    Raises:
        UserError: the directory belongs to a run of another model or dataset.
    """
    saved, current = (json.loads(to_json(each)) for each in (load(workdir)[0], settings))
    for field in sorted(saved.keys() | current.keys()):
        before, now = saved.get(field), current.get(field)
        if before == now:
            continue
        if field in _FIXED:
            raise UserError(
                f"--workdir={workdir} holds a run whose {field} is {before}, not {now}; name another directory"
            )
        _LOGGER.info("%s was %s until now and is %s from here on", field, before, now)
    # Features may come and go; those of another extractor are refused elsewhere.
    trained_on, found = (dataclasses.replace(each, features=None) for each in (_load_manifest(workdir), dataset))
    if trained_on != found:
        raise UserError(f"--workdir={workdir} holds a run on another dataset; name another directory")


@contextlib.contextmanager
def claim(workdir: str) -> Iterator[None]:
    """Keeps other processes from training in a local directory while the block runs; makes it, where there is none.

    The system lets go of the claim of a process that is killed. A remote directory has nothing of the kind: there,
    `Checkpoints.save` notices another run.

    Raises:
        UserError: another process trains there, or the directory cannot be made.
    """
    with writing(f"--workdir={workdir}"):
        tf.io.gfile.makedirs(workdir)
    if "://" in workdir:
        yield
        return
    folder = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process trains in --workdir={workdir}; wait for it, or stop it") from error
        yield
    finally:
        os.close(folder)


def save(workdir: str, settings: ConfigDict, dataset: Manifest) -> None:
    """Saves the resolved configuration and the dataset's manifest with the run.

    Raises:
        UserError: the directory cannot be written.
    """
    files.write(_path(workdir, manifest.FILE_NAME), dataset.to_json().encode())
    files.write(_path(workdir, _CONFIG), to_json(settings).encode())


def load(workdir: str) -> tuple[ConfigDict, Manifest]:
    """The configuration and the dataset's manifest of a run.

    Raises:
        UserError: there is no run, or its files are damaged.
    """
    path, text = _path(workdir, _CONFIG), _read(workdir, _CONFIG)
    try:
        settings = ConfigDict(json.loads(text))
        config.check(settings, path)
    except (ValueError, TypeError, AttributeError, UserError) as error:  # what it is made of may be anything
        raise UserError(
            f"{path} is damaged ({one_line(error)}); name the directory of a run of this version"
        ) from error
    return settings, _load_manifest(workdir)


def _load_manifest(workdir: str) -> Manifest:
    path = _path(workdir, manifest.FILE_NAME)
    try:
        return Manifest.from_json(_read(workdir, manifest.FILE_NAME), path)
    except UserError as error:  # whose advice is for a dataset; this is a run's copy of its manifest
        raise UserError(f"{str(error).split(';')[0]}; name the directory of a run of this version") from error


def to_json(settings: ConfigDict) -> str:
    """The text of a resolved configuration, as it is saved and shown."""
    return settings.to_json_best_effort(indent=1)


def _path(workdir: str, name: str) -> str:
    return tf.io.gfile.join(workdir, name)


def _read(workdir: str, name: str) -> str:
    path = _path(workdir, name)
    try:
        with reading(path), tf.io.gfile.GFile(path, "rb") as file:
            return file.read().decode(errors="replace")
    except tf.errors.OpError as error:
        raise UserError(f"--workdir={workdir} holds no run: {name} cannot be read") from error
