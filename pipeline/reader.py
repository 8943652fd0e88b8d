"""Streams a dataset as batches of float32 tensors with tf.data.

One definition of order: the shards of an epoch are shuffled by seed and epoch; inside a shard the order is that of the
hashes by which the dataset was dealt.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from pipeline import example, manifest, tensors, tfrecord
from pipeline.errors import UserError
from pipeline.features import VIEWS
from pipeline.manifest import Manifest, ShardInfo
from pipeline.shards import TRAIN, VALIDATION

Batch = dict[str, tf.Tensor]
_Records = tuple[tf.Tensor, ...]  # (examples [B],) or (examples [B], their features [B]), serialized
_INTERLEAVED_SHARDS = 16
_READ_BUFFER_BYTES = 4 << 20  # of each of them


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset on disk that was found complete: its directory and its manifest."""

    directory: str
    manifest: Manifest

    def paths(self, split: str) -> list[str]:
        """The files of a split, in the order of the manifest, those without examples left out."""
        return [self._path(shard) for shard in self.manifest.splits[split].shards if shard.examples]

    def sidecar_paths(self, split: str) -> list[str]:
        """The sidecars of those files, of a dataset with features."""
        assert self.manifest.features is not None
        return [self._path(sidecar) for sidecar in self.manifest.features.shards[split] if sidecar.examples]

    def _path(self, shard: ShardInfo) -> str:
        return tf.io.gfile.join(self.directory, shard.name)

    def check_sizes(self) -> None:
        """Looks at every shard's size, without reading it.

        Raises:
            UserError: a shard is missing or of another size than the manifest says.
        """
        for shard, advice in self._shards():
            path = self._path(shard)
            try:
                size = tf.io.gfile.stat(path).length
            except tf.errors.NotFoundError as error:
                raise UserError(f"shard {path} is missing; {advice}") from error
            if size != shard.bytes:
                raise UserError(f"shard {path} is damaged: {size} bytes, {shard.bytes} were written; {advice}")

    def check_contents(self) -> None:
        """Reads every shard and compares its checksum, to name the one that stopped a program.

        Raises:
            UserError: a shard differs from what was written.
        """
        for shard, advice in self._shards():
            path = self._path(shard)
            with tf.io.gfile.GFile(path, "rb") as file:
                found = f"{tfrecord.checksum(file):08x}"
            if found != shard.crc32c:
                raise UserError(f"shard {path} is damaged: checksum {found}, {shard.crc32c} was written; {advice}")

    def _shards(self) -> Iterator[tuple[ShardInfo, str]]:
        """All files of the dataset, and what to do if one is no good."""
        for split in self.manifest.splits.values():
            yield from ((shard, manifest.MEND_SHARD) for shard in split.shards)
        for sidecars in self.manifest.features.shards.values() if self.manifest.features else ():
            yield from ((sidecar, manifest.MEND_SIDECAR) for sidecar in sidecars)


def open_dataset(directory: str) -> Dataset:
    """Opens a dataset.

    Args:
        directory: local or remote.

    Raises:
        UserError: no manifest there, one of another schema version, or a shard that is missing or of the wrong size.
    """
    dataset = Dataset(directory, manifest.read(directory))
    dataset.check_sizes()
    return dataset


def examples(dataset: Dataset, split: str) -> tf.data.Dataset:
    """Every example of a split once, in the order in which they are stored, one at a time.

    Returns:
        Dictionaries of `key`, `source`, `label` (strings) and the tensors of `pipeline.tensors.SHAPES` (float32).
    """
    records = tf.data.TFRecordDataset(dataset.paths(split), buffer_size=_READ_BUFFER_BYTES)
    layout = example.layout(dataset.manifest.layout)
    return records.batch(1).map(lambda batch: _parse(batch, layout, ("key", "source", "label"))).unbatch()


def train_batches(
    dataset: Dataset, batch_size: int, seed: int, first_epoch: int, epochs: int, flip: bool, features: bool = False
) -> tf.data.Dataset:
    """Batches of the train split, epoch after epoch in one stream, so that no epoch waits for the first batch.

    An epoch has `steps_per_epoch` batches; what is left of its examples is dropped.

    Args:
        dataset: an open dataset.
        batch_size: examples per batch.
        seed: of the order of shards and of the flips.
        first_epoch: the epoch to begin with, counted from 0.
        epochs: the epoch to end before.
        flip: mirror each example or not, by chance; its tensors together.
        features: read stored features in place of `l_299`.

    Returns:
        Batches of `l_224` [B, 224, 224, 1], `l_299` [B, 299, 299, 3] or `features` [B, classes], and `ab_224`
        [B, 224, 224, 2]; float32, pictures in [-1, 1].

    Raises:
        UserError: the split has fewer examples than a batch.
    """
    steps = steps_per_epoch(dataset, batch_size)
    files = np.array(_files(dataset, TRAIN, features))  # (shards, 1 or 2)
    parse = _parser(dataset, features)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        shuffled = tf.random.experimental.stateless_shuffle(files, seed=epoch_seed)
        batches = _read(tf.data.Dataset.from_tensor_slices(shuffled), len(files))
        batches = batches.batch(batch_size, drop_remainder=True).take(steps)
        batches = batches.map(lambda *records: parse(records), num_parallel_calls=tf.data.AUTOTUNE)
        if flip:
            # Another stream of numbers than the shuffle's, and one number for every batch of every epoch.
            flip_seed = tf.stack([tf.constant(~seed, tf.int64), epoch * steps])
            batches = batches.enumerate().map(
                lambda index, batch: _flip(batch, flip_seed + [0, index]), num_parallel_calls=tf.data.AUTOTUNE
            )
        return batches.map(_first_view) if features else batches

    return _options(tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch).prefetch(tf.data.AUTOTUNE))


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Whole batches of the train split.

    Raises:
        UserError: there is none.
    """
    examples_ = dataset.manifest.splits[TRAIN].examples
    if examples_ < batch_size:
        raise UserError(
            f"{dataset.directory} has {examples_} examples to train on, fewer than a batch of {batch_size}; "
            "set --config.batch_size lower"
        )
    return examples_ // batch_size


def validation_batches(dataset: Dataset, batch_size: int, features: bool = False) -> tf.data.Dataset:
    """Every example of the validation split exactly once, in the same order each time.

    The last batch is filled up by repeating its first example with a weight of 0, so that replicas can share it.

    Returns:
        Batches as those of `train_batches`, and `weight` [B], float32: 1 for an example, 0 for filling.
    """
    files = tf.reshape(tf.constant(_files(dataset, VALIDATION, features), tf.string), (-1, 1 + features))
    parse = _parser(dataset, features)
    batches = _read(tf.data.Dataset.from_tensor_slices(files), len(files)).batch(batch_size)
    batches = batches.map(lambda *records: _fill(records, batch_size))
    batches = batches.map(
        lambda records, weight: {**parse(records), "weight": weight}, num_parallel_calls=tf.data.AUTOTUNE
    )
    batches = batches.map(_first_view) if features else batches
    return _options(batches.prefetch(tf.data.AUTOTUNE))


def _files(dataset: Dataset, split: str, features: bool) -> list[list[str]]:
    """For each shard of a split its file and, with features, that of its sidecar."""
    columns = [dataset.paths(split)] + ([dataset.sidecar_paths(split)] if features else [])
    return [list(row) for row in zip(*columns, strict=True)]


def _read(files: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """Interleaves the records of shards, each as (its record, its sidecar's); the order is that of the files alone."""

    def one_shard(names: tf.Tensor) -> tf.data.Dataset:
        streams = [tf.data.TFRecordDataset(name, buffer_size=_READ_BUFFER_BYTES) for name in tf.unstack(names)]
        return tf.data.Dataset.zip(tuple(streams))

    return files.interleave(
        one_shard,
        # Fewer than there are: if all were read at once, the same examples would meet in a batch in every epoch.
        cycle_length=max(1, min(count // 2, _INTERLEAVED_SHARDS)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _parser(dataset: Dataset, features: bool) -> Callable[[_Records], Batch]:
    """A function from serialized records to a batch; its `features` are [B, 2, classes], of both views."""
    layout = example.layout(dataset.manifest.layout)
    if not features:
        return lambda records: _parse(records[0], layout)
    assert dataset.manifest.features is not None
    shape = (VIEWS, dataset.manifest.features.classes)
    pictures = dataclasses.replace(layout, storage={k: v for k, v in layout.storage.items() if k != "l_299"})

    def parse(records: _Records) -> Batch:
        batch = _parse(records[0], pictures, ("key",))
        names = ("key", "features")
        sidecar = tf.io.parse_example(records[1], {name: tf.io.FixedLenFeature([], tf.string) for name in names})
        with tf.control_dependencies([tf.debugging.assert_equal(batch.pop("key"), sidecar["key"])]):
            values = tf.io.decode_raw(sidecar["features"], tf.float32, little_endian=True)
        return {**batch, "features": tf.reshape(values, (-1, *shape))}

    return parse


def _parse(records: tf.Tensor, layout: example.Layout, texts: Sequence[str] = ()) -> Batch:
    """Serialized examples [B] to float32 tensors [B, ...], all at once."""
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in (*layout.storage, *texts)}
    parsed = tf.io.parse_example(records, features)
    batch = {name: _decode(parsed[name], storage, tensors.SHAPES[name]) for name, storage in layout.storage.items()}
    return {**batch, **{name: parsed[name] for name in texts}}


def _decode(raw: tf.Tensor, storage: example.Storage, shape: tuple[int, int, int]) -> tf.Tensor:
    """`example.Storage.decode` for a batch: bytes [B] to float32 [B, height, width, channels]."""
    # Reshaping float16 makes oneDNN complain of processors without support for it, so its bits are reshaped instead.
    bits = "uint16" if storage.dtype == "float16" else storage.dtype
    stored = tf.bitcast(tf.reshape(tf.io.decode_raw(raw, bits), (tf.shape(raw)[0], *storage.shape)), storage.dtype)
    values = tf.cast(stored, tf.float32)
    if (storage.scale, storage.offset) != (1.0, 0.0):
        values = values * storage.scale + storage.offset
    return tf.repeat(values, shape[-1], axis=-1) if storage.shape != shape else values


def _flip(batch: Batch, seed: tf.Tensor) -> Batch:
    """Mirrors half of the examples, left to right, all tensors of an example alike."""
    chosen = tf.random.stateless_uniform([tf.shape(batch["l_224"])[0]], seed) < 0.5
    # `Select` copies whole rows of the batch, where `tf.where` would broadcast the condition at five times the cost.
    mirrored = {name: values[:, ::-1] if name == "features" else _mirror(values) for name, values in batch.items()}
    return {name: tf.raw_ops.Select(condition=chosen, x=mirrored[name], y=batch[name]) for name in batch}


def _first_view(batch: Batch) -> Batch:
    """Drops the features of the view that is not the batch's."""
    return {**batch, "features": batch["features"][:, 0]}


def _mirror(pictures: tf.Tensor) -> tf.Tensor:
    """Reverses the columns of [B, height, width, channels]; TensorFlow's kernel is 15 times faster in rank 3."""
    _, height, width, channels = pictures.shape
    rows = tf.reverse(tf.reshape(pictures, (-1, width, channels)), axis=[1])  # (B * height, width, channels)
    return tf.reshape(rows, (-1, height, width, channels))


def _fill(records: _Records, size: int) -> tuple[_Records, tf.Tensor]:
    """Repeats the first record up to a full batch; the second result weighs the repeated ones 0."""
    count = tf.shape(records[0])[0]
    weight = tf.cast(tf.range(size) < count, tf.float32)
    return tuple(tf.concat([each, tf.repeat(each[:1], size - count)], axis=0) for each in records), weight


def _options(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.with_options(options)
