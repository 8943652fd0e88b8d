"""What the benchmarks share: every way runs in a process of its own, in turn, as often as asked; medians are shown."""

import dataclasses
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from pipeline import cli
from pipeline.errors import UserError
from tools import photographs

Figures = dict[str, float]
_LOGGER = logging.getLogger("benchmarks")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark, which is a module.

    Attributes:
        module: its name.
        text: its documentation.
        ways: their names, in the order in which they run.
        store: makes of JPEGs, in a folder, what the ways read.
        measure: runs a way alone, on that folder.
        table: of the medians of each way's figures, and of that folder: lines, of which the last are rows.
        repetitions: how often each way runs, where nobody says.
    """

    module: str
    text: str
    ways: Sequence[str]
    store: Callable[[list[bytes], Path], None]
    measure: Callable[[str, Path], Figures]
    table: Callable[[dict[str, Figures], Path], Iterable[str]]
    repetitions: int = 3

    def main(self, argv: Sequence[str]) -> None:
        """Runs all ways and prints a table, or within a process of its own one of them."""
        values = flags.FlagValues()
        flags.DEFINE_string("pictures", None, "A folder of JPEGs; else cut from photographs.", flag_values=values)
        flags.DEFINE_integer("repetitions", self.repetitions, "How often each way runs.", flag_values=values)
        flags.DEFINE_enum("way", None, self.ways, "Runs one way alone and prints its figures.", flag_values=values)
        flags.DEFINE_string("work", None, "The folder that a single way reads.", flag_values=values)
        cli.parse(values, argv, self.text)
        if values.way:
            print(json.dumps(self.measure(values.way, Path(values.work))))
        else:
            self._compare(values.pictures, values.repetitions)

    def _compare(self, folder: str | None, repetitions: int) -> None:
        pictures = list(_jpegs(folder))
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            self.store(pictures, work)
            runs: dict[str, list[Figures]] = {way: [] for way in self.ways}
            for repetition in range(repetitions):
                for way in self.ways:
                    _LOGGER.info("repetition %d of %d: %s", repetition + 1, repetitions, way)
                    runs[way].append(self._run_alone(way, work))
            lines = list(self.table({way: _medians(figures) for way, figures in runs.items()}, work))
        size = sum(map(len, pictures)) / len(pictures) / 1e3
        print(
            f"{len(pictures)} JPEGs, {size:.0f} kB each; {os.cpu_count()} cores; medians of {repetitions}\n",
            *lines,
            sep="\n",
        )

    def _run_alone(self, way: str, work: Path) -> Figures:
        command = [sys.executable, "-m", self.module, f"--way={way}", f"--work={work}"]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if result.returncode:
            raise UserError(f"'{way}' ended with status {result.returncode}; what it said is above")
        return json.loads(result.stdout.splitlines()[-1])


def _medians(runs: list[Figures]) -> Figures:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _jpegs(folder: str | None) -> Iterator[bytes]:
    """The files of a folder; without one, pictures that are cut from photographs."""
    if folder is None:
        yield from _cut()
        return
    paths = sorted(path for path in Path(folder).iterdir() if path.is_file()) if Path(folder).is_dir() else []
    if not paths:
        raise UserError(f"--pictures={folder} holds no picture; name a folder of JPEGs")
    yield from (path.read_bytes() for path in paths)


def _cut() -> Iterator[bytes]:
    generator = np.random.default_rng(1)
    for _, photograph in photographs.photographs():
        for _ in range(6):  # 12 of each of 8
            for cut in photographs.cut(photograph, generator)[0]:
                yield photographs.jpeg(Image.fromarray(cut).resize((500, 375)))  # ImageNet's median


def cpu_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
