"""Training from the start of a command to its end: what is checked, built, resumed, run and saved."""

import contextlib
import logging
import zlib

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from pipeline import reader
from pipeline.batches import Batches
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.reader import Dataset
from pipeline.shards import TRAIN, VALIDATION
from pipeline.stopping import Stop, stop_request
from trainer import models, optimizer, replicas, schedule, workdir
from trainer.checkpoints import Checkpoints
from trainer.run import Run, TrainState
from trainer.summaries import Summaries

_LOGGER = logging.getLogger(__name__)
_FEATURES = ("auto", "stored", "computed")
_LEAST = {
    "steps_per_log": 1, "steps_per_call": 1, "steps_per_checkpoint": 1, "kept_checkpoints": 1, "panel_pictures": 0,
    "accumulation_steps": 1, "clip_norm": 0, "input_memory_mib": 1,
}  # fmt: skip


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
    check(config, strategy.num_replicas_in_sync)
    dataset = reader.open_dataset(data_dir)
    epochs = schedule.epochs(config.learning_rates, config.epochs_per_learning_rate)
    steps_per_epoch = Batches(dataset, config.batch_size).steps_per_epoch
    checkpoints = Checkpoints(work_dir)
    if checkpoints.steps():
        workdir.check(work_dir, config, dataset.manifest)
    rate = schedule.piecewise_constant(config.learning_rates, config.epochs_per_learning_rate, steps_per_epoch)
    features = _stored_features(config, dataset)
    with replicas.naming_losses(strategy), contextlib.ExitStack() as stack:
        _check_workers(config, dataset, strategy)
        state = _create_state(config, strategy, rate, features)
        if replicas.is_chief(strategy):
            stack.enter_context(workdir.claim(work_dir))
            workdir.save(work_dir, config, dataset.manifest)
        _resume(checkpoints, strategy, state, work_dir)
        _describe(config, dataset, state, epochs, steps_per_epoch)
        with stop_request() as stop:
            summaries = Summaries(work_dir, replicas.is_chief(strategy))
            run = Run(config, dataset, strategy, state, features, checkpoints, summaries, stop)
            try:
                run.train(epochs)
            except Stop:
                run.save()
                _LOGGER.info("stopped at step %d, which is saved; the same command goes on from there", state.step)
                replicas.agree(strategy, state.step)  # all wait for the chief to have saved
                stop.obey()
            except Exception:
                with contextlib.suppress(UserError):  # the error that brought us here is the one to report
                    summaries.flush()
                raise
        replicas.agree(strategy, state.step)  # all wait for the chief to have written
    _LOGGER.info("finished at step %d, epoch %d; %s", state.step, epochs, work_dir)
    return state


def _check_workers(config: ConfigDict, dataset: Dataset, strategy: tf.distribute.Strategy) -> None:
    """Compares what the workers were started with: replicas of other rates would part, and other batches never meet.

    Raises:
        UserError: it differs.
    """
    text = workdir.to_json(config) + dataset.manifest.to_json()
    if not replicas.agree(strategy, zlib.crc32(text.encode())):
        raise UserError(
            "the workers of the cluster have other configurations or datasets than the chief; start the same command "
            "on all of them"
        )


def _resume(checkpoints: Checkpoints, strategy: tf.distribute.Strategy, state: TrainState, work_dir: str) -> None:
    """Brings the state to the newest checkpoint, if there is one.

    Raises:
        UserError: there is none that can be used, or other workers find another.
    """
    state.step = checkpoints.restore(state.model.network, state.optimizer) or 0
    if not replicas.agree(strategy, state.step):
        raise UserError(
            f"--workdir={work_dir} is at step {state.step} for this worker, and at another for others; name one "
            "directory that all workers share"
        )
    if state.step:
        _LOGGER.info("goes on from step %d", state.step)


def check(config: ConfigDict, count: int) -> None:
    """Looks at what a configuration says of training, before anything is done.

    Args:
        config: as `configs/koalarization.py`.
        count: of replicas.

    Raises:
        UserError: a value that cannot be.
    """
    models.find(config.model.name)
    schedule.epochs(config.learning_rates, config.epochs_per_learning_rate)
    for field, least in _LEAST.items():
        if not config[field] >= least:
            raise UserError(f"{field} is {config[field]}; choose a number from {least}")
    profiled = tuple(config.profile_steps)
    if len(profiled) != 2 or not 0 <= profiled[0] <= profiled[1]:
        raise UserError(f"profile_steps is {profiled}; give the first and the last step, or (0, 0) for none")
    for field, choices in (("precision", optimizer.PRECISIONS), ("features", _FEATURES)):
        if config[field] not in choices:
            raise UserError(f"{field} is '{config[field]}'; choose one of {', '.join(choices)}")
    if (config.batch_size // count) % config.accumulation_steps:
        raise UserError(
            f"accumulation_steps is {config.accumulation_steps}, into which a replica cannot divide its part of a "
            f"batch, {config.batch_size // count}; choose one of its divisors"
        )


def _create_state(
    config: ConfigDict,
    strategy: tf.distribute.Strategy,
    rate: keras.optimizers.schedules.LearningRateSchedule,
    features: bool,
) -> TrainState:
    with strategy.scope(), optimizer.precision(config.precision):
        model = models.create(config.model, config.seed, features)
        own = optimizer.create(rate, config.precision)
        own.build(model.network.trainable_variables)
    return TrainState(0, model, own, [])


def _describe(config: ConfigDict, dataset: Dataset, state: TrainState, epochs: int, steps_per_epoch: int) -> None:
    splits = dataset.manifest.splits
    _LOGGER.info(
        "%s: %d trainable parameters; %d examples to train on, %d to validate on; epoch %d of %d, of %d steps each",
        config.model.name, state.model.network.count_params(), splits[TRAIN].examples, splits[VALIDATION].examples,
        min(epochs, 1 + state.step // steps_per_epoch), epochs, steps_per_epoch,
    )  # fmt: skip


def check_features(config: ConfigDict, dataset: Manifest, directory: str) -> None:
    """Looks for stored features, where a configuration insists on them.

    Raises:
        UserError: there are none.
    """
    if models.find(config.model.name).takes_features and config.features == "stored" and dataset.features is None:
        raise UserError(f"features is 'stored', but {directory} has none; run beam_jobs.embed on it, or choose 'auto'")


def _stored_features(config: ConfigDict, dataset: Dataset) -> bool:
    """Whether the dataset's features stand for the pictures at 299.

    Raises:
        UserError: they are those of another extractor, or there are none where some are asked for.
    """
    check_features(config, dataset.manifest, dataset.directory)
    stored = dataset.manifest.features
    if not models.find(config.model.name).takes_features or config.features == "computed" or stored is None:
        return False
    # Built for this and let go again: what it would take of each device's memory, batches can have.
    extractor = models.create_extractor(config.model, config.seed)
    extractor.warn_if_random()
    fingerprint = extractor.fingerprint
    if stored.extractor != fingerprint:
        raise UserError(
            f"{dataset.directory} has features of extractor {stored.extractor}, the configuration names {fingerprint}; "
            "set --config.model and --config.seed as they were for beam_jobs.embed, run that again with --overwrite, "
            "or set --config.features=computed"
        )
    _LOGGER.info("features: as stored in %s, of extractor %s", dataset.directory, stored.extractor)
    return True
