"""Reads a dataset: whether it is whole, its examples one by one, and what a batch of them becomes on a device.

The input side only copies bytes: batches hold tensors as they are stored, and `unpack` makes float32 of them where the
model is, so that a GPU gets a half to a seventh of the bytes and does the arithmetic itself.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from pipeline import example, files, manifest, tensors, tfrecord
from pipeline import features as sidecars
from pipeline.errors import UserError, one_line
from pipeline.example import Example
from pipeline.manifest import Manifest, ShardInfo

Batch = dict[str, tf.Tensor]


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
                size = files.size(path)
            except FileNotFoundError as error:
                raise UserError(f"shard {path} is missing; {advice}") from error
            except OSError as error:
                raise UserError(f"shard {path} cannot be read: {one_line(error)}; start again") from error
            if size != shard.bytes:
                raise UserError(f"shard {path} is damaged: {size} bytes, {shard.bytes} were written; {advice}")

    def _shards(self) -> Iterator[tuple[ShardInfo, str]]:
        """All files of the dataset, and what to do if one is no good."""
        for split in self.manifest.splits.values():
            yield from ((shard, manifest.MEND_SHARD) for shard in split.shards)
        for infos in self.manifest.features.shards.values() if self.manifest.features else ():
            yield from ((info, manifest.MEND_SIDECAR) for info in infos)


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


@contextlib.contextmanager
def naming_damage(path: str, advice: str) -> Iterator[None]:
    """Says of what cannot be read within the block which file of a dataset is to blame.

    Args:
        path: of a shard or sidecar.
        advice: what to do where it is missing or damaged.

    Raises:
        UserError: it is missing, cannot be reached, or is not what was written.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"shard {path} is missing; {advice}") from error
    except OSError as error:
        raise UserError(f"shard {path} cannot be read: {one_line(error)}; start again once it can") from error
    except ValueError as error:
        raise UserError(f"shard {path} is damaged: {one_line(error)}; {advice}") from error


def examples(dataset: Dataset, split: str) -> Iterator[Example]:
    """Every example of a split once, in the order in which they are stored.

    Raises:
        UserError: a shard cannot be read.
    """
    layout = example.layout(dataset.manifest.layout)
    for record in _records(dataset, dataset.manifest.splits[split].shards, manifest.MEND_SHARD):
        yield example.decode(record, layout)


def features(dataset: Dataset, split: str) -> Iterator[np.ndarray]:
    """The stored features of every example of a split, in the same order: float32 [2, classes], of both views.

    Raises:
        UserError: a sidecar cannot be read.
    """
    info = dataset.manifest.features
    assert info is not None
    for record in _records(dataset, info.shards[split], manifest.MEND_SIDECAR):
        yield sidecars.decode(record, info.classes)[1]


def _records(dataset: Dataset, infos: Sequence[ShardInfo], advice: str) -> Iterator[bytes]:
    for info in infos:
        path = dataset.path(info)
        with naming_damage(path, advice), files.open_binary(path) as file:
            yield from tfrecord.read(file)


def unpack(batch: Batch, layout: example.Layout) -> Batch:
    """Tensors as they are stored to float32, on any device; mirrored where `flip` says so.

    Args:
        batch: tensors as `Batches` has them, [B, ...], float16 as its bits; optionally `flip`, bool [B], and `features`
            [B, 2, classes]; anything else is passed on.
        layout: of the dataset.

    Returns:
        `l_224` [B, 224, 224, 1], `l_299` [B, 299, 299, 3] if it was there, `ab_224` [B, 224, 224, 2] in [-1, 1], and
        `features` [B, classes] of the view that is shown.
    """
    flip = batch.get("flip")
    stored = {name: storage for name, storage in layout.storage.items() if name in batch}
    values = {name: _unpack(batch[name], storage, flip) for name, storage in stored.items()}
    if "features" in batch:
        views = tf.unstack(batch["features"], axis=1)
        values["features"] = views[0] if flip is None else _choose(flip, views[1], views[0])
    values = {name: _repeat(value, tensors.SHAPES.get(name, ())) for name, value in values.items()}
    return {name: value for name, value in batch.items() if name != "flip"} | values


def _unpack(bits: tf.Tensor, storage: example.Storage, flip: tf.Tensor | None) -> tf.Tensor:
    """`example.Storage.decode` for a batch, mirrored where it is to be; channels as they are stored."""
    values = tf.cast(tf.bitcast(bits, storage.dtype), tf.float32)
    if (storage.scale, storage.offset) != (1.0, 0.0):
        values = values * storage.scale + storage.offset
    if flip is None:
        return values
    # Gathered: to reverse pictures costs TensorFlow five times as much.
    mirrored = tf.gather(values, tf.range(values.shape[2] - 1, -1, -1), axis=2)
    return _choose(flip, mirrored, values)


def _choose(chosen: tf.Tensor, one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Rows of one or of the other. `Select` copies them whole; `tf.where` would broadcast, at five times the cost."""
    return tf.raw_ops.Select(condition=chosen, x=one, y=other)


def _repeat(values: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Repeats the one channel that a layout stores of several equal ones."""
    return tf.repeat(values, shape[-1], axis=-1) if shape and values.shape[-1] != shape[-1] else values
