import numpy as np
import tensorflow as tf
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from trainer import events
from trainer.summaries import FOLDER


def write(run, *values):
    """One file of events with the loss of some steps."""
    writer = tf.summary.create_file_writer(str(run / FOLDER))
    with writer.as_default():
        for step, value in values:
            tf.summary.experimental.write_raw_pb(scalar_pb("loss", value).SerializeToString(), step)
        tf.summary.image("panel", np.zeros((1, 4, 4, 3), np.uint8), 1)
    writer.close()


def test_what_was_done_again_counts_as_it_was_done_last(tmp_path):
    """A run that was killed goes on from before the last step that it had told of."""
    write(tmp_path, (1, 4.0), (2, 3.0), (3, 2.0))
    write(tmp_path, (2, 2.5), (3, 1.5), (4, 1.0))
    assert events.scalars(str(tmp_path)) == {"loss": {1: 4.0, 2: 2.5, 3: 1.5, 4: 1.0}}
    assert list(events.scalars(str(tmp_path))["loss"]) == [1, 2, 3, 4]


def test_a_run_that_has_recorded_nothing(tmp_path):
    assert events.scalars(str(tmp_path)) == {}


def test_a_curve_of_fewer_points_has_the_means():
    steps, means = events.thinned({step: float(step**2) for step in range(10)}, 5)
    assert steps.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert means.tolist() == [0.5, 6.5, 20.5, 42.5, 72.5]
    steps, means = events.thinned({3: 1.0, 7: 2.0}, 5)
    assert steps.tolist() == [3, 7]
    assert means.tolist() == [1, 2]
