"""Reads a dataset with TensorFlow: what is on disk, and what a record becomes.

The input side only copies bytes: `parse` makes of a record its tensors as they are stored, and `unpack` makes float32
of whole batches where the model is, so that a GPU gets a half to a seventh of the bytes and does the arithmetic itself.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import tensorflow as tf

from pipeline import example, manifest, tensors, tfrecord
from pipeline.errors import UserError
from pipeline.features import VIEWS
from pipeline.manifest import Manifest, ShardInfo

Batch = dict[str, tf.Tensor]
_READ_BUFFER_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset on disk that was found complete: its directory and its manifest."""

    directory: str
    manifest: Manifest

    @property
    def is_remote(self) -> bool:
        """Whether its files are reached over a network."""
        return "://" in self.directory

    def path(self, shard: ShardInfo) -> str:
        """The file of a shard or sidecar."""
        return tf.io.gfile.join(self.directory, shard.name)

    def check_sizes(self) -> None:
        """Looks at every shard's size, without reading it.

        Raises:
            UserError: a shard is missing or of another size than the manifest says.
        """
        for shard, advice in self._shards():
            path = self.path(shard)
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
            path = self.path(shard)
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


def examples(dataset: Dataset, split: str, features: bool = False) -> tf.data.Dataset:
    """Every example of a split once, in the order in which they are stored, one at a time.

    Args:
        dataset: an open dataset.
        split: of it.
        features: hand out stored features too.

    Returns:
        Dictionaries of `key`, `source`, `label` (strings), the tensors of `pipeline.tensors.SHAPES` (float32) and
        `features` [classes] of the picture as it is.
    """
    layout = example.layout(dataset.manifest.layout)
    paths = [dataset.path(shard) for shard in dataset.manifest.splits[split].shards]
    stored = tf.data.TFRecordDataset(paths, buffer_size=_READ_BUFFER_BYTES).map(
        lambda record: parse(record, layout, ("key", "source", "label"))
    )
    if features:
        info = dataset.manifest.features
        assert info is not None
        sidecars = tf.data.TFRecordDataset([dataset.path(sidecar) for sidecar in info.shards[split]])
        views = sidecars.map(lambda record: parse_features(record, info.classes)[1])
        stored = tf.data.Dataset.zip(stored, views).map(lambda each, own: {**each, "features": own})
    return stored.batch(1).map(lambda batch: unpack(batch, layout)).unbatch()


def parse(record: tf.Tensor, layout: example.Layout, texts: Sequence[str] = ("key",)) -> Batch:
    """One serialized example, a scalar, to its texts and its tensors as the layout stores them.

    float16 comes as its bits, uint16: reshaping it makes oneDNN complain of processors without support for it.
    """
    names = (*layout.storage, *texts)
    parsed = tf.io.parse_single_example(record, {name: tf.io.FixedLenFeature([], tf.string) for name in names})
    for name, storage in layout.storage.items():
        bits = "uint16" if storage.dtype == "float16" else storage.dtype
        parsed[name] = tf.reshape(tf.io.decode_raw(parsed[name], bits), storage.shape)
    return parsed


def parse_features(record: tf.Tensor, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """One serialized record of a sidecar, a scalar, to its example's key and float32 [2, classes], of both views."""
    names = ("key", "features")
    parsed = tf.io.parse_single_example(record, {name: tf.io.FixedLenFeature([], tf.string) for name in names})
    values = tf.io.decode_raw(parsed["features"], tf.float32, little_endian=True)
    return parsed["key"], tf.reshape(values, (VIEWS, classes))


def unpack(batch: Batch, layout: example.Layout) -> Batch:
    """Tensors as they are stored to float32, on any device; mirrored where `flip` says so.

    Args:
        batch: tensors as `parse` makes them, [B, ...]; optionally `flip`, bool [B], and `features` [B, 2, classes];
            anything else is passed on.
        layout: of the dataset.

    Returns:
        `l_224` [B, 224, 224, 1], `l_299` [B, 299, 299, 3] if it was there, `ab_224` [B, 224, 224, 2] in [-1, 1], and
        `features` [B, classes] of the view that is shown.
    """
    stored = {name: storage for name, storage in layout.storage.items() if name in batch}
    values = {name: _unpack(batch[name], storage) for name, storage in stored.items()}
    if "flip" in batch:
        values = {name: _choose(batch["flip"], _mirror(value), value) for name, value in values.items()}
    if "features" in batch:
        views = tf.unstack(batch["features"], axis=1)
        values["features"] = _choose(batch["flip"], views[1], views[0]) if "flip" in batch else views[0]
    values = {name: _repeat(value, tensors.SHAPES.get(name, ())) for name, value in values.items()}
    return {name: value for name, value in batch.items() if name != "flip"} | values


def _unpack(bits: tf.Tensor, storage: example.Storage) -> tf.Tensor:
    """`example.Storage.decode` for a batch, on any device; channels as they are stored."""
    values = tf.cast(tf.bitcast(bits, storage.dtype), tf.float32)
    return values if (storage.scale, storage.offset) == (1.0, 0.0) else values * storage.scale + storage.offset


def _choose(chosen: tf.Tensor, one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Rows of one or of the other. `Select` copies them whole; `tf.where` would broadcast, at five times the cost."""
    return tf.raw_ops.Select(condition=chosen, x=one, y=other)


def _mirror(pictures: tf.Tensor) -> tf.Tensor:
    """Reverses the columns of [B, height, width, channels]; TensorFlow's kernel is 15 times faster in rank 3."""
    _, height, width, channels = pictures.shape
    rows = tf.reverse(tf.reshape(pictures, (-1, width, channels)), axis=[1])  # (B * height, width, channels)
    return tf.reshape(rows, (-1, height, width, channels))


def _repeat(values: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Repeats the one channel that a layout stores of several equal ones."""
    return tf.repeat(values, shape[-1], axis=-1) if shape and values.shape[-1] != shape[-1] else values
