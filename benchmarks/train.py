"""How fast the training loop steps, against a bare compiled step on one batch in memory.

    python -m benchmarks.train --repetitions=3

| way                    | what it does                                                                      |
|------------------------|-----------------------------------------------------------------------------------|
| extractor              | `trainer.loop` with the extractor                                                 |
| extractor, 2 replicas  | the same, on a CPU that is split in two                                           |
| features               | `trainer.loop` with stored features                                               |
| features, 2 replicas   | the same, on a CPU that is split in two                                           |

The network and the extractor are those of the paper, at full size; the weights are random. Every way runs in a process
of its own, in turn, as often as asked; medians over steps and then over runs are shown. A bare step is network,
extractor, gradients and Adam in one `tf.function`, on as many replicas. In a second run of the loop one goes before
each of its steps, and each is compared with the one before it: a machine's speed changes from minute to minute by more
than what is measured. The loop writes its events in every step, and waits for each to end, as the bare one does.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from ml_collections import ConfigDict

from beam_jobs import embed, preprocess
from benchmarks import harness
from configs import koalarization
from pipeline import cli

_BATCH = 4
_PICTURES = 96
_WARMING = 4
_OPTIONS = ("--config=configs/koalarization.py", "--config.model.feature_weights=none")
_WAYS = {  # stored features, replicas
    "extractor": (False, 1),
    "extractor, 2 replicas": (False, 2),
    "features": (True, 1),
    "features, 2 replicas": (True, 2),
}


def _store(pictures: list[bytes], work: Path) -> None:
    (work / "jpegs").mkdir()
    for number, data in enumerate(pictures[:: len(pictures) // _PICTURES][:_PICTURES]):
        (work / f"jpegs/{number:03d}.jpg").write_bytes(data)
    options = ["--config.dataset.train_shards=4", "--config.dataset.validation_fraction=0"]
    options += ["--config.dataset.filters.min_lightness=0", f"--source=images:{work}/jpegs", f"--output={work}/data"]
    preprocess.main(["preprocess", *_OPTIONS, *options])
    embed.main(["embed", *_OPTIONS, f"--data={work}/data"])


def _measure(way: str, work: Path) -> harness.Figures:
    from trainer import loop, replicas  # isort: skip  # before TensorFlow, whose noise it keeps back
    import tensorflow as tf

    features, count = _WAYS[way]
    config, data = _config(features), work / "data"
    if count > 1:
        replicas.split_cpu(count)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = replicas.create_strategy(_BATCH)
    with tempfile.TemporaryDirectory(dir=work) as workdir:
        loop.train_and_evaluate(config, strategy, str(data), workdir)
        rates, waiting = (_scalars(Path(workdir), tag)[_WARMING:] for tag in ("images_per_second", "waiting_for_data"))
    with tempfile.TemporaryDirectory(dir=work) as workdir, _alternating(_bare_step(config, data, strategy)) as ratios:
        loop.train_and_evaluate(config, strategy, str(data), workdir)
    return {
        "loop": _BATCH / statistics.median(rates),
        "ratio": statistics.median(ratios[_WARMING:]),
        "waiting": statistics.mean(waiting),
    }


def _config(features: bool) -> ConfigDict:
    config = koalarization.get_config()
    config.model.feature_weights = None
    config.batch_size = _BATCH
    config.learning_rates, config.epochs_per_learning_rate = (1e-3,), (1,)
    config.features = "stored" if features else "computed"
    config.steps_per_log = 1
    config.panel_pictures = 0
    return config


def _bare_step(config: ConfigDict, data: Path, strategy: Any) -> Callable[[], Any]:
    """A compiled step on the first batch, of which each replica has its part."""
    import keras
    import tensorflow as tf

    from pipeline import example, reader
    from pipeline.batches import Batches
    from trainer import models

    dataset = reader.open_dataset(str(data))
    features = config.features == "stored"
    with contextlib.closing(Batches(dataset, _BATCH, features)) as batches:
        stored = next(iter(batches.train(1, range(1))))
    layout = example.layout(dataset.manifest.layout)
    batch = tf.function(lambda: reader.unpack(stored, layout))()
    part = _BATCH // strategy.num_replicas_in_sync

    def own_part(context: Any) -> dict[str, tf.Tensor]:
        start = context.replica_id_in_sync_group * part
        return {name: values[start : start + part] for name, values in batch.items()}

    parts = strategy.experimental_distribute_values_from_function(own_part)
    with strategy.scope():
        model = models.create(config.model, config.seed, features)
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(model.network.trainable_variables)

    def replica_step(own: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.loss(model.outputs(own, training=True), own)) / _BATCH
        variables = model.network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    @tf.function
    def step() -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(replica_step, args=(parts,)), axis=None)

    return step


@contextlib.contextmanager
def _alternating(bare: Callable[[], Any]) -> Iterator[list[float]]:
    """Within the block a bare step goes before each of a loop's; yields how much longer each of these takes."""
    from trainer import run

    ratios: list[float] = []
    seconds = ended = 0.0

    class Alternating(run.Steps):
        """Counts as the loop's all from the end of one bare step to the beginning of the next."""

        def train(self, batches: Sequence[Any], stops: Any) -> Any:
            nonlocal seconds, ended
            start = time.monotonic()
            if ended:
                ratios.append((start - ended) / seconds)
            bare().numpy()
            ended = time.monotonic()
            seconds = ended - start
            return super().train(batches, stops)

    with mock.patch.object(run, "Steps", Alternating):
        yield ratios


def _scalars(workdir: Path, tag: str) -> list[float]:
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]


def _table(medians: dict[str, harness.Figures], work: Path) -> Iterator[str]:
    yield "| way | ms per step | of a bare step | of the extractor's | waiting for data |"
    yield "|---|---|---|---|---|"
    for way, figures in medians.items():
        yield (
            f"| {way} | {figures['loop'] * 1e3:.0f} | {figures['ratio']:.3f} | "
            f"{figures['loop'] / medians['extractor']['loop']:.2f} | {figures['waiting']:.2%} |"
        )


if __name__ == "__main__":
    benchmark = harness.Benchmark("benchmarks.train", __doc__, list(_WAYS), _store, _measure, _table)
    cli.launch(benchmark.main)
