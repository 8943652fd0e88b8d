"""A profile of chosen steps, for TensorBoard."""

import logging

import tensorflow as tf

_LOGGER = logging.getLogger(__name__)


class Profiler:
    """Records what the devices do from one step to another.

    Args:
        folder: where TensorBoard's events are.
        steps: the first and the last, counted from 1; (0, 0) for none.
    """

    def __init__(self, folder: str, steps: tuple[int, int]):
        self._folder = folder
        self._first, self._last = steps
        self._is_on = False

    def before(self, first: int, last: int) -> None:
        """Call it before steps that are called together."""
        if not self._is_on and first <= self._last and self._first <= last:
            tf.profiler.experimental.start(self._folder)
            self._is_on = True

    def after(self, step: int, result: tf.Tensor) -> None:
        """Call it after the last of these, with something that it computes: what is profiled ends with it."""
        if self._is_on and step >= self._last:
            result.numpy()
            self.close()
            _LOGGER.info("a profile of steps %d to %d is in TensorBoard", self._first, step)

    def close(self) -> None:
        """Ends a profile that has not ended."""
        if self._is_on:
            tf.profiler.experimental.stop()
            self._is_on = False
