"""How fast stored pictures become batches, against reading their bytes and against the usual ways.

    python -m benchmarks.input --pictures=FOLDER --repetitions=3

| way        | what it does                                                                                         |
|------------|------------------------------------------------------------------------------------------------------|
| read       | reads the bytes of the full layout's shards, 1 MiB at a time into one buffer: the limit              |
| full       | `pipeline.batches` on the full layout: tensors as they are stored, which the device unpacks          |
| compact    | the same on the compact layout                                                                       |
| unpacked   | full, unpacked to float32 on the CPU                                                                 |
| TFDS       | TensorFlow Datasets with the same tensors                                                            |
| Grain      | Grain on ArrayRecord files with the same tensors                                                     |
| WebDataset | WebDataset with the same tensors                                                                     |
| JPEGs      | `tf.data` from JPEGs: decoded, resized and converted to Lab for each batch                           |
| report     | the report's way: a Keras `Sequence` that reads with scikit-image                                    |

Every way runs in a process of its own, in turn, as often as asked; medians are shown. Each goes over its pictures once
to warm up, once with its files dropped from the page cache, as of a dataset that is larger than memory, and once with
them in it. CPU time is that of the last. The ways that compute take few pictures, for they are slow.
"""

import functools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from beam_jobs import preprocess
from benchmarks import peers
from benchmarks.preprocess import jpegs
from pipeline import cli, example, manifest, tfrecord
from pipeline.errors import UserError

_LOGGER = logging.getLogger("benchmarks.input")
_BATCH = 32
_COPIES = 6  # of each picture, so that lanes are long against a segment, as in a dataset of some size
_COMPUTED = 128  # pictures of the ways that compute
_CHUNK = 1 << 20


def main(argv: Sequence[str]) -> None:
    """Runs all ways, or within a process of its own one of them."""
    values = flags.FlagValues()
    flags.DEFINE_string("pictures", None, "A folder of JPEGs; else cut from photographs.", flag_values=values)
    flags.DEFINE_integer("repetitions", 3, "How often each way runs.", flag_values=values)
    flags.DEFINE_enum("way", None, list(_WAYS), "Runs one way alone and prints its figures.", flag_values=values)
    flags.DEFINE_string("work", None, "The folder that a single way reads from.", flag_values=values)
    cli.parse(values, argv, __doc__)
    if values.way:
        print(json.dumps(_measure(values.way, Path(values.work))))
    else:
        compare(Path(values.pictures) if values.pictures else None, values.repetitions)


def compare(folder: Path | None, repetitions: int) -> None:
    """Stores the pictures in every way, reads them in turn, and prints a table."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _store(list(jpegs(folder)), work)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
        for repetition in range(repetitions):
            for way in _WAYS:
                _LOGGER.info("repetition %d of %d: %s", repetition + 1, repetitions, way)
                command = [sys.executable, "-m", "benchmarks.input", f"--way={way}", f"--work={work}"]
                result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                runs[way].append(json.loads(result.stdout.splitlines()[-1]))
        count = manifest.read(str(work / "full")).splits["train"].examples
    _print_table(runs, count, repetitions)


def _store(pictures: list[bytes], work: Path) -> None:
    """Makes the datasets of both layouts, and of the full one those of the peers."""
    if not pictures:
        raise UserError("--pictures holds no picture")
    (work / "jpegs").mkdir()
    for copy in range(_COPIES):
        for number, data in enumerate(pictures):
            (work / f"jpegs/{copy}-{number:06d}.jpg").write_bytes(data)
    for layout in ("full", "compact"):
        argv = [
            "preprocess", "--config=configs/koalarization.py", f"--config.dataset.layout={layout}",
            "--config.dataset.train_shards=16", "--config.dataset.validation_fraction=0",
            f"--source=images:{work}/jpegs", f"--output={work}/{layout}",
        ]  # fmt: skip
        preprocess.main(argv)
    for way, (write, _) in _PEERS.items():
        _LOGGER.info("storing for %s", way)
        write(_examples(work / "full"), work / way)


def _examples(folder: Path) -> Iterator[tuple[str, peers.Tensors]]:
    """Keys and tensors as they are stored, float16."""
    layout = example.layout("full")
    for shard in manifest.read(str(folder)).splits["train"].shards:
        with open(folder / shard.name, "rb") as file:
            for record in tfrecord.read(file):
                found = example.decode(record, layout)
                yield found.key, {name: tensor.astype(np.float16) for name, tensor in found.tensors.items()}


def _measure(way: str, work: Path) -> dict[str, float]:
    source, read = _WAYS[way]
    figures = {"pictures": float(sum(read(work / source)))}  # warms up
    for state in ("cold", "warm"):
        if state == "cold":
            _drop(work / source)
        start, before = time.monotonic(), _cpu_seconds()
        found = sum(read(work / source))
        figures[f"{state}_seconds"], figures[f"{state}_cpu"] = time.monotonic() - start, _cpu_seconds() - before
        assert found == figures["pictures"]
    return figures


def _drop(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _read(folder: Path) -> Iterator[int]:
    buffer = bytearray(_CHUNK)
    for shard in manifest.read(str(folder)).splits["train"].shards:
        with open(folder / shard.name, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        yield shard.examples


def _reader(folder: Path, unpacked: bool = False) -> Iterator[int]:
    from trainer import train  # isort: skip  # noqa: F401  # before TensorFlow, whose noise it keeps back
    from pipeline import reader
    from pipeline.batches import Batches

    dataset = reader.open_dataset(str(folder))
    layout = example.layout(dataset.manifest.layout)
    batches = Batches(dataset, _BATCH).train(1, range(1))
    if unpacked:
        batches = batches.map(lambda batch: reader.unpack(batch, layout), num_parallel_calls=os.cpu_count())
    for batch in batches:
        yield len(batch["l_224"])


def _on_the_fly(folder: Path) -> Iterator[int]:
    from trainer import train  # isort: skip  # noqa: F401
    import tensorflow as tf
    import tensorflow_io as tfio

    def tensors(path: tf.Tensor) -> dict[str, tf.Tensor]:
        rgb = tf.image.convert_image_dtype(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), tf.float32)
        small, large = (
            tfio.experimental.color.rgb_to_lab(tf.image.resize(rgb, (side, side), antialias=True))
            for side in (224, 299)
        )
        l_299 = tf.repeat(large[..., :1] / 50 - 1, 3, axis=-1)
        return {"l_224": small[..., :1] / 50 - 1, "l_299": l_299, "ab_224": small[..., 1:] / 128}

    paths = [str(path) for path in sorted(folder.iterdir())[:_COMPUTED]]
    stream = tf.data.Dataset.from_tensor_slices(paths).map(tensors, num_parallel_calls=tf.data.AUTOTUNE)
    for batch in stream.batch(_BATCH).prefetch(tf.data.AUTOTUNE):
        yield len(batch["l_224"])


def _report(folder: Path) -> Iterator[int]:
    from trainer import train  # isort: skip  # noqa: F401
    import keras
    import skimage.color
    import skimage.transform
    from skimage.io import imread

    class Pictures(keras.utils.Sequence):
        def __init__(self, paths: list[Path]):
            super().__init__()
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths) // _BATCH

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            own = [self.tensors(path) for path in self.paths[index * _BATCH : (index + 1) * _BATCH]]
            return {name: np.stack([each[name] for each in own]) for name in own[0]}

        def tensors(self, path: Path) -> dict[str, np.ndarray]:
            rgb = imread(path)
            rgb = skimage.color.gray2rgb(rgb) if rgb.ndim == 2 else rgb[..., :3]
            small, large = (
                skimage.color.rgb2lab(skimage.transform.resize(rgb, (side, side), anti_aliasing=True))
                for side in (224, 299)
            )
            l_299 = np.repeat(large[..., :1] / 50 - 1, 3, axis=-1)
            arrays = {"l_224": small[..., :1] / 50 - 1, "l_299": l_299, "ab_224": small[..., 1:] / 128}
            return {name: array.astype(np.float32) for name, array in arrays.items()}

    pictures = Pictures(sorted(folder.iterdir())[:_COMPUTED])
    for index in range(len(pictures)):
        yield len(pictures[index]["l_224"])


_PEERS: dict[str, tuple[Callable[..., None], Callable[..., Iterator[int]]]] = {
    "TFDS": (peers.write_tfds, peers.read_tfds),
    "Grain": (peers.write_array_record, peers.read_grain),
    "WebDataset": (peers.write_webdataset, peers.read_webdataset),
}
_WAYS: dict[str, tuple[str, Callable[[Path], Iterator[int]]]] = {
    "read": ("full", _read),
    "full": ("full", _reader),
    "compact": ("compact", _reader),
    "unpacked": ("full", lambda folder: _reader(folder, unpacked=True)),
    **{way: (way, functools.partial(read, batch_size=_BATCH)) for way, (_, read) in _PEERS.items()},
    "JPEGs": ("jpegs", _on_the_fly),
    "report": ("jpegs", _report),
}


def _print_table(runs: dict[str, list[dict[str, float]]], count: int, repetitions: int) -> None:
    median = {way: {name: statistics.median(run[name] for run in own) for name in own[0]} for way, own in runs.items()}
    cold = {way: own["pictures"] / own["cold_seconds"] for way, own in median.items()}
    warm = {way: own["pictures"] / own["warm_seconds"] for way, own in median.items()}
    cpu = {way: own["warm_cpu"] / own["pictures"] * 1e3 for way, own in median.items()}
    print(
        f"{count} pictures, batches of {_BATCH}; {os.cpu_count()} cores; medians of {repetitions}\n\n"
        "| way | images/s from the disk | of the limit | images/s from memory | CPU ms per picture | of `full` |\n"
        "|---|---|---|---|---|---|"
    )
    for way in runs:
        print(
            f"| {way} | {cold[way]:.0f} | {cold[way] / cold['read']:.2f} | {warm[way]:.0f} | {cpu[way]:.2f} | "
            f"{cpu[way] / cpu['full']:.2f} |"
        )


if __name__ == "__main__":
    cli.launch(main)
