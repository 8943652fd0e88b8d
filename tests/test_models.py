import os
import random
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs import demo, koalarization
from pipeline.errors import UserError
from tests import cloud_storage
from tests.helpers import tiny_extractor
from trainer import models
from trainer.models import extractor
from trainer.models.koalarization import Fusion, build_network


def uniform(*shape):
    """Numbers in [-1, 1], the same each time."""
    return tf.random.stateless_uniform(shape, seed=(1, sum(shape)), minval=-1, maxval=1)


def batch(count=2):
    return {
        "l_224": uniform(count, 224, 224, 1),
        "l_299": tf.repeat(uniform(count, 299, 299, 1), 3, axis=-1),
        "ab_224": uniform(count, 224, 224, 2),
    }


@pytest.fixture(scope="module")
def random_inception():
    keras.utils.set_random_seed(1)
    return extractor.create(None, 1000)


# Keras's network in small; prints a sum of weights from where the command line says.
LOAD = """
import sys
import keras
from tests.helpers import tiny_extractor
from trainer.models import extractor

def create(weights, classes, **_):
    model = tiny_extractor(None, classes)
    model.load_weights(weights)
    return model

keras.applications.InceptionResNetV2 = create
print(sum(float(abs(each).sum()) for each in extractor.create(sys.argv[1], 1000).get_weights()))
"""


class TestNetwork:
    def test_has_the_parameters_of_the_paper(self):
        assert build_network(1000, 1.0).count_params() == 6_573_794

    def test_layer_by_layer(self):
        """Table 1 of the paper: kernel, filters, stride, activation and output size of every convolution."""
        network = build_network(1000, 1.0)
        probe = keras.Model(
            network.inputs, [layer.output for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
        )
        outputs = probe([tf.zeros([1, 224, 224, 1]), tf.zeros([1, 1000])])
        found = [
            (layer.kernel_size[0], layer.filters, layer.strides[0], layer.activation.__name__, output.shape[1])
            for layer, output in zip(
                (layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)), outputs, strict=True
            )
        ]
        assert found == [
            (3, 64, 2, "relu", 112), (3, 128, 1, "relu", 112), (3, 128, 2, "relu", 56), (3, 256, 1, "relu", 56),
            (3, 256, 2, "relu", 28), (3, 512, 1, "relu", 28), (3, 512, 1, "relu", 28), (3, 256, 1, "relu", 28),
            (1, 256, 1, "relu", 28),
            (3, 128, 1, "relu", 28), (3, 64, 1, "relu", 56), (3, 64, 1, "relu", 56), (3, 32, 1, "relu", 112),
            (3, 2, 1, "tanh", 112),
        ]  # fmt: skip

    @pytest.mark.parametrize("classes", [1000, 1001])
    def test_fusion_has_a_channel_for_every_class(self, classes):
        network = build_network(classes, 1.0)
        fusion = network.get_layer("fusion")
        assert fusion.output.shape[-1] == 256 + classes
        assert network([tf.zeros([1, 224, 224, 1]), tf.zeros([1, classes])]).shape == (1, 224, 224, 2)

    def test_fusion_repeats_the_features_at_every_place(self):
        feature_map, features = uniform(2, 3, 4, 5), uniform(2, 7)
        fused = Fusion()([feature_map, features]).numpy()
        np.testing.assert_array_equal(fused[..., :5], feature_map)
        for row in range(3):
            for column in range(4):
                np.testing.assert_array_equal(fused[:, row, column, 5:], features)

    def test_output_is_in_range_and_any_multiple_of_8_is_a_size(self):
        network = build_network(10, 1 / 16)
        outputs = network([uniform(1, 64, 40, 1) * 100, uniform(1, 10) * 100])
        assert outputs.shape == (1, 64, 40, 2)
        assert np.abs(outputs).max() <= 1

    def test_width_multiplier_scales_all_but_the_last_layer(self):
        layers = [layer for layer in build_network(10, 0.25).layers if isinstance(layer, keras.layers.Conv2D)]
        assert [layer.filters for layer in layers] == [16, 32, 32, 64, 64, 128, 128, 64, 64, 32, 16, 16, 8, 2]


class TestKoalarization:
    @pytest.fixture
    def model(self, tiny_extractor):
        return models.create(demo.get_config().model, seed=1)

    def test_loss_is_the_mean_squared_error_of_each_example(self, model):
        inputs = batch()
        outputs = tf.zeros_like(inputs["ab_224"])
        outputs = tf.concat([outputs[:1] + 0.5, outputs[1:]], axis=0)
        truth = inputs["ab_224"].numpy().astype(np.float64)
        expected = [((0.5 - truth[0]) ** 2).mean(), (truth[1] ** 2).mean()]
        np.testing.assert_allclose(model.loss(outputs, inputs), expected, rtol=1e-5)

    def test_gradients_reach_every_variable_and_only_those_of_the_network(self, model):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.loss(model.outputs(batch(), training=True), batch()))
        variables = model.network.trainable_variables
        gradients = tape.gradient(loss, variables)
        assert len(variables) == 28
        assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients)
        assert not model.extractor.model.trainable_variables

    def test_features_change_the_prediction(self, model):
        inputs = batch()
        other = {**inputs, "l_299": -inputs["l_299"]}
        assert np.abs(model.outputs(inputs, training=False) - model.outputs(other, training=False)).max() > 1e-6

    def test_the_same_seed_gives_the_same_weights(self, tiny_extractor):
        weights = [models.create(demo.get_config().model, seed).network.get_weights() for seed in (1, 1, 2)]
        for first, second, third in zip(*weights, strict=True):
            np.testing.assert_array_equal(first, second)
            assert first.ndim == 1 or np.any(first != third)

    def test_weights_do_not_depend_on_who_else_draws_random_numbers(self, tiny_extractor, monkeypatch):
        """As the threads of a Beam worker do, from Python's global generator."""
        built = [models.create(demo.get_config().model, seed=1)]
        monkeypatch.setattr(random, "randint", lambda low, high: random.choice([random.randrange(low, high), low]))
        built.append(models.create(demo.get_config().model, seed=1))
        assert built[0].extractor.fingerprint == built[1].extractor.fingerprint
        for first, second in zip(*(model.network.get_weights() for model in built), strict=True):
            np.testing.assert_array_equal(first, second)


class TestExtractor:
    def test_gives_scores_before_the_softmax(self, random_inception):
        scores = random_inception(batch()["l_299"], training=False).numpy()
        assert scores.shape == (2, 1000)
        assert scores.min() < 0
        assert not np.allclose(scores.sum(axis=1), 1)
        assert random_inception.layers[-1].activation.__name__ == "linear"

    def test_is_frozen(self, random_inception):
        assert not random_inception.trainable_variables
        assert random_inception.count_params() == 55_873_736  # Keras's documentation: 55.9 million

    def test_weights_from_a_file(self, random_inception, tmp_path):
        path = str(tmp_path / "inception.weights.h5")
        random_inception.save_weights(path)
        keras.utils.set_random_seed(2)
        loaded = extractor.create(path, 1000)
        inputs = batch()["l_299"]
        np.testing.assert_array_equal(loaded(inputs, training=False), random_inception(inputs, training=False))
        remote = extractor.create(f"file://{path}", 1000)
        np.testing.assert_array_equal(remote(inputs, training=False), random_inception(inputs, training=False))

    def test_weights_from_a_bucket(self, tmp_path):
        path = tmp_path / "small.weights.h5"
        model = tiny_extractor(None, 1000)
        model.save_weights(path)
        with cloud_storage.running(tmp_path, "bucket") as cloud:
            cloud.client().bucket("bucket").blob("small.weights.h5").upload_from_filename(path)
            result = subprocess.run(
                [sys.executable, "-c", LOAD, "gs://bucket/small.weights.h5"], env={**os.environ, **cloud.environment},
                capture_output=True, text=True,
            )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert float(result.stdout) == sum(float(abs(each).sum()) for each in model.get_weights())

    def test_weights_of_1001_classes(self, random_inception, tmp_path):
        path = str(tmp_path / "background.weights.h5")
        keras.applications.InceptionResNetV2(weights=None, classes=1001, classifier_activation=None).save_weights(path)
        assert extractor.create(path, 1001)(batch(1)["l_299"], training=False).shape == (1, 1001)
        with pytest.raises(UserError, match="cannot be loaded: .* with 1000 classes, or set"):
            extractor.create(path, 1000)

    def test_random_weights_are_said_loudly(self, caplog, monkeypatch):
        monkeypatch.setattr(keras.applications, "InceptionResNetV2", lambda **_: keras.Sequential())
        fields = koalarization.get_config().model
        extractor.Extractor(fields, seed=1).warn_if_random()
        assert not caplog.records
        fields.feature_weights = None
        extractor.Extractor(fields, seed=1).warn_if_random()
        assert "RANDOM weights" in caplog.text
        assert caplog.records[0].levelname == "WARNING"

    def test_imagenet_is_asked_of_keras(self, monkeypatch):
        asked = {}
        monkeypatch.setattr(
            keras.applications, "InceptionResNetV2", lambda **options: asked.update(options) or keras.Sequential()
        )
        extractor.create(koalarization.get_config().model.feature_weights, 1000)
        assert asked == {"weights": "imagenet", "classes": 1000, "classifier_activation": None}

    def test_mistakes_are_one_line(self, tmp_path, monkeypatch):
        (tmp_path / "text.h5").write_text("no weights")
        for weights, message in (
            (str(tmp_path / "absent.h5"), "which is no file; name a weights file, or 'imagenet'"),
            (str(tmp_path / "text.h5"), "cannot be loaded: "),
        ):
            with pytest.raises(UserError, match=message) as caught:
                extractor.create(weights, 1000)
            assert "\n" not in str(caught.value)

        def no_network(**_):
            raise Exception("URL fetch failure on https://example.org/weights.h5: None -- unreachable")

        monkeypatch.setattr(keras.applications, "InceptionResNetV2", no_network)
        with pytest.raises(UserError, match="'imagenet' cannot be loaded: URL .*; name the path .*-v2$"):
            extractor.create("imagenet", 1000)


def test_feature_weights_none_can_be_said_on_the_command_line(tiny_extractor, monkeypatch):
    asked, create = [], extractor.create
    monkeypatch.setattr(extractor, "create", lambda weights, classes: asked.append(weights) or create(weights, classes))
    config = demo.get_config().model
    for weights in ("none", None, "a/path.h5"):
        config.feature_weights = weights
        models.create(config, seed=1)
    assert asked == [None, None, "a/path.h5"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "deoldify", "model.name is 'deoldify'; choose one of koalarization"),
        ("width_multiplier", 0.0, "above 0"),
    ],
)
def test_fields_out_of_range_are_refused(tiny_extractor, field, value, message):
    config = demo.get_config().model
    config[field] = value
    with pytest.raises(UserError, match=message):
        models.create(config, seed=1)
