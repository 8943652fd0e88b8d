"""How fast the training loop steps, against a bare compiled step on one batch in memory.

    python -m benchmarks.train --repetitions=3

| way                | what it does                                                                          |
|--------------------|---------------------------------------------------------------------------------------|
| bare               | network, extractor, gradients and Adam in one `tf.function`, on one batch in memory   |
| loop               | `trainer.loop` with the extractor                                                     |
| loop, 2 replicas   | the same, on a CPU that is split in two                                               |
| bare, features     | the bare step with stored features                                                    |
| loop, features     | `trainer.loop` with stored features                                                   |
| features, 2        | the same, on a CPU that is split in two                                               |

The network and the extractor are those of the paper, at full size; the weights are random. Every way runs in a process
of its own, in turn, as often as asked; medians over steps and then over runs are shown. The loop writes its events in
every step, and waits for each to end, as the bare one does.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from beam_jobs import embed, preprocess
from benchmarks.preprocess import jpegs
from configs import koalarization
from pipeline import cli, tfrecord

_LOGGER = logging.getLogger("benchmarks.train")
_BATCH = 4
_STEPS = 24  # an epoch: of the 96 pictures that are cut from photographs
_WARMING = 4
_OPTIONS = ("--config=configs/koalarization.py", "--config.model.feature_weights=none")
_WAYS = {  # bare or not, stored features, replicas
    "bare": (True, False, 1),
    "loop": (False, False, 1),
    "loop, 2 replicas": (False, False, 2),
    "bare, features": (True, True, 1),
    "loop, features": (False, True, 1),
    "features, 2": (False, True, 2),
}


def main(argv: Sequence[str]) -> None:
    """Runs all ways, or within a process of its own one of them."""
    values = flags.FlagValues()
    flags.DEFINE_integer("repetitions", 3, "How often each way runs.", flag_values=values)
    flags.DEFINE_enum("way", None, list(_WAYS), "Runs one way alone and prints its figures.", flag_values=values)
    flags.DEFINE_string("work", None, "The folder that a single way works in.", flag_values=values)
    cli.parse(values, argv, __doc__)
    if values.way:
        bare, features, replicas = _WAYS[values.way]
        config = _config(features)
        data = Path(values.work) / "data"
        print(json.dumps(_bare(config, data) if bare else _loop(config, data, replicas)))
    else:
        compare(values.repetitions)


def compare(repetitions: int) -> None:
    """Makes a dataset with features, trains on it in every way in turn, and prints a table."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _store(work)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
        for repetition in range(repetitions):
            for way in _WAYS:
                _LOGGER.info("repetition %d of %d: %s", repetition + 1, repetitions, way)
                command = [sys.executable, "-m", "benchmarks.train", f"--way={way}", f"--work={work}"]
                result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                runs[way].append(json.loads(result.stdout.splitlines()[-1]))
    _print_table(runs, repetitions)


def _store(work: Path) -> None:
    (work / "jpegs").mkdir()
    for number, data in enumerate(jpegs(None)):
        (work / f"jpegs/{number:03d}.jpg").write_bytes(data)
    options = ["--config.dataset.train_shards=4", "--config.dataset.validation_fraction=0"]
    options += ["--config.dataset.filters.min_lightness=0", f"--source=images:{work}/jpegs", f"--output={work}/data"]
    preprocess.main(["preprocess", *_OPTIONS, *options])
    embed.main(["embed", *_OPTIONS, f"--data={work}/data"])


def _config(features: bool) -> ConfigDict:
    config = koalarization.get_config()
    config.model.feature_weights = None
    config.batch_size = _BATCH
    config.learning_rates, config.epochs_per_learning_rate = (1e-3,), (1,)
    config.features = "stored" if features else "computed"
    config.steps_per_log = 1
    config.panel_pictures = 0
    return config


def _bare(config: ConfigDict, data: Path) -> dict[str, float]:
    from trainer import models  # isort: skip  # before TensorFlow, whose noise it keeps back
    import keras
    import tensorflow as tf

    from pipeline import example, reader
    from pipeline.batches import Batches

    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    dataset = reader.open_dataset(str(data))
    features = config.features == "stored"
    stored = next(iter(Batches(dataset, _BATCH, features).train(1, range(1))))
    batch = reader.unpack(stored, example.layout(dataset.manifest.layout))
    model = models.create(config.model, config.seed, features)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.network.trainable_variables)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.loss(model.outputs(batch, training=True), batch))
        variables = model.network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    seconds = []
    for _ in range(_STEPS):
        start = time.monotonic()
        step().numpy()
        seconds.append(time.monotonic() - start)
    return {"seconds": statistics.median(seconds[_WARMING:]), "waiting": 0.0}


def _loop(config: ConfigDict, data: Path, count: int) -> dict[str, float]:
    from trainer import loop, replicas  # isort: skip  # before TensorFlow, whose noise it keeps back
    import tensorflow as tf

    if count > 1:
        replicas.split_cpu(count)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    with tempfile.TemporaryDirectory(dir=data.parent) as workdir:
        loop.train_and_evaluate(config, replicas.create_strategy(_BATCH), str(data), workdir)
        rates, waiting = (_scalars(Path(workdir), tag)[_WARMING:] for tag in ("images_per_second", "waiting_for_data"))
    return {"seconds": _BATCH / statistics.median(rates), "waiting": statistics.mean(waiting)}


def _scalars(workdir: Path, tag: str) -> list[float]:
    import tensorflow as tf

    (path,) = (workdir / "tensorboard").glob("events*")
    with open(path, "rb") as file:
        found = [tf.compat.v1.Event.FromString(record) for record in tfrecord.read(file)]
    values = [value for event in found for value in event.summary.value if value.tag == tag]
    return [float(tf.make_ndarray(value.tensor)) for value in values]


def _print_table(runs: dict[str, list[dict[str, float]]], repetitions: int) -> None:
    median = {way: {name: statistics.median(run[name] for run in own) for name in own[0]} for way, own in runs.items()}
    print(
        f"batches of {_BATCH}; {os.cpu_count()} cores; medians of {repetitions}\n\n"
        "| way | ms per step | of the bare step | of the loop with the extractor | waiting for data |\n"
        "|---|---|---|---|---|"
    )
    for way, own in median.items():
        bare = median["bare, features" if _WAYS[way][1] else "bare"]["seconds"]
        print(
            f"| {way} | {own['seconds'] * 1e3:.0f} | {own['seconds'] / bare:.3f} | "
            f"{own['seconds'] / median['loop']['seconds']:.2f} | {own['waiting']:.2%} |"
        )


if __name__ == "__main__":
    cli.launch(main)
