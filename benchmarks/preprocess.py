"""How fast pictures become shards, against what cannot be avoided and against the usual ways.

    python -m benchmarks.preprocess --pictures=FOLDER --repetitions=5

| way           | what it does                                                                                |
|---------------|---------------------------------------------------------------------------------------------|
| floor         | decodes and resizes twice, to 224 and 299, in a plain loop                                  |
| conversion    | from the bytes of a file to the bytes of a record, in a plain loop                          |
| write         | as many bytes as the job's shards have, written in a plain loop                             |
| job, 1 core   | `beam_jobs.preprocess`, from a tar in ImageNet's layout to a dataset                        |
| job, all      | the same on all cores                                                                       |
| compact, 1    | the job on one core in the compact layout, which has a quarter of the bytes                 |
| compact, all  | the same on all cores                                                                       |
| usual shards  | the same conversion, written by `beam.io.WriteToTFRecord` with a fixed number of shards     |
| usual Lab     | the job, but for scikit-image's `resize` and `rgb2lab`                                      |

Every way runs in a process of its own, in turn, as often as asked; medians are shown. CPU seconds are those of the
process and of the ones that it started, without the start of Python. The usual ways take an eighth of the pictures: the
first keeps all tensors in memory, and the second is slow.
"""

import itertools
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from PIL import Image

from beam_jobs import blocks, preprocess, runner, shard_writer
from beam_jobs.sources import list_pictures, parse_source
from beam_jobs.spec import DatasetSpec
from configs import koalarization
from pipeline import cli, example, image, tensors
from pipeline.errors import UserError
from pipeline.image import ResizeMode
from tools import photographs

_LOGGER = logging.getLogger("benchmarks.preprocess")
_SHARDS = 18
_COPIES = 8  # of each picture, so that the second that a job takes to start does not count for much
_LAYOUT = example.layout("full")


def main(argv: Sequence[str]) -> None:
    """Runs all ways, or within a process of its own one of them."""
    values = flags.FlagValues()
    flags.DEFINE_string("pictures", None, "A folder of JPEGs; else cut from photographs.", flag_values=values)
    flags.DEFINE_integer("repetitions", 5, "How often each way runs.", flag_values=values)
    flags.DEFINE_enum("way", None, list(_WAYS), "Runs one way alone and prints its figures.", flag_values=values)
    flags.DEFINE_string("archive", None, "The tar that a single way reads.", flag_values=values)
    cli.parse(values, argv, __doc__)
    if values.way:
        print(json.dumps(_measure(_WAYS[values.way], Path(values.archive))))
    else:
        compare(Path(values.pictures) if values.pictures else None, values.repetitions)


def compare(folder: Path | None, repetitions: int) -> None:
    """Runs every way in turn and prints a table."""
    with tempfile.TemporaryDirectory() as work:
        pictures = list(jpegs(folder))
        if not pictures:
            raise UserError(f"--pictures={folder} holds no picture")
        few, many = Path(work) / "few.tar", Path(work) / "many.tar"
        _pack(few, pictures)
        _pack(many, pictures * _COPIES)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
        for repetition in range(repetitions):
            for way in _WAYS:
                _LOGGER.info("repetition %d of %d: %s", repetition + 1, repetitions, way)
                runs[way].append(_run_alone(way, few if way in _USUAL else many))
        shuffled = _shuffled(many)
    _print_table(runs, len(pictures), sum(map(len, pictures)), repetitions, shuffled)


def _shuffled(archive: Path) -> dict[str, float]:
    """Bytes that cross the shuffle for a picture: of its reference in the job, of all of it in the usual way."""
    config = koalarization.get_config()
    config.dataset.train_shards = _SHARDS
    partition = DatasetSpec.from_config(config).partition
    placed = list(blocks.pack(list_pictures(parse_source(f"imagenet:{archive}")), partition))
    job = sum(map(blocks.shuffled_bytes, placed)) / sum(block.pictures for _, block in placed)
    some = list(itertools.islice(_pictures(archive), 50))
    usual = statistics.mean(len(data) + len(_record((key, data))) for key, data in some)
    return {way: usual if way == "usual shards" else job for way in _WAYS if way not in _LOOPS}


def _pack(archive: Path, pictures: Sequence[bytes]) -> None:
    """Packs JPEGs as ImageNet's validation set."""
    with tarfile.open(archive, "w") as tar:
        for number, data in enumerate(pictures, 1):
            photographs.add_member(tar, f"ILSVRC2012_val_{number:08d}.JPEG", data)


def jpegs(folder: Path | None) -> Iterator[bytes]:
    """The files of a folder; without one, pictures that are cut from photographs."""
    if folder is not None:
        yield from (path.read_bytes() for path in sorted(folder.iterdir()))
        return
    generator = np.random.default_rng(1)
    for _, photograph in photographs.photographs():
        for _ in range(6):  # 12 of each of 8
            for cut in photographs.cut(photograph, generator)[0]:
                yield photographs.jpeg(Image.fromarray(cut).resize((500, 375)))  # ImageNet's median


def _run_alone(way: str, archive: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.preprocess", f"--way={way}", f"--archive={archive}"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def _measure(way: Callable[[Path, Path], None], archive: Path) -> dict[str, float]:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=archive.parent) as output:
        start, before = time.monotonic(), _cpu_seconds()
        way(archive, Path(output))
        seconds, cpu = time.monotonic() - start, _cpu_seconds() - before
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "cpu": cpu, "peak_mb": peak / 1024}


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _pictures(archive: Path) -> Iterator[tuple[str, bytes]]:
    with open(archive, "rb") as file:
        for ref in list_pictures(parse_source(f"imagenet:{archive}")):
            file.seek(ref.offset)
            yield ref.key, file.read(ref.length)


def _record(picture: tuple[str, bytes]) -> bytes:
    key, data = picture
    values = tensors.from_image(image.decode(data), ResizeMode.STRETCH)
    return example.encode(example.Example(key, "imagenet", "", values), _LAYOUT)


def _floor(archive: Path, output: Path) -> None:
    for _, data in _pictures(archive):
        rgb = image.decode(data)
        for side in (tensors.ENCODER_SIZE, tensors.EXTRACTOR_SIZE):
            cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)


def _conversion(archive: Path, output: Path) -> None:
    for picture in _pictures(archive):
        _record(picture)


def _write(archive: Path, output: Path) -> None:
    count = sum(1 for _ in list_pictures(parse_source(f"imagenet:{archive}")))
    record = _record(next(_pictures(archive)))
    for shard in range(_SHARDS):
        with open(output / str(shard), "wb") as file:
            for _ in range(shard, count, _SHARDS):
                file.write(record)


def _job(archive: Path, output: Path, workers: int = 0, layout: str = "full") -> None:
    argv = [
        "preprocess", "--config=configs/koalarization.py", f"--config.dataset.train_shards={_SHARDS}",
        "--config.dataset.validation_shards=2", f"--source=imagenet:{archive}", f"--output={output}",
        f"--direct_num_workers={workers}", f"--config.dataset.layout={layout}",
    ]  # fmt: skip
    preprocess.main(argv)


def _usual_shards(archive: Path, output: Path) -> None:
    import apache_beam as beam  # after beam_jobs, which keeps its warnings quiet

    options = runner.parse_options([])
    with beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | beam.Create([str(archive)])
            | beam.FlatMap(lambda path: _pictures(Path(path)))
            | beam.Reshuffle()
            | beam.Map(_record)
            | beam.io.WriteToTFRecord(str(output / "data"), num_shards=_SHARDS)
        )


def _usual_lab(archive: Path, output: Path) -> None:
    import skimage.color
    import skimage.transform

    def from_image(rgb: np.ndarray, mode: ResizeMode) -> dict[str, np.ndarray]:
        small, large = (
            skimage.color.rgb2lab(skimage.transform.resize(rgb, (side, side), anti_aliasing=True)).astype(np.float32)
            for side in (tensors.ENCODER_SIZE, tensors.EXTRACTOR_SIZE)
        )
        l_299 = np.repeat(large[..., :1] / 50 - 1, 3, axis=-1)
        return {"l_224": small[..., :1] / 50 - 1, "l_299": l_299, "ab_224": small[..., 1:] / 128}

    shard_writer.tensors.from_image = from_image
    _job(archive, output)


_WAYS: dict[str, Callable[[Path, Path], None]] = {
    "floor": _floor,
    "conversion": _conversion,
    "write": _write,
    "job, 1 core": lambda archive, output: _job(archive, output, workers=1),
    "job, all": _job,
    "compact, 1": lambda archive, output: _job(archive, output, workers=1, layout="compact"),
    "compact, all": lambda archive, output: _job(archive, output, layout="compact"),
    "usual shards": _usual_shards,
    "usual Lab": _usual_lab,
}


_LOOPS = ("floor", "conversion", "write")
_USUAL = ("usual shards", "usual Lab")


def _print_table(
    runs: dict[str, list[dict[str, float]]], count: int, size: int, repetitions: int, shuffled: dict[str, float]
) -> None:
    median = {way: {name: statistics.median(run[name] for run in own) for name in own[0]} for way, own in runs.items()}
    pictures = {way: count if way in _USUAL else count * _COPIES for way in runs}
    cpu = {way: own["cpu"] / pictures[way] for way, own in median.items()}
    print(
        f"{count} JPEGs, {size / count / 1e3:.0f} kB each; {os.cpu_count()} cores; medians of {repetitions}\n\n"
        "| way | CPU ms per picture | of the floor | images/s | peak MB | bytes shuffled |\n|---|---|---|---|---|---|"
    )
    for way, own in median.items():
        print(
            f"| {way} | {cpu[way] * 1e3:.2f} | {cpu[way] / cpu['floor']:.2f} | {pictures[way] / own['seconds']:.0f} | "
            f"{own['peak_mb']:.0f} | {f'{shuffled[way]:.0f}' if way in shuffled else ''} |"
        )


if __name__ == "__main__":
    cli.launch(main)
