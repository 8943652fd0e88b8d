"""The learning rate over time, given in epochs."""

import math
from collections.abc import Sequence

import keras

from pipeline.errors import UserError


def epochs(rates: Sequence[float], epochs_per_rate: Sequence[int]) -> int:
    """How many epochs the schedule lasts.

    Raises:
        UserError: no rates, not as many rates as numbers of epochs, or a value that is not positive.
    """
    if not rates or len(rates) != len(epochs_per_rate):
        raise UserError(
            f"learning_rates {tuple(rates)} and epochs_per_learning_rate {tuple(epochs_per_rate)} must be of the same "
            "length, at least 1"
        )
    if not all(0 < rate < math.inf for rate in rates) or not all(
        isinstance(count, int) and count > 0 for count in epochs_per_rate
    ):
        raise UserError(
            f"learning_rates {tuple(rates)} and epochs_per_learning_rate {tuple(epochs_per_rate)} must be above 0, and "
            "epochs whole"
        )
    return sum(epochs_per_rate)


def piecewise_constant(
    rates: Sequence[float], epochs_per_rate: Sequence[int], steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A rate for so many epochs, then the next.

    Args:
        rates: learning rates, in order.
        epochs_per_rate: epochs that each lasts.
        steps_per_epoch: training steps of an epoch.

    Returns:
        A schedule from the step, counted from 0, to the learning rate.
    """
    if len(rates) == 1:
        return keras.optimizers.schedules.PiecewiseConstantDecay([steps_per_epoch], [rates[0]] * 2)
    ends = [sum(epochs_per_rate[: i + 1]) * steps_per_epoch for i in range(len(rates) - 1)]
    # Keras holds a rate up to and including its boundary.
    return keras.optimizers.schedules.PiecewiseConstantDecay([end - 1 for end in ends], list(rates))
