"""The training loop: the same for one device and for many."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator

import keras
import tensorflow as tf
from ml_collections import ConfigDict
from tqdm import tqdm

from pipeline import example, reader
from pipeline.batches import Batches
from pipeline.errors import UserError, one_line
from pipeline.reader import Batch, Dataset
from pipeline.shards import TRAIN, VALIDATION
from trainer import models, replicas, schedule, workdir
from trainer.checkpoints import Checkpoints
from trainer.models.base import ColorModel
from trainer.steps import Steps
from trainer.stopping import Stop, StopRequest, stop_request
from trainer.summaries import Summaries

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
    steps_per_epoch = Batches(dataset, config.batch_size).steps_per_epoch
    checkpoints = Checkpoints(work_dir)
    if checkpoints.steps():
        workdir.check(work_dir, config, dataset.manifest)
    rate = schedule.piecewise_constant(config.learning_rates, config.epochs_per_learning_rate, steps_per_epoch)
    state = _create_state(config, strategy, rate)
    if replicas.is_chief(strategy):
        workdir.save(work_dir, config, dataset.manifest)
    state.step = checkpoints.restore(state.model.network, state.optimizer) or 0
    if not replicas.agree(strategy, state.step):
        raise UserError(
            f"--workdir={work_dir} is at step {state.step} for this worker, and at another for others; name one "
            "directory that all workers share"
        )
    if state.step:
        _LOGGER.info("goes on from step %d, epoch %d of %d", state.step, state.step // steps_per_epoch, epochs)
    _describe(config, dataset, state, epochs, steps_per_epoch)

    with stop_request() as stop:
        run = _Run(
            config, dataset, strategy, state, rate, checkpoints, Summaries(work_dir, replicas.is_chief(strategy)), stop
        )
        try:
            with replicas.naming_losses(strategy), _naming_damage(dataset):
                run.train(epochs)
        except Stop:
            run.save()
            _LOGGER.info("stopped at step %d, which is saved; the same command goes on from there", state.step)
            stop.obey()
    _LOGGER.info("finished at step %d, epoch %d; %s", state.step, epochs, work_dir)
    return state


@contextlib.contextmanager
def _naming_damage(dataset: Dataset) -> Iterator[None]:
    """Says of a failure to read within the block which file of the dataset is to blame.

    Raises:
        UserError: one is.
    """
    try:
        yield
    except (
        tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.InvalidArgumentError, StopIteration
    ) as error:  # fmt: skip
        dataset.check_sizes()
        dataset.check_contents()
        if isinstance(error, tf.errors.InvalidArgumentError):  # the dataset is whole: it is not to blame
            raise
        raise UserError(f"dataset {dataset.directory} cannot be read: {one_line(error)}; make it again") from error


def _check(config: ConfigDict) -> None:
    fields = {"steps_per_log": 1, "steps_per_checkpoint": 1, "kept_checkpoints": 1, "panel_pictures": 0}
    for field, least in fields.items():
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
    """What the epochs of a run share."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        rate: keras.optimizers.schedules.LearningRateSchedule,
        checkpoints: Checkpoints,
        summaries: Summaries,
        stop: StopRequest,
    ):
        self._config = config
        self._dataset = dataset
        self._strategy = strategy
        self._state = state
        self._saved = state.step
        self._hosts = replicas.hosts(strategy)
        self._is_chief = replicas.is_chief(strategy)
        self._rate = rate
        self._checkpoints = checkpoints
        self._summaries = summaries
        self._stop = stop
        self._features = _stored_features(state.model, dataset)
        self._batches = Batches(
            dataset, config.batch_size, self._features, config.input_memory_mib << 20, config.deterministic
        )
        layout = example.layout(dataset.manifest.layout)
        self._steps = Steps(strategy, state.model, state.optimizer, layout, config.batch_size)
        self._steps_per_epoch = self._batches.steps_per_epoch
        self._has_validation = dataset.manifest.splits[VALIDATION].examples > 0
        if not self._has_validation:
            _LOGGER.warning("no validation split: no validation loss, and the panel shows pictures that are trained on")
        summaries.config(workdir.to_json(config), state.step)

    def train(self, epochs: int) -> None:
        """Trains from the step where the state is to the end of the last epoch.

        Raises:
            Stop: somebody asked for it; the state is that after a whole step.
        """
        if self._state.step and self._at_end_of_epoch and not self._is_validated:
            self._finish_epoch()
        epoch, first_step = divmod(self._state.step, self._steps_per_epoch)
        batches = iter(self._distribute_train(range(epoch, epochs), first_step))
        while epoch < epochs:
            self._train_epoch(batches, f"epoch {epoch + 1}/{epochs}")
            self._finish_epoch()
            epoch += 1

    @property
    def _at_end_of_epoch(self) -> bool:
        return self._state.step % self._steps_per_epoch == 0

    @property
    def _is_validated(self) -> bool:
        return not self._has_validation or self._checkpoints.validation_loss(self._state.step) is not None

    def _distribute_train(self, epochs: range, first_step: int) -> tf.distribute.DistributedDataset:
        config = self._config
        return self._strategy.distribute_datasets_from_function(
            lambda context: self._batches.train(config.seed, epochs, first_step, config.horizontal_flip, context)
        )

    def _train_epoch(self, batches: Iterator[Batch], title: str) -> None:
        """Trains to the end of an epoch. Losses stay on the device for some steps: reading one waits for its step."""
        state, losses, epoch_losses = self._state, [], []
        done = state.step % self._steps_per_epoch
        epoch_start = start = time.monotonic()
        with tqdm(total=self._steps_per_epoch, initial=done, desc=title, unit="step", disable=None) as bar:
            for step in range(done + 1, self._steps_per_epoch + 1):
                loss, stopping = self._steps.train(next(batches), self._asked())
                losses.append(loss)
                state.step += 1
                stops = self._stops(stopping)
                if stops or step % self._config.steps_per_log == 0 or step == self._steps_per_epoch:
                    values = self._record(losses)
                    rate = self._images_per_second(len(losses), start)
                    self._summaries.throughput(state.step, rate)
                    bar.set_postfix_str(f"loss {values[-1]:.5f}, {rate:.1f} images/s", refresh=False)
                    bar.update(len(losses))
                    epoch_losses += values
                    losses, start = [], time.monotonic()
                if stops:
                    raise Stop
                if state.step % self._config.steps_per_checkpoint == 0:
                    self.save()
        count = len(epoch_losses)
        rate = self._images_per_second(count, epoch_start)
        _LOGGER.info("%s: step %d, mean loss %.5f, %.1f images/s", title, state.step, sum(epoch_losses) / count, rate)

    def _asked(self) -> tf.Tensor:
        """Whether this host was asked to stop, as a number for `Steps`."""
        return tf.constant(float(self._stop.is_made))

    def _stops(self, stopping: tf.Tensor) -> bool:
        """Whether the run stops after a step: one host knows at once; of many, all after the step that carried it."""
        return self._stop.is_made if self._hosts == 1 else float(stopping) > 0

    def _images_per_second(self, steps: int, start: float) -> float:
        return steps * self._config.batch_size / (time.monotonic() - start)

    def _record(self, losses: list[tf.Tensor]) -> list[float]:
        """Fetches the losses of the last steps and writes them."""
        values = [float(loss) for loss in losses]
        first = self._state.step - len(values) + 1
        for step, value in enumerate(values, first):
            if not math.isfinite(value):
                keys = self._batches.keys(self._config.seed, *divmod(step - 1, self._steps_per_epoch))
                raise UserError(
                    f"the loss of step {step} is {value}; lower --config.learning_rates, or look at the pictures of "
                    f"its batch: {', '.join(keys)}"
                )
            self._summaries.training(step, value, float(self._rate(step - 1)))
        return values

    def _finish_epoch(self) -> None:
        """Saves the state, says what it is worth, and shows pictures."""
        self.save()
        loss = self._validate() if self._has_validation else None
        if self._is_chief:
            if loss is not None:
                self._checkpoints.record(self._state.step, loss)
            self._show_panel()

    def save(self) -> None:
        """Saves the state, unless it is saved already."""
        state = self._state
        if state.step != self._saved and self._is_chief:
            self._summaries.flush()  # a run that goes on from here does not write these events again
            self._checkpoints.save(state.step, state.model.network, state.optimizer, self._config.kept_checkpoints)
        self._saved = state.step

    def _validate(self) -> float:
        """The mean loss over the validation split.

        Raises:
            Stop: somebody asked for it.
        """
        total = count = 0.0
        for batch in self._strategy.distribute_datasets_from_function(self._batches.validation):
            batch_total, batch_count, stopping = self._steps.validate(batch, self._asked())
            if self._stops(stopping):
                raise Stop
            total, count = total + float(batch_total), count + float(batch_count)
        loss = total / count
        self._state.validation_losses.append(loss)
        self._summaries.validation(self._state.step, loss)
        _LOGGER.info("validation loss %.5f over %d examples", loss, count)
        return loss

    def _show_panel(self) -> None:
        """Draws the first examples of the validation split (of the train split, where that is empty)."""
        pictures = self._config.panel_pictures
        if pictures > 0:
            split = VALIDATION if self._has_validation else TRAIN
            batch = next(iter(reader.examples(self._dataset, split).take(pictures).batch(pictures)))
            shown = {name: batch[name] for name in ("l_224", "l_299", "ab_224")}
            self._summaries.panel(self._state.step, self._steps.draw(shown))
        self._summaries.flush()
