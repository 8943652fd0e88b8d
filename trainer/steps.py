"""What is computed on the devices: a training step, a validation step, a picture panel; the same for any strategy."""

import keras
import tensorflow as tf

from pipeline import example, reader
from pipeline.reader import Batch
from trainer.models.base import ColorModel
from trainer.summaries import side_by_side


class Steps:
    """Compiled steps on global batches, as a strategy distributes them.

    Args:
        strategy: under whose scope model and optimizer were built.
        model: what is trained.
        optimizer: built.
        layout: of the batches' tensors.
        batch_size: examples of a batch, over all replicas.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: ColorModel,
        optimizer: keras.Optimizer,
        layout: example.Layout,
        batch_size: int,
    ):
        self._strategy = strategy
        self._model = model
        self._optimizer = optimizer
        self._layout = layout
        self._batch_size = batch_size

    @tf.function
    def train(self, batch: Batch, stops: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One step.

        Args:
            batch: global, as batches are stored.
            stops: float32, above 0 if this host was asked to stop.

        Returns:
            The loss before the step, and `stops` summed over replicas: all hosts know of it in the same step.
        """

        def replica_step(batch: Batch) -> tf.Tensor:
            batch = reader.unpack(batch, self._layout)
            with tf.GradientTape() as tape:
                losses = self._model.loss(self._model.outputs(batch, training=True), batch)  # (B / replicas,)
                # Divided by the global batch: the sum over replicas is the mean over its examples.
                loss = tf.reduce_sum(losses) / self._batch_size
            variables = self._model.network.trainable_variables
            # The optimizer sums gradients over replicas.
            self._optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return tf.stack([loss, stops])

        loss, stopping = tf.unstack(self._sum(self._strategy.run(replica_step, args=(batch,))))
        return loss, stopping

    @tf.function
    def validate(self, batch: Batch, stops: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The sum of losses over the examples of a batch, how many they are, and `stops` as for `train`."""

        def replica_step(batch: Batch) -> tf.Tensor:
            batch = reader.unpack(batch, self._layout)
            losses = self._model.loss(self._model.outputs(batch, training=False), batch)
            return tf.stack([tf.reduce_sum(losses * batch["weight"]), tf.reduce_sum(batch["weight"]), stops])

        total, count, stopping = tf.unstack(self._sum(self._strategy.run(replica_step, args=(batch,))))
        return total, count, stopping

    @tf.function
    def draw(self, batch: Batch) -> tf.Tensor:
        """Gray, predicted and true color of float32 examples: uint8 [N, 224, 3 * 224, 3]."""
        predicted = self._model.ab(self._model.outputs(batch, training=False))
        return side_by_side(batch["l_224"], predicted, batch["ab_224"])

    def _sum(self, value: tf.Tensor) -> tf.Tensor:
        return self._strategy.reduce("SUM", value, axis=None)
