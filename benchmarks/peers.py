"""Other libraries that store the same tensors and read them in batches, each as its documentation shows it.

Every writer takes examples, the keys and tensors that are to be stored, and a folder; every reader goes over them again
and again, in shuffled batches of NumPy arrays or tensors as they are stored, and yields how many each batch has.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Tensors = dict[str, np.ndarray]
_SHARDS = 16
_SHAPES = {"l_224": (224, 224, 1), "l_299": (299, 299, 3), "ab_224": (224, 224, 2)}


def write_tfds(examples: Iterator[tuple[str, Tensors]], folder: Path) -> None:
    """TensorFlow Datasets: TFRecords of its own features."""
    import tensorflow_datasets as tfds

    # Its tensors of float16 are stored as lists of float32; their bits, as bytes, are what it does best.
    features = {
        name: tfds.features.Tensor(shape=shape, dtype=np.uint16, encoding=tfds.features.Encoding.BYTES)
        for name, shape in _SHAPES.items()
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tensors",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": ((key, {n: t.view(np.uint16) for n, t in own.items()}) for key, own in examples)},
        data_dir=str(folder),
    )


def read_tfds(folder: Path, batch_size: int) -> Iterator[int]:
    """Shuffled files, with its own threads."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder("tensors", data_dir=str(folder))
    batches = builder.as_dataset(split="train", shuffle_files=True).repeat().batch(batch_size, drop_remainder=True)
    for batch in batches.prefetch(tf.data.AUTOTUNE):
        yield len(batch["l_224"])


def write_array_record(examples: Iterator[tuple[str, Tensors]], folder: Path) -> None:
    """ArrayRecord files of raw bytes, without compression and each record by itself, as Grain's guide asks."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir()
    writers = [
        ArrayRecordWriter(str(folder / f"{i:02d}.array_record"), "group_size:1,uncompressed") for i in range(_SHARDS)
    ]
    for number, (_, tensors) in enumerate(examples):
        writers[number % _SHARDS].write(b"".join(tensors[name].tobytes() for name in _SHAPES))
    for writer in writers:
        writer.close()


def read_grain(folder: Path, batch_size: int) -> Iterator[int]:
    """Grain with its global shuffle, and a thread for each core."""
    import grain

    def parse(record: bytes) -> Tensors:
        parsed, start = {}, 0
        for name, shape in _SHAPES.items():
            count = int(np.prod(shape))
            parsed[name] = np.frombuffer(record, np.float16, count, start).reshape(shape)
            start += 2 * count
        return parsed

    source = grain.sources.ArrayRecordDataSource([str(path) for path in sorted(folder.iterdir())])
    options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=64)
    batches = grain.MapDataset.source(source).shuffle(seed=1).repeat().map(parse).to_iter_dataset(options)
    for batch in batches.batch(batch_size, drop_remainder=True):
        yield len(batch["l_224"])


def write_webdataset(examples: Iterator[tuple[str, Tensors]], folder: Path) -> None:
    """Tar archives of .npy files."""
    import webdataset

    folder.mkdir()
    writers = [webdataset.TarWriter(str(folder / f"{i:02d}.tar")) for i in range(_SHARDS)]
    for number, (_, tensors) in enumerate(examples):
        arrays = {f"{name}.npy": tensor for name, tensor in tensors.items()}
        writers[number % _SHARDS].write({"__key__": f"{number:06d}", **arrays})
    for writer in writers:
        writer.close()


def read_webdataset(folder: Path, batch_size: int) -> Iterator[int]:
    """Shuffled archives, in this process, since its many processes are PyTorch's."""
    import webdataset

    urls = [str(path) for path in sorted(folder.iterdir())]
    stored = webdataset.WebDataset(urls, shardshuffle=_SHARDS, seed=1, empty_check=False).repeat()
    arrays = stored.decode().to_tuple(*(f"{name}.npy" for name in _SHAPES))
    for batch in arrays.batched(batch_size, partial=False):
        yield len(batch[0])
