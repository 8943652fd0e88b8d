"""Fixtures: archives cut from real photographs, datasets made from them by the real job, and a model small enough."""

import trainer  # noqa: F401, I001  # loads TensorFlow without its noise

import shutil

import keras
import pytest
import tensorflow as tf

from beam_jobs import preprocess
from configs import demo
from pipeline import cli, reader
from pipeline.example import LAYOUTS
from tests import helpers
from tools import photographs
from trainer import evaluate, models, replicas
from trainer.models import extractor

# Two replicas on any machine; set before anything uses a device.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.experimental.enable_op_determinism()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A directory with `archives/` in Places365's and ImageNet's layouts, and `held_out/`."""
    folder = tmp_path_factory.mktemp("pictures")
    photographs.write(str(folder))
    return folder


@pytest.fixture(scope="session")
def make_dataset(pictures):
    """Runs the preprocessing job on the archives; extra arguments go to its command line."""

    def make(output, *extra):
        argv = [
            "preprocess",
            "--config=configs/demo.py",
            f"--source=places365:{pictures}/archives/val_256.tar",
            f"--source=imagenet:{pictures}/archives/ILSVRC2012_img_train.tar",
            f"--output={output}",
            *extra,
        ]
        assert cli.run(preprocess.main, argv) == 0
        return output

    return make


@pytest.fixture(scope="session")
def datasets(make_dataset, tmp_path_factory):
    """The demo's dataset in each layout, by name."""
    folders = {name: make_dataset(tmp_path_factory.mktemp(name), f"--config.dataset.layout={name}") for name in LAYOUTS}
    return {name: reader.open_dataset(str(folder)) for name, folder in folders.items()}


@pytest.fixture(params=LAYOUTS)
def dataset(request, datasets):
    """The demo's dataset, in one layout after the other."""
    return datasets[request.param]


@pytest.fixture(scope="session")
def compact_dataset(make_dataset, tmp_path_factory):
    """A dataset of all sizes that are awkward: 7 shards, counts that no batch divides."""
    folder = make_dataset(
        tmp_path_factory.mktemp("awkward"), "--config.dataset.layout=compact", "--config.dataset.train_shards=7"
    )
    return reader.open_dataset(str(folder))


@pytest.fixture(scope="session")
def two_replicas():
    """One strategy for all tests: the collectives of two in a process would mistake each other's tensors."""
    return replicas.create_strategy(2)


@pytest.fixture
def tiny_extractor(monkeypatch):
    """Replaces Inception-ResNet-v2, which takes 0.15 s for a picture, by one convolution of the same interface."""

    monkeypatch.setattr(extractor, "create", helpers.tiny_extractor)


def small_config():
    config = demo.get_config()
    config.model.width_multiplier = 1 / 16
    config.batch_size = 4
    config.learning_rates = (1e-3, 1e-4)
    config.epochs_per_learning_rate = (1, 1)
    config.panel_pictures = 2
    return config


@pytest.fixture
def config(tiny_extractor):
    """The demo's configuration with the network of the paper at a sixteenth of its width."""
    return small_config()


@pytest.fixture(scope="session")
def finished(compact_dataset, tmp_path_factory):
    """A run of `config` on `compact_dataset` that nothing stopped: its folder, and its state at the end; to look at."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "create", helpers.tiny_extractor)
        return folder, helpers.train(small_config(), compact_dataset, folder)


@pytest.fixture(scope="session")
def evaluated(finished, compact_dataset, tmp_path_factory):
    """A run that `trainer.evaluate` has seen, to look at."""
    folder = shutil.copytree(finished[0], tmp_path_factory.mktemp("evaluated") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "create", helpers.tiny_extractor)
        evaluate.evaluate(str(folder), compact_dataset.directory)
    return folder


@pytest.fixture
def run(tiny_extractor, finished):
    """The folder of a run that is finished, to use."""
    return finished[0]


@pytest.fixture
def finished_copy(finished, tmp_path):
    """The folder of a run that is finished, to change."""
    return shutil.copytree(finished[0], tmp_path / "finished")


@pytest.fixture
def toy_model(monkeypatch):
    """A second model behind the same interface, registered under the name "toy"."""
    monkeypatch.setitem(models.MODELS, "toy", helpers.ToyModel)


@pytest.fixture
def double_precision(monkeypatch):
    """The network in float64: what differs then is no rounding."""
    monkeypatch.setitem(models.MODELS, "koalarization", helpers.DoubleKoalarization)
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")
