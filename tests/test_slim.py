"""TF-Slim's checkpoint in Keras's model, against the network written out once more after Szegedy et al. (2016)."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import UserError
from tests import cloud_storage
from trainer.models import extractor

CLASSES = 1001


class Reference:
    """The network as a function of variables by TF-Slim's names, which are drawn when they are first asked for.

    A chain of convolutions reads "0a_1x1:256 1a_3x3:384/2": names with kernels, and filters; /2 halves rows and
    columns, and both it and ! do without padding.
    """

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)
        self.variables = {}

    def variable(self, name, shape, low, high):
        if name not in self.variables:
            self.variables[name] = self.generator.uniform(low, high, shape).astype(np.float32)
        return self.variables[name]

    def weights(self, scope, *shape):
        limit = np.sqrt(6 / np.prod(shape[:-1]))
        return self.variable(f"{scope}/weights", shape, -limit, limit)

    def biases(self, scope, units):
        return self.variable(f"{scope}/biases", (units,), -0.1, 0.1)

    def chain(self, x, scope, steps):
        for step in steps.split():
            name, kernel, filters, option = re.fullmatch(r"(\w*?)_?(\dx\d):(\d+)(/2|!|)", step).groups()
            own = f"InceptionResnetV2/{scope}Conv2d_{name}{'_' if name else ''}{kernel}"
            shape = (*map(int, kernel.split("x")), x.shape[-1], int(filters))
            stride, padding = (2 if option == "/2" else 1), ("VALID" if option else "SAME")
            x = tf.nn.conv2d(x, self.weights(own, *shape), stride, padding)
            mean = self.variable(f"{own}/BatchNorm/moving_mean", shape[-1:], -0.1, 0.1)
            variance = self.variable(f"{own}/BatchNorm/moving_variance", shape[-1:], 0.8, 1.2)
            beta = self.variable(f"{own}/BatchNorm/beta", shape[-1:], -0.1, 0.1)
            x = tf.nn.relu((x - mean) / np.sqrt(variance + 1e-3) + beta)
        return x

    def mixed(self, x, scope, *branches):
        return tf.concat([self.chain(x, f"{scope}/Branch_{i}/", steps) for i, steps in enumerate(branches)], -1)

    def residual(self, x, scope, scale, *branches):
        mixed, up = self.mixed(x, scope, *branches), f"InceptionResnetV2/{scope}/Conv2d_1x1"
        x_up = tf.nn.conv2d(mixed, self.weights(up, 1, 1, mixed.shape[-1], x.shape[-1]), 1, "SAME")
        return x + scale * (x_up + self.biases(up, x.shape[-1]))

    def __call__(self, x):
        x = self.chain(x, "", "1a_3x3:32/2 2a_3x3:32! 2b_3x3:64")
        x = self.chain(tf.nn.max_pool2d(x, 3, 2, "VALID"), "", "3b_1x1:80! 4a_3x3:192!")
        x = tf.nn.max_pool2d(x, 3, 2, "VALID")
        mixed = self.mixed(x, "Mixed_5b", "1x1:96", "0a_1x1:48 0b_5x5:64", "0a_1x1:64 0b_3x3:96 0c_3x3:96")
        pooled = self.chain(tf.nn.avg_pool2d(x, 3, 1, "SAME"), "Mixed_5b/Branch_3/", "0b_1x1:64")
        x = tf.concat([mixed, pooled], -1)
        for number in range(1, 11):
            branches = ("1x1:32", "0a_1x1:32 0b_3x3:32", "0a_1x1:32 0b_3x3:48 0c_3x3:64")
            x = tf.nn.relu(self.residual(x, f"Repeat/block35_{number}", 0.17, *branches))
        mixed = self.mixed(x, "Mixed_6a", "1a_3x3:384/2", "0a_1x1:256 0b_3x3:256 1a_3x3:384/2")
        x = tf.concat([mixed, tf.nn.max_pool2d(x, 3, 2, "VALID")], -1)
        for number in range(1, 21):
            branches = ("1x1:192", "0a_1x1:128 0b_1x7:160 0c_7x1:192")
            x = tf.nn.relu(self.residual(x, f"Repeat_1/block17_{number}", 0.1, *branches))
        branches = ("0a_1x1:256 1a_3x3:384/2", "0a_1x1:256 1a_3x3:288/2", "0a_1x1:256 0b_3x3:288 1a_3x3:320/2")
        x = tf.concat([self.mixed(x, "Mixed_7a", *branches), tf.nn.max_pool2d(x, 3, 2, "VALID")], -1)
        branches = ("1x1:192", "0a_1x1:192 0b_1x3:224 0c_3x1:256")
        for number in range(1, 10):
            x = tf.nn.relu(self.residual(x, f"Repeat_2/block8_{number}", 0.2, *branches))
        x = self.chain(self.residual(x, "Block8", 1.0, *branches), "", "7b_1x1:1536")
        head = "InceptionResnetV2/Logits/Logits"
        return tf.reduce_mean(x, [1, 2]) @ self.weights(head, 1536, CLASSES) + self.biases(head, CLASSES)


@pytest.fixture(scope="module")
def inputs():
    lightness = np.random.default_rng(1).uniform(-1, 1, (2, 299, 299, 1)).astype(np.float32)
    return np.repeat(lightness, 3, axis=-1)


@pytest.fixture(scope="module")
def reference(inputs):
    network = Reference(0)
    network.expected = network(inputs).numpy()
    return network


LOAD = """
import sys
from trainer.models import extractor
print(sum(float(abs(each).sum()) for each in extractor.create(sys.argv[1], int(sys.argv[2])).get_weights()))
"""

UNUSED = {"InceptionResnetV2/AuxLogits/Logits/weights": np.zeros((768, CLASSES)), "global_step": np.int64(7)}


def save(path, variables, version=2):
    names, values = list(variables), [tf.constant(value) for value in variables.values()]
    if version == 1:
        tf.raw_ops.Save(filename=str(path), tensor_names=names, data=values)
    else:
        tf.raw_ops.SaveV2(prefix=str(path), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)
    return str(path)


@pytest.mark.parametrize("version", [1, 2])
def test_the_scores_are_those_of_the_network_that_the_weights_belong_to(version, reference, inputs, tmp_path):
    """With what the checkpoint holds besides; after another model, with which Keras's numbers of layers go on."""
    keras.Sequential([keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization()])
    path = save(tmp_path / "inception_resnet_v2_2016_08_30.ckpt", {**reference.variables, **UNUSED}, version)
    model = extractor.create(path, CLASSES)
    assert not model.trainable
    found = model(inputs, training=False).numpy()
    assert found.std() > 0.1
    np.testing.assert_allclose(found, reference.expected, rtol=1e-3, atol=1e-3 * np.abs(reference.expected).max())


def test_a_checkpoint_on_cloud_storage(reference, tmp_path):
    model = extractor.create(save(tmp_path / "saved/model.ckpt", reference.variables), CLASSES)
    with cloud_storage.running(tmp_path, "bucket") as cloud:
        cloud.upload(tmp_path / "saved", "bucket", "slim/")
        result = subprocess.run(
            [sys.executable, "-c", LOAD, "gs://bucket/slim/model.ckpt", str(CLASSES)],
            env={**os.environ, **cloud.environment}, capture_output=True, text=True,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == sum(float(abs(each).sum()) for each in model.get_weights())


def without(variables, name):
    return {key: value for key, value in variables.items() if key != name}


@pytest.mark.slow
def test_what_does_not_fit_is_named(reference, tmp_path):
    weights = "InceptionResnetV2/Repeat_1/block17_7/Branch_1/Conv2d_0b_1x7/weights"
    turned = reference.variables[weights].transpose(1, 0, 2, 3)
    stray = "InceptionResnetV2/Mixed_9z/weights"
    for name, variables, message in (
        ("missing", without(reference.variables, weights), f"has no variable '{weights}'"),
        ("stray", {**reference.variables, stray: np.zeros(3)}, f"has a variable '{stray}' that TF-Slim's"),
        ("turned", {**reference.variables, weights: turned}, rf"'{weights}' is of shape \[7, 1, .* has \[1, 7, "),
    ):
        with pytest.raises(UserError, match=message):
            extractor.create(save(tmp_path / name, variables), CLASSES)
    with pytest.raises(UserError, match=r"biases' is of shape \[1001\], .*; set model.feature_classes to 1001"):
        extractor.create(save(tmp_path / "whole", reference.variables), 1000)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(UserError, match="text.ckpt is not a TensorFlow checkpoint: "):
        extractor.create(str(tmp_path / "text.ckpt"), CLASSES)
