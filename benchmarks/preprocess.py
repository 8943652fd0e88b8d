"""How fast pictures become shards, against what cannot be avoided and against the usual ways.

    python -m benchmarks.preprocess --pictures=FOLDER --repetitions=3

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
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2

from beam_jobs import blocks, preprocess, runner, shard_writer
from beam_jobs.sources import list_pictures, parse_source
from beam_jobs.spec import DatasetSpec
from benchmarks import harness, usual
from configs import koalarization
from pipeline import cli, example, image, tensors
from pipeline.image import ResizeMode
from tools import photographs

_SHARDS = 18
_COPIES = 8  # of each picture, so that the second that a job takes to start does not count for much
_LAYOUT = example.layout("full")


def _store(pictures: list[bytes], work: Path) -> None:
    _pack(work / "few.tar", pictures)
    _pack(work / "many.tar", pictures * _COPIES)


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


def _measure(way: str, work: Path) -> harness.Figures:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=work) as output:
        start, before = time.monotonic(), harness.cpu_seconds()
        _WAYS[way](_archive(way, work), Path(output))
        seconds, cpu = time.monotonic() - start, harness.cpu_seconds() - before
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "cpu": cpu, "peak_mb": peak / 1024}


def _archive(way: str, work: Path) -> Path:
    return work / ("few.tar" if way in _USUAL else "many.tar")


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
    shard_writer.tensors.from_image = lambda rgb, mode: usual.tensors(rgb)
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


def _table(medians: dict[str, harness.Figures], work: Path) -> Iterator[str]:
    counts = {way: sum(1 for _ in list_pictures(parse_source(f"imagenet:{_archive(way, work)}"))) for way in medians}
    cpu = {way: figures["cpu"] / counts[way] for way, figures in medians.items()}
    shuffled = _shuffled(work / "many.tar")
    yield "| way | CPU ms per picture | of the floor | images/s | peak MB | bytes shuffled |"
    yield "|---|---|---|---|---|---|"
    for way, figures in medians.items():
        yield (
            f"| {way} | {cpu[way] * 1e3:.2f} | {cpu[way] / cpu['floor']:.2f} | "
            f"{counts[way] / figures['seconds']:.0f} | {figures['peak_mb']:.0f} | "
            f"{f'{shuffled[way]:.0f}' if way in shuffled else ''} |"
        )


if __name__ == "__main__":
    benchmark = harness.Benchmark("benchmarks.preprocess", __doc__, list(_WAYS), _store, _measure, _table)
    cli.launch(benchmark.main)
