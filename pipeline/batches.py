"""Streams the batches of a dataset with tf.data, each host its share, in an order that `pipeline.order` decides.

Records are read, verified and put into batches by `pipeline.stream`, in NumPy: TensorFlow's own reader of records
copies them four times and computes checksums without the processor's help, at twice to three times the cost. How much
the whole may hold is a budget in bytes: what the readers leave of it, batches that are read ahead fill.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from pipeline import example, features, files, manifest, order
from pipeline.errors import UserError
from pipeline.features import VIEWS
from pipeline.lanes import Column, Decode, Split
from pipeline.manifest import ShardInfo
from pipeline.order import Plan, Segments
from pipeline.reader import Dataset
from pipeline.shards import TRAIN, VALIDATION
from pipeline.source import Source
from pipeline.stream import Field, Row, Stream

_RUNTIME_BYTES = 64 << 20  # threads, functions, and what the allocator cannot use
# tf.data prefetches one and hands one on, the devices' iterator another; one is not yet let go.
_BATCHES_ELSEWHERE = 4
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
        self._failures: list[UserError] = []
        self._sources: list[Source] = []

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
        split = self._split(TRAIN)
        fields = self._fields | ({"flip": Field((), "bool")} if flip else {})

        def plan(epoch: int) -> Plan:
            return self._train_plan(split, seed, epoch, first_step if epoch == epochs.start else 0, context)

        def row(key: str, values: Row, weight: float, epoch: int) -> Row:
            return {**values, "flip": _is_mirrored(key, seed, epoch)} if flip else values

        steps = len(epochs) * self.steps_per_epoch - first_step
        return self._stream(split, plan, epochs, steps, fields, row, context, self._ahead(context))

    def _train_plan(
        self, split: Split, seed: int, epoch: int, first_step: int, context: tf.distribute.InputContext
    ) -> Plan:
        return self._plan(split, order.shuffled(split.segments, seed, epoch), self.steps_per_epoch, first_step, context)

    def _plan(
        self,
        split: Split,
        sequence: np.ndarray,
        steps: int,
        first_step: int,
        context: tf.distribute.InputContext,
    ) -> Plan:
        return order.plan(
            split.segments,
            sequence,
            steps=steps,
            batch_size=self._batch_size,
            first_step=first_step,
            host=context.input_pipeline_id,
            hosts=context.num_input_pipelines,
        )

    def keys(self, seed: int, epoch: int, step: int) -> list[str]:
        """The keys of a batch of the train split, over all hosts: what `train` reads for a step of an epoch.

        Raises:
            UserError: a shard cannot be read.
        """
        split = self._split(TRAIN)
        plan = self._train_plan(split, seed, epoch, step, ONE_HOST)
        found = split.follow(plan, range(self._lanes(ONE_HOST)))
        return [key for key, _, _ in itertools.islice(found, self._batch_size)]

    def validation(self, context: tf.distribute.InputContext = ONE_HOST) -> tf.data.Dataset:
        """Every example of the validation split exactly once, in the same order each time.

        Batches are filled up by repeating an example with a weight of 0, so that replicas can share the last.

        Args:
            context: as for `train`.

        Returns:
            Batches as those of `train`, and `weight` [B], float32: 1 for an example, 0 for filling.
        """
        split = self._split(VALIDATION)
        fields = self._fields | {"weight": Field((), "float32")}
        steps = -(-self._dataset.manifest.splits[VALIDATION].examples // self._batch_size)

        def plan(_: int) -> Plan:
            return self._plan(split, np.arange(len(split.segments.examples)), steps, 0, context)

        def row(key: str, values: Row, weight: float, epoch: int) -> Row:
            return {**values, "weight": weight}

        return self._stream(split, plan, range(1), steps, fields, row, context, _VALIDATION_AHEAD)

    @contextlib.contextmanager
    def naming_failures(self) -> Iterator[None]:
        """Raises, in place of what tf.data makes of it, the error of a reader that ends the block.

        Raises:
            UserError: a file of the dataset cannot be read.
        """
        try:
            yield
        except Exception as error:
            if self._failures and isinstance(error, (tf.errors.OpError, StopIteration)):
                raise self._failures[0] from self._failures[0].__cause__
            raise

    def close(self) -> None:
        """Ends what reads for streams that are not at their end."""
        for source in self._sources:
            source.close()

    def _stream(
        self,
        split: Split,
        plan: Callable[[int], Plan],
        epochs: range,
        steps: int,
        fields: dict[str, Field],
        row: Callable[[str, Row, float, int], Row],
        context: tf.distribute.InputContext,
        ahead: int,
    ) -> tf.data.Dataset:
        """The batches of some epochs, a replica's part at a time.

        Each of some readers follows every so-manieth lane; they take turns, so that the order is the same for any
        number of them.

        Args:
            split: what to read.
            plan: of an epoch.
            epochs: which.
            steps: of all of them.
            fields: of a row.
            row: makes of (key, values, weight, epoch) a row.
            context: of this host.
            ahead: how many of the host's parts of a batch to fill ahead.
        """
        lanes, readers = self._lanes(context), self._readers(context)
        parts = context.num_replicas_in_sync // context.num_input_pipelines
        size = self._batch_size // context.num_replicas_in_sync
        cached = functools.lru_cache(maxsize=2)(plan)  # some readers are an epoch ahead of others

        def reader(number: int) -> Iterator[Row]:
            for epoch in epochs:
                for key, values, weight in split.follow(cached(epoch), range(number, lanes, readers)):
                    yield row(key, values, weight, epoch)

        def open_stream() -> Stream:
            return Stream(
                [reader(number) for number in range(readers)], fields, size, ahead * parts, self._deterministic
            )

        source = Source(open_stream, steps * parts, self._failures)
        self._sources.append(source)

        def take(number: tf.Tensor) -> dict[str, tf.Tensor]:
            dtypes = [tf.as_dtype(field.dtype) for field in fields.values()]
            values = tf.numpy_function(source.take, [number], dtypes)
            for value, field in zip(values, fields.values(), strict=True):
                value.set_shape((size, *field.shape))
            return dict(zip(fields, values, strict=True))

        # Filled ahead they are already; with deterministic operations tf.data does not prefetch behind a function.
        return tf.data.Dataset.range(steps * parts).map(take).prefetch(parts).with_options(_options())

    def _lanes(self, context: tf.distribute.InputContext) -> int:
        return order.host_lanes(self._batch_size, context.num_input_pipelines)

    def _readers(self, context: tf.distribute.InputContext) -> int:
        """As many as there are cores; of remote files, which answer late, as many as there are lanes."""
        lanes = self._lanes(context)
        if self._dataset.is_remote:
            return lanes
        return max(number for number in range(1, min(lanes, os.cpu_count() or 1) + 1) if lanes % number == 0)

    @property
    def _layout(self) -> example.Layout:
        """The layout, less what features stand for."""
        layout = example.layout(self._dataset.manifest.layout)
        storage = {name: each for name, each in layout.storage.items() if name != "l_299" or not self._features}
        return dataclasses.replace(layout, storage=storage)

    @property
    def _fields(self) -> dict[str, Field]:
        """What a row has of an example."""
        fields = {name: Field(storage.shape, storage.bits) for name, storage in self._layout.storage.items()}
        info = self._dataset.manifest.features
        return fields | ({"features": Field((VIEWS, info.classes), "float32")} if self._features and info else {})

    def _infos(self, name: str) -> list[Sequence[ShardInfo]]:
        """The shards of a split and, with features, their sidecars."""
        found = self._dataset.manifest
        sidecars = [found.features.shards[name]] if self._features and found.features is not None else []
        return [found.splits[name].shards, *sidecars]

    def _split(self, name: str) -> Split:
        """The files of a split, and what their records become."""
        shards, *sidecars = self._infos(name)
        layout = self._layout
        columns = [self._column(shards, manifest.MEND_SHARD, lambda record: example.stored(record, layout))]
        columns += [self._column(infos, manifest.MEND_SIDECAR, self._decode_features) for infos in sidecars]
        return Split(Segments.of(shards), columns)

    def _decode_features(self, record: memoryview) -> tuple[str, Row]:
        assert self._dataset.manifest.features is not None
        key, values = features.decode(record, self._dataset.manifest.features.classes)
        return key, {"features": values}

    def _column(self, infos: Sequence[ShardInfo], advice: str, decode: Decode) -> Column:
        starts = [start for info in infos for start in info.segments]
        return Column([self._dataset.path(info) for info in infos], starts, advice, decode)

    def _ahead(self, context: tf.distribute.InputContext) -> int:
        """How many of a host's batches to fill ahead in training: what the budget allows.

        Raises:
            UserError: it does not hold the least that is needed.
        """
        hosts = context.num_input_pipelines
        batch = self._batch_size // hosts * self._example_bytes
        reading = sum(self._reading_bytes(split, context) for split in (TRAIN, VALIDATION))
        fixed = _RUNTIME_BYTES + reading + (2 * _BATCHES_ELSEWHERE + self._held + _VALIDATION_AHEAD) * batch
        ahead = (self._memory_bytes - fixed) // batch
        if ahead < 1:
            raise UserError(
                f"input_memory_mib is {self._memory_bytes >> 20}; batches of {self._batch_size} from "
                f"{self._dataset.directory} need {-(-(fixed + batch) >> 20)} MiB on each of {hosts} hosts"
            )
        return ahead

    def _reading_bytes(self, name: str, context: tf.distribute.InputContext) -> int:
        """What the readers of a split hold: an open file for each lane, and a record for each of themselves."""
        columns, examples = self._infos(name), self._dataset.manifest.splits[name].examples
        record = sum(info.bytes for column in columns for info in column) // max(1, examples)
        buffer = files.REMOTE_BUFFER_BYTES if self._dataset.is_remote else files.LOCAL_BUFFER_BYTES
        return self._lanes(context) * len(columns) * buffer + self._readers(context) * record

    @property
    def _example_bytes(self) -> int:
        """Of an example as it is stored, in a batch."""
        return sum(field.nbytes for field in self._fields.values())


def _is_mirrored(key: str, seed: int, epoch: int) -> bool:
    """One of two, by chance."""
    return hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=1).digest()[0] % 2 == 1


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.autotune.enabled = False  # it would hold as much as it likes
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
