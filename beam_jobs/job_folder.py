"""`DIR/job/`, beside what a job makes: what lets one go on where another was killed, and says how it was made.

    job/settings.json                            what the job was told to do
    job/reports/train-00000-of-00016.tfrecord.json   written after each shard: what is in it
    job/index/*.jsonl.gz                         the members of archives, so that they are listed only once
    job/claim.json                               while a job runs

A dataset is read without it. Where it was deleted, a job makes every shard anew, and only with `--overwrite`. Of the
job that colorizes there are reports on parts, job/reports/part-00007-of-00256.json.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec
from apache_beam.io.filesystems import FileSystems

from beam_jobs import storage
from beam_jobs.claim import claim
from pipeline import features, manifest, shards
from pipeline.errors import UserError

_Record = TypeVar("_Record")
_JOB = "job"  # among the settings, which kind it is; that of a dataset has none


class JobFolder:
    """The folder of a job; its methods can be called from any worker."""

    def __init__(self, output: str):
        self._output = output
        self.folder = FileSystems.join(output, "job")
        self._settings = FileSystems.join(self.folder, "settings.json")
        self._reports = FileSystems.join(self.folder, "reports")
        self.index = FileSystems.join(self.folder, "index")

    @contextlib.contextmanager
    def open(self, settings: dict[str, Any], overwrite: bool) -> Iterator[None]:
        """Claims the output for one job, if it holds nothing that was made with other settings.

        Args:
            settings: what the job is to do; the same settings go on with what there is.
            overwrite: delete what other settings have made instead of refusing it.

        Raises:
            UserError: another job works there, or the output holds something made with other settings.
        """
        with self.claimed():
            self._prepare(_as_stored(settings), overwrite)
            yield

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Claims the output for one job of any settings, and clears away what killed ones left half-written.

        Raises:
            UserError: another job works there.
        """
        for folder in (self._output, self.folder, self._reports, self.index):
            storage.make_directory(folder)
        with claim(self.folder):
            self._clean()
            try:
                yield
            except BaseException:
                with contextlib.suppress(OSError):  # the error that brought us here is the one to report
                    self._clean()
                raise
            self._clean()

    def _clean(self) -> None:
        for folder in (self._output, self.folder, self._reports, self.index):
            storage.delete_temporaries(folder)

    def check_owner(self, settings: dict[str, Any]) -> None:
        """Looks whether nobody makes something else here by now: a job that is not heard of for long may be replaced.

        Raises:
            UserError: somebody does.
        """
        if self._read_settings() != _as_stored(settings):
            raise UserError(
                f"--output={self._output} was taken over by another job, while nothing was heard of this one; name "
                "another directory"
            )

    def check(self, settings: dict[str, Any]) -> None:
        """Compares the settings of a job with those of what stands in the output.

        Raises:
            UserError: they differ, and it holds examples.
        """
        before, settings = self._read_settings(), _as_stored(settings)
        if before == settings:
            return
        self._check_job(before, settings)
        made = self._made()
        if not made or (before and self._is_without_examples(made)):
            return
        difference = _difference(before, settings) if before else f"{made[0]}, of which nothing says how it was made"
        raise UserError(
            f"--output={self._output} holds another dataset: {difference}; name another directory, or delete that "
            "dataset with --overwrite"
        )

    def resume(self, settings: dict[str, Any]) -> None:
        """Goes on with what a job of the same settings left in the claimed output, or begins in an empty one.

        Raises:
            UserError: it holds what other settings have made, or nobody knows who.
        """
        before, settings = self._read_settings(), _as_stored(settings)
        if before == settings:
            return
        self._check_job(before, settings)
        if before is not None:
            difference = _difference(before, settings)
            raise UserError(
                f"--output={self._output} holds what another job made: {difference}; name another directory"
            )
        if others := sorted(storage.names(self._output) - {os.path.basename(self.folder)}):
            raise UserError(
                f"--output={self._output} holds {others[0]}, of which nothing says how it was made; name another "
                "directory"
            )
        self._write_settings(settings)

    def reported(self) -> set[str]:
        """Of what there are reports."""
        return {os.path.splitext(name)[0] for name in storage.names(self._reports)}

    def _check_job(self, before: dict[str, Any] | None, settings: dict[str, Any]) -> None:
        if before is not None and before.get(_JOB) != settings.get(_JOB):
            raise UserError(f"--output={self._output} holds what another kind of job made; name another directory")

    def _prepare(self, settings: dict[str, Any], overwrite: bool) -> None:
        if self._read_settings() == settings:
            return
        self._check_job(self._read_settings(), settings)
        if not overwrite:
            self.check(settings)
        self._delete(self._made())
        self._write_settings(settings)

    def _write_settings(self, settings: dict[str, Any]) -> None:
        with storage.create(self._settings) as file:
            file.write(json.dumps(settings, indent=1).encode())

    def _is_without_examples(self, made: list[str]) -> bool:
        """Whether a job failed here before it had written one example: nothing is lost with it."""
        sizes = (storage.stat(FileSystems.join(self._output, name)).size for name in made if shards.is_shard_name(name))
        has_features = any(features.is_sidecar_name(name) for name in made)
        return manifest.FILE_NAME not in made and not has_features and not any(sizes)

    def _read_settings(self) -> dict[str, Any] | None:
        return _decode(storage.read_if_there(self._settings), dict[str, Any])

    def _made(self) -> list[str]:
        """The files of a dataset that stand in the output, `dataset.json` first."""
        files = (manifest.FILE_NAME, manifest.REJECTS_FILE_NAME)
        found = storage.names(self._output)
        parts = (name for name in found if shards.is_shard_name(name) or features.is_sidecar_name(name))
        return [name for name in files if name in found] + sorted(parts)

    def _delete(self, made: list[str]) -> None:
        """In the order of `_made`, which never leaves a manifest without its shards."""
        for name in made:
            storage.delete(FileSystems.join(self._output, name))
        for name in storage.names(self._reports):
            storage.delete(FileSystems.join(self._reports, name))

    def read_report(self, shard: str, kind: type[_Record]) -> _Record | None:
        """What was reported of a shard; None, if nothing that can be understood.

        Raises:
            UserError: it cannot be read.
        """
        return _decode(storage.read_if_there(self._report(shard)), kind)

    def read_reports(self, names: Iterable[str], kind: type[_Record]) -> Iterator[_Record]:
        """What was reported of each of some shards, one report in memory at a time.

        Raises:
            UserError: there is none of one.
        """
        for name in names:
            report = self.read_report(name, kind)
            if report is None:
                raise UserError(f"the report of {name} in {self._output}/job is gone; start the job again")
            yield report

    def write_report(self, shard: str, report: object) -> None:
        """Reports a shard that is complete."""
        with storage.create(self._report(shard)) as file:
            file.write(msgspec.json.encode(report))

    def delete_report(self, shard: str) -> None:
        """Deletes the report of a shard that is gone."""
        storage.delete(self._report(shard))

    def _report(self, shard: str) -> str:
        return FileSystems.join(self._reports, f"{shard}.json")


def _decode(text: str | None, kind: type[_Record]) -> _Record | None:
    """What a file holds; None, if there is none, or one that no job has written."""
    try:
        return None if text is None else msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError:
        return None


def _as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """As they are read back."""
    return msgspec.to_builtins(settings)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first setting that differs, in words."""
    for name in sorted(before.keys() | now.keys()):
        first, second = before.get(name), now.get(name)
        if first == second:
            continue
        if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
            return f"{name}.{_difference(first, second)}"
        return f"{name} was {_as_text(first)}, not {_as_text(second)}"
    raise ValueError("nothing differs")


def _as_text(value: Any) -> str:
    return " and ".join(value) if isinstance(value, dict) else json.dumps(value)
