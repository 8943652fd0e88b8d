"""Streams the batches of a dataset with tf.data, each host its share, in an order that `pipeline.order` decides.

Each lane of the order has a reader of its own, which works ahead by a few records. How much the whole stream may hold
is a budget in bytes: what the lanes leave of it, prefetched batches fill.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from pipeline import example, order
from pipeline.errors import UserError
from pipeline.features import VIEWS
from pipeline.manifest import ShardInfo
from pipeline.order import Plan, Segments
from pipeline.reader import Batch, Dataset, parse, parse_features
from pipeline.shards import TRAIN, VALIDATION

_Records = tuple[tf.Tensor, ...]  # (an example,) or (an example, its features), serialized; scalars
_REMOTE_READ_BYTES = 4 << 20  # a request; of a local file, records are read straight to where they belong
_READER_EXAMPLES = 4  # tf.data keeps two of an interleaved dataset ready; one is being parsed, and one handed on
_RUNTIME_BYTES = 64 << 20  # threads, functions, and what the allocator cannot use
_BATCHES_ELSEWHERE = 2  # one is being put together, one is being handed on
_VALIDATION_AHEAD = 2  # batches, beside those that wait to be trained on
ONE_HOST = tf.distribute.InputContext()


class Batches:
    """The batches of a dataset.

    Args:
        dataset: an open dataset.
        batch_size: examples of a batch, over all replicas.
        features: read stored features in place of `l_299`.
        memory_bytes: what a host's streams may hold: one of training, and one of validation beside it.
        deterministic: the same order each time. Without it a slow file holds nobody up, but batches hold what is read
            first: `first_step` and `keys` are then right but for some examples.
        held: how many batches are in use at a time.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        features: bool = False,
        memory_bytes: int = 1 << 30,
        deterministic: bool = True,
        held: int = 1,
    ):
        self._dataset = dataset
        self._batch_size = batch_size
        self._features = features
        self._memory_bytes = memory_bytes
        self._deterministic = deterministic
        self._held = held

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the train split.

        Raises:
            UserError: there is none.
        """
        examples = self._dataset.manifest.splits[TRAIN].examples
        if not 0 < self._batch_size <= examples:
            raise UserError(
                f"{self._dataset.directory} has {examples} examples to train on, fewer than a batch of "
                f"{self._batch_size}; set --config.batch_size lower"
            )
        return examples // self._batch_size

    def train(
        self,
        seed: int,
        epochs: range,
        first_step: int = 0,
        flip: bool = True,
        context: tf.distribute.InputContext = ONE_HOST,
    ) -> tf.data.Dataset:
        """Batches of the train split, epoch after epoch in one stream, so that no epoch waits for the first batch.

        An epoch has `steps_per_epoch` batches; what is left of its examples is dropped.

        Args:
            seed: of the order of examples and of the flips.
            epochs: which to read, counted from 0.
            first_step: how many batches of the first of them to leave out.
            flip: mirror each example or not, by chance; its tensors together.
            context: which host this is, of how many; the stream has its part of each batch, a replica's part at a time.

        Returns:
            Batches of tensors as they are stored, and `flip`, bool [B]; `reader.unpack` makes float32 of them.

        Raises:
            UserError: the split has fewer examples than a batch, hosts cannot share it, or the budget is too small.
        """
        split, steps = _Split.of(self._dataset, TRAIN, self._features), self.steps_per_epoch

        def plan(epoch: int) -> Plan:
            skipped = first_step if epoch == epochs.start else 0
            return self._train_plan(split, steps, seed, epoch, skipped, context)

        def mirror(key: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
            text = tf.strings.join([key, tf.strings.as_string(epoch)], "/")
            return tf.strings.to_hash_bucket_strong(text, 2, [seed, 0]) == 1

        def parse_one(epoch: tf.Tensor, records: _Records, _: tf.Tensor) -> Batch:
            key, parsed = self._parse(records)
            return {**parsed, "flip": mirror(key, epoch)} if flip else parsed

        examples = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(
            lambda epoch: self._stream(split, plan, epoch, context, parse_one)
        )
        return self._batch(examples, context, self._ahead(context))

    def _train_plan(
        self, split: "_Split", steps: int, seed: int, epoch: int, first_step: int, context: tf.distribute.InputContext
    ) -> Plan:
        return order.plan(
            split.segments,
            order.shuffled(split.segments, seed, epoch),
            steps=steps,
            batch_size=self._batch_size,
            first_step=first_step,
            host=context.input_pipeline_id,
            hosts=context.num_input_pipelines,
        )

    def keys(self, seed: int, epoch: int, step: int) -> list[str]:
        """The keys of a batch of the train split, over all hosts: what `train` reads for a step of an epoch."""
        split = _Split.of(self._dataset, TRAIN, features=False)
        layout = dataclasses.replace(self._layout, storage={})

        def plan(epoch: int) -> Plan:
            return self._train_plan(split, self.steps_per_epoch, seed, epoch, step, ONE_HOST)

        def parse_one(_: tf.Tensor, records: _Records, __: tf.Tensor) -> Batch:
            return parse(records[0], layout)

        examples = self._stream(split, plan, tf.constant(epoch, tf.int64), ONE_HOST, parse_one)
        examples = examples.take(self._batch_size).with_options(_options())
        return [found["key"].decode() for found in examples.as_numpy_iterator()]

    def validation(self, context: tf.distribute.InputContext = ONE_HOST) -> tf.data.Dataset:
        """Every example of the validation split exactly once, in the same order each time.

        Batches are filled up by repeating an example with a weight of 0, so that replicas can share the last.

        Args:
            context: as for `train`.

        Returns:
            Batches as those of `train`, and `weight` [B], float32: 1 for an example, 0 for filling.
        """
        split = _Split.of(self._dataset, VALIDATION, self._features)
        steps = -(-self._dataset.manifest.splits[VALIDATION].examples // self._batch_size)

        def plan(_: int) -> Plan:
            return order.plan(
                split.segments,
                np.arange(len(split.segments.examples)),
                steps=steps,
                batch_size=self._batch_size,
                first_step=0,
                host=context.input_pipeline_id,
                hosts=context.num_input_pipelines,
            )

        def parse_one(_: tf.Tensor, records: _Records, weight: tf.Tensor) -> Batch:
            return {**self._parse(records)[1], "weight": weight}

        examples = self._stream(split, plan, tf.constant(0, tf.int64), context, parse_one, fill=True)
        return self._batch(examples, context, _VALIDATION_AHEAD)

    def _stream(
        self,
        split: "_Split",
        plan: Callable[[int], Plan],
        epoch: tf.Tensor,
        context: tf.distribute.InputContext,
        parse_one: Callable[..., Batch],
        fill: bool = False,
    ) -> tf.data.Dataset:
        """The examples of a plan, in the order of batches.

        Each of some readers follows every so-manieth lane, and makes of a record what it is while its bytes are at
        hand; they take turns, so that the order is the same for any number of them.

        Args:
            split: what to read.
            plan: of an epoch.
            epoch: int64.
            context: of this host.
            parse_one: makes of (epoch, records, weight) an example.
            fill: make up for what is missing in the plan, with a weight of 0.
        """

        def arrays(epoch: np.ndarray) -> tuple[np.ndarray, ...]:
            return dataclasses.astuple(plan(int(epoch)))

        stretches, splits, missing = tf.numpy_function(arrays, [epoch], [tf.int64] * 3)
        stretches.set_shape((None, 3))

        def read(lane: tf.Tensor) -> tf.data.Dataset:
            own = tf.data.Dataset.from_tensor_slices(stretches[splits[lane] : splits[lane + 1]])
            records = own.flat_map(split.read).map(lambda *records: (epoch, records, 1.0))
            if not fill:
                return records
            first = tf.data.Dataset.from_tensors(tf.constant([0, 0, 1], tf.int64))
            filler = first.repeat().take(missing[lane]).flat_map(split.read)
            return records.concatenate(filler.map(lambda *records: (epoch, records, 0.0)))

        def reader(first: tf.Tensor) -> tf.data.Dataset:
            own = tf.data.Dataset.range(first, lanes, readers)
            return own.interleave(read, cycle_length=lanes // readers).map(parse_one)

        lanes, readers = self._lanes(context), self._readers(context)
        return tf.data.Dataset.range(readers).interleave(
            reader, cycle_length=readers, num_parallel_calls=readers, deterministic=self._deterministic
        )

    def _lanes(self, context: tf.distribute.InputContext) -> int:
        return order.host_lanes(self._batch_size, context.num_input_pipelines)

    def _readers(self, context: tf.distribute.InputContext) -> int:
        """As many as there are cores; of remote files, which answer late, as many as there are lanes."""
        lanes = self._lanes(context)
        if self._dataset.is_remote:
            return lanes
        return max(number for number in range(1, min(lanes, os.cpu_count() or 1) + 1) if lanes % number == 0)

    def _parse(self, records: _Records) -> tuple[tf.Tensor, Batch]:
        """Records of one example to its key and its tensors."""
        batch = parse(records[0], self._layout)
        key = batch.pop("key")
        if not self._features:
            return key, batch
        assert self._dataset.manifest.features is not None
        own, features = parse_features(records[1], self._dataset.manifest.features.classes)
        with tf.control_dependencies([tf.debugging.assert_equal(key, own)]):
            return key, {**batch, "features": tf.identity(features)}

    @property
    def _layout(self) -> example.Layout:
        """The layout, less what features stand for."""
        layout = example.layout(self._dataset.manifest.layout)
        storage = {name: each for name, each in layout.storage.items() if name != "l_299" or not self._features}
        return dataclasses.replace(layout, storage=storage)

    def _batch(self, examples: tf.data.Dataset, context: tf.distribute.InputContext, ahead: int) -> tf.data.Dataset:
        """Batches for a replica each; a host's batches to read ahead are so many of them for each of its replicas."""
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        batches = examples.batch(self._batch_size // context.num_replicas_in_sync, drop_remainder=True)
        return batches.prefetch(ahead * replicas).with_options(_options())

    def _ahead(self, context: tf.distribute.InputContext) -> int:
        """How many of a host's batches to read ahead in training: what the budget allows.

        Raises:
            UserError: it does not hold the least that is needed.
        """
        hosts = context.num_input_pipelines
        batch = self._batch_size // hosts * self._example_bytes
        train, validation = (self._reading_bytes(split, context) for split in (TRAIN, VALIDATION))
        fixed = _RUNTIME_BYTES + train + validation + (_BATCHES_ELSEWHERE + self._held + _VALIDATION_AHEAD) * batch
        ahead = (self._memory_bytes - fixed) // batch
        if ahead < 1:
            raise UserError(
                f"input_memory_mib is {self._memory_bytes >> 20}; batches of {self._batch_size} from "
                f"{self._dataset.directory} need {-(-(fixed + batch) >> 20)} MiB on each of {hosts} hosts"
            )
        return ahead

    def _reading_bytes(self, name: str, context: tf.distribute.InputContext) -> int:
        """What the readers of a split hold."""
        split = _Split.of(self._dataset, name, self._features)
        buffers = self._lanes(context) * len(split.paths) * split.buffer_bytes
        return buffers + self._readers(context) * (_READER_EXAMPLES * self._example_bytes + split.record_bytes)

    @property
    def _example_bytes(self) -> int:
        """Of an example as it is stored, parsed."""
        features = self._dataset.manifest.features
        pictures = sum(storage.nbytes for storage in self._layout.storage.values())
        return pictures + (4 * VIEWS * features.classes if self._features and features else 0)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.autotune.enabled = False  # it would hold as much as it likes
    # TensorFlow 2.21 crashes in it where a `skip` or `take` within a function has a computed count.
    options.experimental_optimization.noop_elimination = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


@dataclasses.dataclass(frozen=True)
class _Split:
    """The files of a split, as a reader of segments needs them.

    Attributes:
        segments: of its shards.
        paths: for the shards and, with features, for the sidecars: the file of each.
        starts: for the same: the byte at which each segment begins.
        record_bytes: of an average example, with its features.
        buffer_bytes: of an open file's read buffer.
    """

    segments: Segments
    paths: list[list[str]]
    starts: list[list[int]]
    record_bytes: int
    buffer_bytes: int

    @classmethod
    def of(cls, dataset: Dataset, name: str, features: bool) -> "_Split":
        """Gathers them from the manifest of a dataset."""
        found = dataset.manifest
        columns: list[Sequence[ShardInfo]] = [found.splits[name].shards]
        if features:
            assert found.features is not None
            columns.append(found.features.shards[name])
        return cls(
            Segments.of(columns[0]),
            [[dataset.path(info) for info in column] for column in columns],
            [[start for info in column for start in info.segments] for column in columns],
            sum(info.bytes for column in columns for info in column) // max(1, found.splits[name].examples),
            _REMOTE_READ_BYTES if dataset.is_remote else 0,
        )

    def read(self, stretch: tf.Tensor) -> tf.data.Dataset:
        """The records of a stretch: int64 [3], segment, records to skip and to take."""
        segment, skip, take = tf.unstack(stretch)
        shard = tf.gather(self.segments.shard, segment)
        streams = []
        for paths, starts in zip(self.paths, self.starts, strict=True):
            variant = tf.raw_ops.TFRecordDatasetV2(
                filenames=tf.gather(paths, shard)[None],
                compression_type="",
                buffer_size=self.buffer_bytes,
                byte_offsets=tf.gather(tf.constant(starts, tf.int64), segment)[None],
            )
            streams.append(tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string)))
        return tf.data.Dataset.zip(tuple(streams)).skip(skip).take(take)
