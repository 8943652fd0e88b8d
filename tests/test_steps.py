import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import example, reader
from pipeline.batches import Batches
from trainer import models, optimizer, schedule
from trainer.models.koalarization import Koalarization
from trainer.steps import Steps

ONE = tf.distribute.OneDeviceStrategy("/device:CPU:0")


class Trained:
    """A model after some steps, and what was measured."""

    def __init__(self, config, dataset, strategy=ONE, count=3, calls=1):
        self.layout = example.layout(dataset.manifest.layout)
        with strategy.scope(), optimizer.precision(config.precision):
            self.model = models.create(config.model, config.seed)
            self.optimizer = optimizer.create(schedule.piecewise_constant((1e-3,), (1,), 10), config.precision)
            self.optimizer.build(self.model.network.trainable_variables)
        self.first_weights = self.weights()
        steps = Steps(strategy, self.model, self.optimizer, self.layout, config)
        batches = Batches(dataset, config.batch_size)
        stream = iter(strategy.distribute_datasets_from_function(lambda c: batches.train(1, range(1), context=c)))
        self.measures = []
        for _ in range(calls):
            measures = steps.train([next(stream) for _ in range(count)], tf.constant(0.0))
            self.measures += list(zip(*(part.numpy().tolist() for part in measures), strict=True))
        self.losses, self.norms, self.rates, self.stops = map(list, zip(*self.measures, strict=True))

    def weights(self):
        return self.model.network.get_weights()


def assert_same(first, second, rtol):
    np.testing.assert_allclose(first.losses, second.losses, rtol=rtol)
    np.testing.assert_allclose(first.norms, second.norms, rtol=10 * rtol)
    for one, other in zip(first.weights(), second.weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-2 * rtol + 2e-5)


def test_measures_are_those_of_the_batch(config, compact_dataset, two_replicas):
    """The norm is that of the gradient of the mean over the whole batch, on any number of replicas."""
    model = models.create(config.model, config.seed)
    stored = next(iter(Batches(compact_dataset, config.batch_size).train(1, range(1))))
    batch = reader.unpack(stored, example.layout(compact_dataset.manifest.layout))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model.loss(model.outputs(batch, training=True), batch))
    gradients = tape.gradient(loss, model.network.trainable_variables)
    norm = np.sqrt(sum(float(np.sum(np.square(gradient, dtype=np.float64))) for gradient in gradients))
    for strategy in (ONE, two_replicas):
        found = Trained(config, compact_dataset, strategy, count=1)
        assert found.losses == [pytest.approx(float(loss), rel=1e-5)]
        assert found.norms == [pytest.approx(norm, rel=1e-4)]
        assert found.rates == [pytest.approx(1e-3)]
        assert found.stops == [0.0]


def test_several_steps_in_a_call_are_the_same_steps(config, compact_dataset):
    one, several = Trained(config, compact_dataset, count=1, calls=4), Trained(config, compact_dataset, count=4)
    assert one.measures == several.measures
    for first, second in zip(one.weights(), several.weights(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_accumulated_parts_are_one_batch(config, compact_dataset, two_replicas, monkeypatch, replicas):
    strategy = two_replicas if replicas == 2 else ONE
    whole = Trained(config, compact_dataset, strategy)
    config.accumulation_steps = 2
    sizes = []
    outputs = Koalarization.outputs
    monkeypatch.setattr(
        Koalarization, "outputs", lambda self, batch, training: (
            sizes.append(batch["l_224"].shape[0]) or outputs(self, batch, training)
        ),
    )  # fmt: skip
    assert_same(whole, Trained(config, compact_dataset, strategy), rtol=1e-4)
    assert set(sizes) == {config.batch_size // replicas // 2}


@pytest.mark.slow
def test_xla_computes_the_same(config, compact_dataset, two_replicas):
    plain = Trained(config, compact_dataset, two_replicas)
    config.xla = True
    compiled = Trained(config, compact_dataset, two_replicas)
    assert_same(plain, compiled, rtol=1e-3)
    assert compiled.losses != plain.losses  # XLA adds in another order


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(config, compact_dataset, two_replicas, precision):
    """Weights and colors are float32, what is between them is not; losses are nearly the same."""
    whole = Trained(config, compact_dataset, two_replicas)
    config.precision = precision
    mixed = Trained(config, compact_dataset, two_replicas)
    assert keras.config.dtype_policy().name == "float32"
    assert mixed.losses != whole.losses
    np.testing.assert_allclose(mixed.losses, whole.losses, rtol=5e-2)
    layers = mixed.model.network.layers
    assert {layer.compute_dtype for layer in layers if isinstance(layer, keras.layers.Conv2D)} == {
        precision.removeprefix("mixed_"), "float32",
    }  # fmt: skip
    assert layers[-1].compute_dtype == "float32"
    assert all(variable.dtype == "float32" for variable in mixed.model.network.trainable_variables)
    for variable in mixed.model.network.trainable_variables:
        first, second = (np.array(each) for each in two_replicas.experimental_local_results(variable.value))
        np.testing.assert_array_equal(first, second)


def test_a_step_whose_gradients_overflow_is_left_out(config, compact_dataset, two_replicas):
    config.precision = "mixed_float16"
    whole = Trained(config, compact_dataset, two_replicas, count=1)
    assert float(whole.optimizer.dynamic_scale.numpy()) == 2**15
    assert int(whole.optimizer.iterations.numpy()) == 1
    huge = [tf.fill(variable.shape, np.inf) for variable in whole.model.network.trainable_variables]
    before = whole.weights()

    @tf.function
    def step():
        return two_replicas.run(
            lambda: optimizer.apply(whole.optimizer, huge, whole.model.network.trainable_variables, clip_norm=1.0)
        )

    step()
    assert float(whole.optimizer.dynamic_scale.numpy()) == 2**14
    assert int(whole.optimizer.iterations.numpy()) == 1
    for first, second in zip(before, whole.weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_configured_limit_is_applied(config, compact_dataset):
    """Adam does not feel the scale of gradients, unless they are as small as what it adds to them."""
    config.clip_norm = 1e-9
    limited = Trained(config, compact_dataset, count=1)
    change = max(np.abs(one - other).max() for one, other in zip(limited.first_weights, limited.weights(), strict=True))
    assert 0 < change < 1e-5  # it is the rate, 1e-3, without


@pytest.mark.parametrize(("clip_norm", "factor"), [(0.0, 1.0), (2.5, 0.5), (10.0, 1.0)])
def test_gradients_are_limited_by_their_norm_together(clip_norm, factor):
    """A gradient of 3 and one of 4: a norm of 5."""
    with ONE.scope():
        variables = [keras.Variable([0.0]), keras.Variable([0.0])]
        sgd = keras.optimizers.SGD(1.0)
        sgd.build(variables)
    gradients = [tf.constant([3.0]), tf.constant([4.0])]
    norm = ONE.run(lambda: optimizer.apply(sgd, gradients, variables, clip_norm))
    assert float(norm) == pytest.approx(5)
    assert [float(variable[0]) for variable in variables] == pytest.approx([-3 * factor, -4 * factor])
