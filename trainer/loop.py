"""The training loop: the same for one device and for many."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator

import keras
import tensorflow as tf
from ml_collections import ConfigDict
from tqdm import tqdm

from pipeline import reader
from pipeline.errors import UserError, one_line
from pipeline.reader import Batch, Dataset
from pipeline.shards import TRAIN, VALIDATION
from trainer import models, schedule, workdir
from trainer.checkpoints import Checkpoints
from trainer.models.base import ColorModel
from trainer.summaries import Summaries, side_by_side

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass
class TrainState:
    """A run as it stands: steps done, model, optimizer, and the validation loss of each epoch of this process."""

    step: int
    model: ColorModel
    optimizer: keras.Optimizer
    validation_losses: list[float]


def train_and_evaluate(
    config: ConfigDict, strategy: tf.distribute.Strategy, data_dir: str, work_dir: str
) -> TrainState:
    """Trains the configured model to the end of its schedule, going on from the last checkpoint if there is one.

    Args:
        config: as `configs/koalarization.py`.
        strategy: from `replicas.create_strategy`.
        data_dir: a dataset.
        work_dir: where checkpoints, configuration and TensorBoard events go.

    Returns:
        The final state.

    Raises:
        UserError: a configuration, dataset or directory that cannot be used, or a loss that is not finite.
    """
    _check(config)
    dataset = reader.open_dataset(data_dir)
    epochs = schedule.epochs(config.learning_rates, config.epochs_per_learning_rate)
    steps_per_epoch = reader.steps_per_epoch(dataset, config.batch_size)
    checkpoints = Checkpoints(work_dir)
    if checkpoints.steps():
        workdir.check(work_dir, config, dataset.manifest)
    rate = schedule.piecewise_constant(config.learning_rates, config.epochs_per_learning_rate, steps_per_epoch)
    state = _create_state(config, strategy, rate)
    workdir.save(work_dir, config, dataset.manifest)
    if step := checkpoints.restore(state.model.network, state.optimizer):
        state.step = step
        _LOGGER.info("goes on from step %d, epoch %d of %d", state.step, state.step // steps_per_epoch, epochs)
    _describe(config, dataset, state, epochs, steps_per_epoch)

    run = _Run(config, dataset, strategy, state, rate, Summaries(work_dir))
    first_epoch = state.step // steps_per_epoch
    batches = iter(run.train_batches(first_epoch, epochs))
    try:
        for epoch in range(first_epoch, epochs):
            run.train_epoch(batches, steps_per_epoch, f"epoch {epoch + 1}/{epochs}")
            run.validate()
            run.show_panel()
            checkpoints.save(state.step, state.model.network, state.optimizer, config.kept_checkpoints)
    except (
        tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.InvalidArgumentError, StopIteration
    ) as error:  # fmt: skip
        dataset.check_sizes()
        dataset.check_contents()
        if isinstance(error, tf.errors.InvalidArgumentError):  # the dataset is whole: it is not to blame
            raise
        raise UserError(f"dataset {data_dir} cannot be read: {one_line(error)}; make it again") from error
    _LOGGER.info("finished at step %d, epoch %d; %s", state.step, epochs, work_dir)
    return state


def _check(config: ConfigDict) -> None:
    for field, least in (("steps_per_log", 1), ("kept_checkpoints", 1), ("panel_pictures", 0)):
        if config[field] < least:
            raise UserError(f"{field} is {config[field]}; choose a whole number from {least}")


def _create_state(
    config: ConfigDict, strategy: tf.distribute.Strategy, rate: keras.optimizers.schedules.LearningRateSchedule
) -> TrainState:
    with strategy.scope():
        model = models.create(config.model, config.seed)
        optimizer = keras.optimizers.Adam(rate)
        optimizer.build(model.network.trainable_variables)
    return TrainState(0, model, optimizer, [])


def _describe(config: ConfigDict, dataset: Dataset, state: TrainState, epochs: int, steps_per_epoch: int) -> None:
    splits = dataset.manifest.splits
    _LOGGER.info(
        "%s: %d trainable parameters; %d examples to train on, %d to validate on; %d epochs of %d steps",
        config.model.name, state.model.network.count_params(), splits[TRAIN].examples, splits[VALIDATION].examples,
        epochs, steps_per_epoch,
    )  # fmt: skip


def _stored_features(model: ColorModel, dataset: Dataset) -> bool:
    """Whether the dataset's features stand for the pictures at 299.

    Raises:
        UserError: they are those of another extractor.
    """
    stored = dataset.manifest.features
    if stored is None or model.extractor_fingerprint is None:
        return False
    if stored.extractor != model.extractor_fingerprint:
        raise UserError(
            f"{dataset.directory} has features of extractor {stored.extractor}, the configuration names "
            f"{model.extractor_fingerprint}; set --config.model and --config.seed as they were for beam_jobs.embed, "
            "or run that again with --overwrite"
        )
    _LOGGER.info("features: as stored in %s, of extractor %s", dataset.directory, stored.extractor)
    return True


class _Run:
    """What the steps of a run share."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        rate: keras.optimizers.schedules.LearningRateSchedule,
        summaries: Summaries,
    ):
        self._config = config
        self._dataset = dataset
        self._strategy = strategy
        self._state = state
        self._rate = rate
        self._summaries = summaries
        self._features = _stored_features(state.model, dataset)
        self._has_validation = dataset.manifest.splits[VALIDATION].examples > 0
        if not self._has_validation:
            _LOGGER.warning("no validation split: no validation loss, and the panel shows pictures that are trained on")
        summaries.config(workdir.to_json(config), state.step)

    def train_batches(self, first_epoch: int, epochs: int) -> tf.distribute.DistributedDataset:
        config = self._config
        batches = reader.train_batches(
            self._dataset, config.batch_size, config.seed, first_epoch, epochs, config.horizontal_flip, self._features
        )
        return self._strategy.experimental_distribute_dataset(batches)

    def train_epoch(self, batches: Iterator[Batch], steps: int, title: str) -> None:
        """Trains for one epoch. Losses stay on the device for some steps: reading one waits for its step to end."""
        state, losses, epoch_losses = self._state, [], []
        epoch_start = start = time.monotonic()
        with tqdm(total=steps, desc=title, unit="step", disable=None) as bar:
            for step in range(1, steps + 1):
                losses.append(self._train_step(next(batches)))
                state.step += 1
                if step % self._config.steps_per_log == 0 or step == steps:
                    values = self._record(losses)
                    rate = self._images_per_second(len(losses), start)
                    self._summaries.throughput(state.step, rate)
                    bar.set_postfix_str(f"loss {values[-1]:.5f}, {rate:.1f} images/s", refresh=False)
                    bar.update(len(losses))
                    epoch_losses += values
                    losses, start = [], time.monotonic()
        rate = self._images_per_second(steps, epoch_start)
        _LOGGER.info("%s: step %d, mean loss %.5f, %.1f images/s", title, state.step, sum(epoch_losses) / steps, rate)

    def _images_per_second(self, steps: int, start: float) -> float:
        return steps * self._config.batch_size / (time.monotonic() - start)

    def _record(self, losses: list[tf.Tensor]) -> list[float]:
        """Fetches the losses of the last steps and writes them."""
        values = [float(loss) for loss in losses]
        first = self._state.step - len(values) + 1
        for step, value in enumerate(values, first):
            if not math.isfinite(value):
                raise UserError(f"the loss of step {step} is {value}; lower --config.learning_rates")
            self._summaries.training(step, value, float(self._rate(step - 1)))
        return values

    @tf.function
    def _train_step(self, batch: Batch) -> tf.Tensor:
        """One step on a global batch; its loss before the step, scalar."""
        model, optimizer = self._state.model, self._state.optimizer

        def replica_step(batch: Batch) -> tf.Tensor:
            with tf.GradientTape() as tape:
                losses = model.loss(model.outputs(batch, training=True), batch)  # (B / replicas,)
                # Divided by the global batch: the sum over replicas is the mean over its examples.
                loss = tf.reduce_sum(losses) / self._config.batch_size
            variables = model.network.trainable_variables
            # The optimizer sums gradients over replicas.
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        return self._strategy.reduce("SUM", self._strategy.run(replica_step, args=(batch,)), axis=None)

    def validate(self) -> None:
        """The mean loss over the validation split, if there is one."""
        if not self._has_validation:
            return
        batches = reader.validation_batches(self._dataset, self._config.batch_size, self._features)
        total = count = 0.0
        for batch in self._strategy.experimental_distribute_dataset(batches):
            batch_total, batch_count = self._validation_step(batch)
            total, count = total + float(batch_total), count + float(batch_count)
        loss = total / count
        self._state.validation_losses.append(loss)
        self._summaries.validation(self._state.step, loss)
        _LOGGER.info("validation loss %.5f over %d examples", loss, count)

    @tf.function
    def _validation_step(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The sum of losses over the examples of a global batch, and how many they are."""
        model = self._state.model

        def replica_step(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
            losses = model.loss(model.outputs(batch, training=False), batch)
            return tf.reduce_sum(losses * batch["weight"]), tf.reduce_sum(batch["weight"])

        total, count = self._strategy.run(replica_step, args=(batch,))
        reduce = self._strategy.reduce
        return reduce("SUM", total, axis=None), reduce("SUM", count, axis=None)

    def show_panel(self) -> None:
        """Draws the first examples of the validation split (of the train split, where that is empty)."""
        pictures = self._config.panel_pictures
        if pictures > 0:
            split = VALIDATION if self._has_validation else TRAIN
            batch = next(iter(reader.examples(self._dataset, split).take(pictures).batch(pictures)))
            self._summaries.panel(self._state.step, self._draw(batch["l_224"], batch["l_299"], batch["ab_224"]))
        self._summaries.flush()

    @tf.function
    def _draw(self, l_224: tf.Tensor, l_299: tf.Tensor, ab_224: tf.Tensor) -> tf.Tensor:
        model = self._state.model
        predicted = model.ab(model.outputs({"l_224": l_224, "l_299": l_299}, training=False))
        return side_by_side(l_224, predicted, ab_224)
