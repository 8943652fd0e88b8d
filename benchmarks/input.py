"""How fast stored pictures become batches, against reading their bytes and against the usual ways.

    python -m benchmarks.input --pictures=FOLDER --repetitions=3

| way        | what it does                                                                                         |
|------------|------------------------------------------------------------------------------------------------------|
| read       | reads the bytes of the full layout's shards, a thread for each core, 1 MiB at a time: the limit      |
| full       | `pipeline.batches` on the full layout: tensors as they are stored, which the device unpacks          |
| compact    | the same on the compact layout                                                                       |
| unpacked   | full, unpacked to float32 on the CPU                                                                 |
| TFDS       | TensorFlow Datasets with the same tensors                                                            |
| Grain      | Grain on ArrayRecord files with the same tensors                                                     |
| WebDataset | WebDataset with the same tensors                                                                     |
| JPEGs      | `tf.data` from JPEGs: decoded, resized and converted to Lab for each batch                           |
| report     | the report's way: a Keras `Sequence` that reads with scikit-image                                    |

Every way runs in a process of its own, in turn, as often as asked; medians are shown. Each goes over its pictures again
and again, as training does: once to warm up, once with its files dropped from the page cache, as of a dataset that is
larger than memory, and once with them in it. CPU time is that of the last. The ways that compute take few pictures, for
they are slow. Nobody mirrors; all but the last two hand out tensors as they are stored, float16 or its bits.
"""

import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from beam_jobs import preprocess
from benchmarks import harness, peers, usual
from pipeline import cli, example, manifest
from pipeline.manifest import ShardInfo

_LOGGER = logging.getLogger("benchmarks.input")
_BATCH = 32
_COPIES = 6  # of each picture, so that lanes are long against a segment, as in a dataset of some size
_COMPUTED = 128  # pictures of the ways that compute
_CHUNK = 1 << 20
_READ_AHEAD = 512  # pictures, or more than anybody reads
_EPOCHS = 1000  # more than anybody reads
_MEMORY = 384 << 20  # of our reader, so that it has no more than others keep ready


def _store(pictures: list[bytes], work: Path) -> None:
    """Makes the datasets of both layouts, and of the full one those of the peers."""
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
    from trainer import train  # isort: skip  # noqa: F401  # before TensorFlow, whose noise it keeps back
    from pipeline import reader

    for found in reader.examples(reader.open_dataset(str(folder)), "train"):
        yield found.key, {name: tensor.astype(np.float16) for name, tensor in found.tensors.items()}


def _measure(way: str, work: Path) -> harness.Figures:
    source, read = _WAYS[way]
    batches = read(work / source)
    pictures = _COMPUTED if source == "jpegs" else manifest.read(str(work / "full")).splits["train"].examples
    _take(batches, pictures)  # warms up
    figures = {}
    for state in ("cold", "warm"):
        if state == "cold":
            _drop(work / source)
            _take(batches, min(_READ_AHEAD, pictures))  # what was there before
        start, before = time.monotonic(), harness.cpu_seconds()
        taken = _take(batches, pictures)
        figures[state] = (time.monotonic() - start) / taken
        figures[f"{state}_cpu"] = (harness.cpu_seconds() - before) / taken
    return figures


def _take(batches: Iterator[int], pictures: int) -> int:
    """Takes batches of so many pictures in all; of how many."""
    taken = 0
    while taken < pictures:
        taken += next(batches)
    return taken


def _drop(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(folder: Path) -> Iterator[int]:
    def read(shard: ShardInfo) -> int:
        buffer = bytearray(_CHUNK)
        with open(folder / shard.name, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        return shard.examples

    shards = manifest.read(str(folder)).splits["train"].shards
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while True:
            yield from threads.map(read, shards)


def _reader(folder: Path, unpacked: bool = False) -> Iterator[int]:
    from trainer import train  # isort: skip  # noqa: F401  # before TensorFlow, whose noise it keeps back
    from pipeline import reader
    from pipeline.batches import Batches

    dataset = reader.open_dataset(str(folder))
    layout = example.layout(dataset.manifest.layout)
    batches = Batches(dataset, _BATCH, memory_bytes=_MEMORY).train(1, range(_EPOCHS), flip=False)
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
    for batch in stream.repeat().batch(_BATCH).prefetch(tf.data.AUTOTUNE):
        yield len(batch["l_224"])


def _report(folder: Path) -> Iterator[int]:
    from trainer import train  # isort: skip  # noqa: F401
    import keras
    from skimage.color import gray2rgb
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
            return usual.tensors(gray2rgb(rgb) if rgb.ndim == 2 else rgb[..., :3])

    pictures = Pictures(sorted(folder.iterdir())[:_COMPUTED])
    for index in itertools.cycle(range(len(pictures))):
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


def _table(medians: dict[str, harness.Figures], work: Path) -> Iterator[str]:
    cold, warm = ({way: 1 / figures[state] for way, figures in medians.items()} for state in ("cold", "warm"))
    cpu = {way: figures["warm_cpu"] * 1e3 for way, figures in medians.items()}
    yield "| way | images/s from the disk | of the limit | images/s from memory | CPU ms per picture | of `full` |"
    yield "|---|---|---|---|---|---|"
    for way in medians:
        yield (
            f"| {way} | {cold[way]:.0f} | {cold[way] / cold['read']:.2f} | {warm[way]:.0f} | {cpu[way]:.2f} | "
            f"{cpu[way] / cpu['full']:.2f} |"
        )


if __name__ == "__main__":
    benchmark = harness.Benchmark("benchmarks.input", __doc__, list(_WAYS), _store, _measure, _table)
    cli.launch(benchmark.main)
