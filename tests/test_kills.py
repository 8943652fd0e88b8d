"""Training that is killed again and again, and ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from pipeline import example
from pipeline.batches import Batches
from pipeline.shards import TRAIN
from tests.worker import fingerprint
from trainer.checkpoints import Checkpoints

pytestmark = pytest.mark.slow
KILLS = 10  # amid an epoch, in a step; and some at moments that are rarer
OTHERS = ("rename:1", "validate:2", "record:1")


def train(dataset, workdir, seen, die_at=None):
    command = [sys.executable, "-m", "tests.worker", "--config=configs/demo.py", f"--data={dataset.directory}"]
    command += [f"--workdir={workdir}", "--config.batch_size=4", "--config.model.width_multiplier=0.0625"]
    command += ["--config.epochs_per_learning_rate=(2,1)", "--config.steps_per_checkpoint=5"]
    env = os.environ | {"SEEN": str(seen)} | ({"DIE_AT": str(die_at)} if die_at else {})
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == (-signal.SIGKILL if die_at else 0), result.stderr


def weights(workdir):
    """All that a checkpoint holds of the end of a run."""
    step = Checkpoints(str(workdir)).steps()[-1]
    saved = tf.train.load_checkpoint(str(workdir / f"checkpoints/step-{step:08d}/state"))
    return {name: saved.get_tensor(name) for name in saved.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name}


def trained_on(seen):
    """The batches of the steps that count: those of a process up to where the next one went on."""
    runs = []
    for line in map(json.loads, seen.read_text().splitlines()):
        if isinstance(line, dict):
            runs.append((line["first_step"], []))
        else:
            runs[-1][1].append(line)
    starts = [start for start, _ in runs] + [None]
    batches = []
    for (start, own), end in zip(runs, starts[1:], strict=True):
        assert start == len(batches)
        batches += own if end is None else own[: end - start]
    return batches


def test_ten_kills_leave_no_trace(compact_dataset, tmp_path):
    train(compact_dataset, tmp_path / "whole", tmp_path / "whole.seen")
    numbers = random.Random(4)
    for _ in range(KILLS):
        die_at = f"train:{numbers.randint(1, 12)}"
        train(compact_dataset, tmp_path / "parts", tmp_path / "parts.seen", die_at)
    for die_at in OTHERS:
        train(compact_dataset, tmp_path / "parts", tmp_path / "parts.seen", die_at)
    train(compact_dataset, tmp_path / "parts", tmp_path / "parts.seen")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, expected in whole.items():
        np.testing.assert_array_equal(parts[name], expected)

    layout = example.layout(compact_dataset.manifest.layout)
    paths = [compact_dataset.path(shard) for shard in compact_dataset.manifest.splits[TRAIN].shards]
    records = [example.stored(record.numpy(), layout) for record in tf.data.TFRecordDataset(paths)]
    keys = {fingerprint(values["l_224"]): key for key, values in records}
    assert len(keys) == len(records)
    batches = trained_on(tmp_path / "parts.seen")
    assert batches == trained_on(tmp_path / "whole.seen")
    steps = Batches(compact_dataset, 4).steps_per_epoch
    assert len(batches) == 3 * steps
    for epoch in range(3):
        seen = [keys[each] for batch in batches[epoch * steps : (epoch + 1) * steps] for each in batch]
        assert len(seen) == len(set(seen)) == steps * 4
        assert len(set(keys.values()) - set(seen)) == len(keys) % 4
