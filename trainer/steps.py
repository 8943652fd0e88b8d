"""What is computed on the devices: a training step, a validation step, a picture panel; the same for any strategy."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from pipeline import color_tf, example, reader
from pipeline.reader import Batch
from trainer import metrics, optimizer
from trainer.models.base import ColorModel
from trainer.summaries import side_by_side


class Measures(NamedTuple):
    """What is known of some training steps: float32 [steps] each."""

    loss: tf.Tensor  # before the step
    gradient_norm: tf.Tensor  # of the whole batch, before it was limited
    learning_rate: tf.Tensor
    stops: tf.Tensor  # above 0 if a host was asked to stop


class Sums(NamedTuple):
    """Sums over the examples of a validation batch: float32 scalars."""

    loss: tf.Tensor
    psnr: tf.Tensor  # dB
    colorfulness: tf.Tensor  # of the predictions
    true_colorfulness: tf.Tensor
    examples: tf.Tensor
    stops: tf.Tensor  # above 0 if a host was asked to stop


class Steps:
    """Compiled steps on global batches, as a strategy distributes them.

    Args:
        strategy: under whose scope model and optimizer were built.
        model: what is trained.
        optimizer: built.
        layout: of the batches' tensors.
        config: of the run.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: ColorModel,
        optimizer: keras.Optimizer,
        layout: example.Layout,
        config: ConfigDict,
    ):
        self._strategy = strategy
        self._model = model
        self._optimizer = optimizer
        self._layout = layout
        self._config = config
        compute = self._compute_gradients
        self._gradients = tf.function(compute, jit_compile=True) if config.xla else compute

    @tf.function
    def train(self, batches: Sequence[Batch], stops: tf.Tensor) -> Measures:
        """One step on each of some batches.

        Args:
            batches: global, as they are stored.
            stops: float32, above 0 if this host was asked to stop; all hosts know of it in the same step.
        """
        measures = [self._step(batch, stops) for batch in batches]
        return Measures(*tf.unstack(tf.stack(measures), axis=1))

    @tf.function
    def _step(self, batch: Batch, stops: tf.Tensor) -> tf.Tensor:
        """One step; its measures, float32 [4]."""
        variables = self._model.network.trainable_variables

        def replica_step(batch: Batch) -> tf.Tensor:
            rate = tf.cast(self._optimizer.learning_rate, tf.float32)
            loss, gradients = self._accumulate(batch)
            norm = optimizer.apply(self._optimizer, gradients, variables, self._config.clip_norm)
            replicas = tf.cast(self._strategy.num_replicas_in_sync, tf.float32)
            # Summed over replicas: the loss is a part of the batch's, norm and rate are the same for all.
            return tf.stack([loss, tf.cast(norm, tf.float32) / replicas, rate / replicas, stops])

        return self._sum(self._strategy.run(replica_step, args=(batch,)))

    def _accumulate(self, batch: Batch) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """A replica's share of the loss and of its gradients, part after part of its examples."""
        count = self._config.accumulation_steps
        if count == 1:
            return self._gradients(batch)
        parts = {  # (count, B / count, ...)
            name: tf.reshape(values, (count, -1, *values.shape[1:])) for name, values in batch.items()
        }

        def add(index: tf.Tensor, loss: tf.Tensor, gradients: list[tf.Tensor]) -> tuple:
            own_loss, own = self._gradients({name: values[index] for name, values in parts.items()})
            return index + 1, loss + own_loss, [sum_ + each for sum_, each in zip(gradients, own, strict=True)]

        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in self._model.network.trainable_variables]
        _, loss, gradients = tf.while_loop(
            lambda index, *_: index < count, add, (tf.constant(0), tf.constant(0.0), zeros), parallel_iterations=1
        )
        return loss, gradients

    def _compute_gradients(self, batch: Batch) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Of examples of a replica: their share of the loss, and the gradients of that, as the optimizer scales it."""
        batch = reader.unpack(batch, self._layout)
        with tf.GradientTape() as tape:
            losses = self._model.loss(self._model.outputs(batch, training=True), batch)  # (B / replicas,)
            # Divided by the global batch: the sum over replicas is the mean over its examples.
            loss = tf.reduce_sum(losses) / self._config.batch_size
            scaled = self._optimizer.scale_loss(loss)
        return loss, tape.gradient(scaled, self._model.network.trainable_variables)

    @tf.function
    def validate(self, batch: Batch, stops: tf.Tensor) -> Sums:
        """Sums over the examples of a batch."""

        def replica_step(batch: Batch) -> tf.Tensor:
            batch = reader.unpack(batch, self._layout)
            outputs = self._model.outputs(batch, training=False)
            predicted, truth = (
                color_tf.normalized_to_rgb(batch["l_224"], ab) for ab in (self._model.ab(outputs), batch["ab_224"])
            )
            values = [
                self._model.loss(outputs, batch), metrics.psnr(predicted, truth), metrics.colorfulness(predicted),
                metrics.colorfulness(truth), tf.ones_like(batch["weight"]),
            ]  # fmt: skip
            sums = tf.linalg.matvec(tf.stack(values), batch["weight"])  # (5, B) and (B,) to (5,)
            return tf.concat([sums, [stops]], axis=0)

        return Sums(*tf.unstack(self._sum(self._strategy.run(replica_step, args=(batch,)))))

    @tf.function
    def draw(self, batch: Batch) -> tf.Tensor:
        """Gray, predicted and true color of float32 examples: uint8 [N, 224, 3 * 224, 3]."""
        predicted = self._model.ab(self._model.outputs(batch, training=False))
        return side_by_side(batch["l_224"], predicted, batch["ab_224"])

    def _sum(self, value: tf.Tensor) -> tf.Tensor:
        return self._strategy.reduce("SUM", value, axis=None)
