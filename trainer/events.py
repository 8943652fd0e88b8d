"""What a run has told TensorBoard, read back."""

import os
from collections import defaultdict

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pipeline import files
from pipeline.errors import UserError, one_line
from trainer.summaries import FOLDER

Scalars = dict[str, dict[int, float]]


def scalars(work_dir: str) -> Scalars:
    """The scalars of a run, by tag and step, in the order of steps; of a step that was done again the last.

    Raises:
        UserError: the run's events cannot be read.
    """
    folder = os.path.join(work_dir, FOLDER)
    found: Scalars = defaultdict(dict)
    try:
        for name in sorted(name for name in files.names(folder) if ".tfevents." in name):  # that is, in order of time
            for event in EventFileLoader(os.path.join(folder, name)).Load():
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars":
                        found[value.tag][event.step] = float(tf.make_ndarray(value.tensor))
    except FileNotFoundError:
        return {}  # it has recorded nothing yet
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"{folder} cannot be read: {one_line(error)}; name the directory of a run") from error
    return {tag: dict(sorted(values.items())) for tag, values in found.items()}


def thinned(values: dict[int, float], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values for a curve of at most some points, each the mean of its neighbors.

    Args:
        values: by step, in order.
        count: of points.

    Returns:
        float64 [points] each.
    """
    both = np.array([[*values.keys()], [*values.values()]], np.float64)  # (2, steps)
    parts = np.array_split(both, min(count, both.shape[1]), axis=1)
    steps, means = np.array([part.mean(axis=1) for part in parts]).T
    return steps, means
