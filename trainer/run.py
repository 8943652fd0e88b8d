"""The training loop: the same for one device, for many, and for many machines."""

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tqdm import tqdm

from pipeline import example, reader, tensors
from pipeline.batches import Batches
from pipeline.errors import UserError
from pipeline.reader import Batch, Dataset
from pipeline.shards import TRAIN, VALIDATION
from pipeline.stopping import Stop, StopRequest
from trainer import replicas, workdir
from trainer.checkpoints import Checkpoints
from trainer.models.base import ColorModel
from trainer.optimizer import FLOAT16
from trainer.profiler import Profiler
from trainer.steps import Measures, Steps, Sums
from trainer.summaries import Summaries, Validation

_LOGGER = logging.getLogger(__name__)
_MOST_LEFT_OUT = 30  # steps in a row, in which the loss's scale falls from its largest to nothing


@dataclasses.dataclass
class TrainState:
    """A run as it stands: steps done, model, optimizer, and the validation loss of each epoch of this process."""

    step: int
    model: ColorModel
    optimizer: keras.Optimizer
    validation_losses: list[float]


class _Window:
    """Some steps that are recorded together, and the time that they took.

    Args:
        start: when it begins, by `time.monotonic`; where the one before ended, so that recording it counts too.
    """

    def __init__(self, start: float) -> None:
        self.steps = 0
        self.measures: list[Measures] = []
        self.waited = self.seconds = 0.0
        self.ended: Measures | None = None  # of the last steps that are known to have ended
        self._start = start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def add(self, measures: Measures, count: int) -> None:
        """Adds some steps, once those before them have ended: a run that is to stop has no queue to wait for."""
        if self.measures:
            self.ended = self.measures[-1]
            self.ended.loss.numpy()
        self.measures.append(measures)
        self.steps += count

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """The block does not count."""
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    def end(self) -> float:
        """All steps have ended; when."""
        now = time.monotonic()
        self.seconds, self.ended = now - self._start, self.measures[-1]
        return now


def _passes(before: int, after: int, every: int) -> bool:
    """Whether a multiple of a number lies between two others, or is the second."""
    return after // every > before // every


class Run:
    """What the epochs of a run share."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        features: bool,
        checkpoints: Checkpoints,
        summaries: Summaries,
        stop: StopRequest,
    ):
        self._config = config
        self._dataset = dataset
        self._strategy = strategy
        self._state = state
        self._saved = state.step
        self._left_out = 0  # steps in a row whose gradients were not finite
        self._hosts = replicas.hosts(strategy)
        self._is_chief = replicas.is_chief(strategy)
        self._checkpoints = checkpoints
        self._summaries = summaries
        self._stop = stop
        self._features = features
        memory = config.input_memory_mib << 20
        self._batches = Batches(
            dataset, config.batch_size, features, memory, config.deterministic, config.steps_per_call
        )
        layout = example.layout(dataset.manifest.layout)
        self._steps = Steps(strategy, state.model, state.optimizer, layout, config)
        self._steps_per_epoch = self._batches.steps_per_epoch
        self._validation = strategy.distribute_datasets_from_function(self._batches.validation)
        self._has_validation = dataset.manifest.splits[VALIDATION].examples > 0
        if not self._has_validation:
            _LOGGER.warning("no validation split: no validation loss, and the panel shows pictures that are trained on")
        summaries.config(config, workdir.to_json(config))
        steps = config.profile_steps if self._is_chief else (0, 0)
        self._profiler = Profiler(summaries.folder, steps)

    def train(self, epochs: int) -> None:
        """Trains from the step where the state is to the end of the last epoch.

        Raises:
            Stop: somebody asked for it; the state is that after a whole step.
            UserError: the dataset cannot be read, or a loss is not finite.
        """
        with contextlib.closing(self._profiler), contextlib.closing(self._batches), self._batches.naming_failures():
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
        """Whether the chief has recorded it."""
        if not self._has_validation:
            return True
        recorded = self._is_chief and self._checkpoints.validation_loss(self._state.step) is not None
        return bool(replicas.from_chief(self._strategy, recorded))

    def _distribute_train(self, epochs: range, first_step: int) -> tf.distribute.DistributedDataset:
        config = self._config
        return self._strategy.distribute_datasets_from_function(
            lambda context: self._batches.train(config.seed, epochs, first_step, config.horizontal_flip, context)
        )

    def _train_epoch(self, batches: Iterator[Batch], title: str) -> None:
        """Trains to the end of an epoch. Measures stay on the device for a while: reading one waits for its step."""
        state, config, end = self._state, self._config, self._steps_per_epoch
        start, losses = time.monotonic(), []
        done, window = state.step % end, _Window(start)
        with tqdm(total=end, initial=done, desc=title, unit="step", disable=None) as bar:
            while done < end:
                count = min(config.steps_per_call, end - done)
                self._profiler.before(state.step + 1, state.step + count)
                with window.waiting():
                    call = [next(batches) for _ in range(count)]
                measures = self._steps.train(call, self._asked())
                del call  # its memory is used again
                before, done, state.step = done, done + count, state.step + count
                window.add(measures, count)
                self._profiler.after(state.step, measures.loss)
                saves = _passes(state.step - count, state.step, config.steps_per_checkpoint)
                # Before the state is saved: one that is no longer finite must not be.
                if saves or done == end or _passes(before, done, config.steps_per_log) or self._stops(window.ended):
                    values, ended = self._record(window)
                    bar.set_postfix_str(f"loss {values[-1]:.5f}, {self._rate(window):.1f} images/s", refresh=False)
                    bar.update(window.steps)
                    losses += values
                    if self._stops(window.ended):
                        raise Stop
                    window = _Window(ended)
                if saves:
                    with window.left_out():
                        self.save()
        rate = len(losses) * config.batch_size / (time.monotonic() - start)
        mean = sum(losses) / len(losses)
        _LOGGER.info("%s: step %d, mean loss %.5f, %.1f images/s", title, state.step, mean, rate)

    def _rate(self, window: "_Window") -> float:
        """Images per second."""
        return window.steps * self._config.batch_size / window.seconds

    def _record(self, window: "_Window") -> tuple[list[float], float]:
        """Fetches what is known of the last steps and writes it; their losses, and when they had ended."""
        measures = [Measures(*(part.numpy() for part in each)) for each in window.measures]
        ended = window.end()  # reading them has waited for the last step
        losses, norms, rates = (np.concatenate(each).tolist() for each in list(zip(*measures, strict=True))[:3])
        first = self._state.step - window.steps + 1
        for step, loss, norm, rate in zip(itertools.count(first), losses, norms, rates):
            self._check_finite(step, "loss", loss)
            self._left_out = 0 if math.isfinite(norm) else self._left_out + 1
            if self._left_out > (_MOST_LEFT_OUT if self._config.precision == FLOAT16 else 0):
                self._check_finite(step, "norm of the gradient", norm)
            self._summaries.training(step, loss, rate, norm)
        self._summaries.speed(self._state.step, self._rate(window), window.waited / window.seconds)
        return losses, ended

    def _check_finite(self, step: int, name: str, value: float) -> None:
        """Stops the run at a step that would spoil its weights.

        Raises:
            UserError: the value is not finite; with the pictures that may be to blame.
        """
        if not math.isfinite(value):
            keys = self._batches.keys(self._config.seed, *divmod(step - 1, self._steps_per_epoch))
            raise UserError(
                f"the {name} of step {step} is {value}; lower --config.learning_rates, or look at the pictures of its "
                f"batch: {', '.join(keys)}"
            )

    def _asked(self) -> tf.Tensor:
        """Whether this host was asked to stop, as a number for `Steps`."""
        return tf.constant(float(self._stop.is_made))

    def _stops(self, ended: Measures | Sums | None) -> bool:
        """Whether the run stops: one host knows at once; of many, all once a step that carried it has ended."""
        if self._hosts == 1:
            return self._stop.is_made
        return ended is not None and float(np.max(ended.stops)) > 0

    def _finish_epoch(self) -> None:
        """Saves the state, says what it is worth, and shows pictures."""
        self.save()
        loss = self._validate() if self._has_validation else None
        if not self._is_chief:
            return
        self._show_panel()
        self._summaries.flush()
        if loss is not None:
            self._checkpoints.record(self._state.step, loss)  # last: an epoch that has this is not looked at again

    def save(self) -> None:
        """Saves the state, unless it is saved already."""
        state = self._state
        if state.step != self._saved and self._is_chief:
            self._summaries.flush()  # a run that goes on from here does not write these events again
            self._checkpoints.save(state.step, state.model.network, state.optimizer, self._config.kept_checkpoints)
        self._saved = state.step

    def _validate(self) -> float:
        """Measures the model on the validation split; its mean loss.

        Raises:
            Stop: somebody asked for it.
        """
        totals = np.zeros(5)
        for batch in self._validation:
            sums = self._steps.validate(batch, self._asked())
            if self._stops(sums):
                raise Stop
            totals += [float(each) for each in sums[:5]]
        found = Validation(*(totals[:4] / totals[4]).tolist())
        if not math.isfinite(found.loss):
            raise UserError(
                f"the validation loss of step {self._state.step} is {found.loss}: its weights are of no use; delete "
                "its checkpoint, lower --config.learning_rates, and start again"
            )
        self._state.validation_losses.append(found.loss)
        self._summaries.validation(self._state.step, found)
        _LOGGER.info(
            "validation loss %.5f, PSNR %.2f dB, colorfulness %.1f of %.1f, over %d examples",
            found.loss, found.psnr, found.colorfulness, found.true_colorfulness, totals[4],
        )  # fmt: skip
        return found.loss

    def _show_panel(self) -> None:
        """Draws the first examples of the validation split (of the train split, where that is empty)."""
        pictures = self._config.panel_pictures
        if pictures > 0:
            split = VALIDATION if self._has_validation else TRAIN
            shown = list(itertools.islice(reader.examples(self._dataset, split), pictures))
            batch = {name: np.stack([each.tensors[name] for each in shown]) for name in tensors.SHAPES}
            if self._features:
                views = itertools.islice(reader.features(self._dataset, split), pictures)
                batch["features"] = np.stack([features[0] for features in views])
            self._summaries.panel(self._state.step, self._steps.draw(batch))
