"""TensorFlow is loaded when it is needed, and then without its noise."""

import os
import subprocess
import sys

import pytest

LOADED = "import sys; assert 'tensorflow' in sys.modules"
NOT_LOADED = "import sys; assert 'tensorflow' not in sys.modules, 'loaded'"


def said(program):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.parametrize(
    "program",
    [
        f"import trainer, importlib.util; importlib.util.find_spec('tensorflow'); import keras; {LOADED}",
        f"import trainer; {NOT_LOADED}; import keras; {LOADED}",
        f"from pipeline import loading; {NOT_LOADED}; assert loading.tensorflow() is loading.tensorflow(); {LOADED}",
        f"import trainer, tensorflow as tf; {LOADED}; assert tf.__spec__.origin; tf.constant(1)",
    ],
)
def test_tensorflow_is_quiet_whoever_loads_it(program):
    assert said(program) == ""


def test_the_noise_is_there_without_us():
    """Else the test above says nothing."""
    assert "TensorFlow" in said("import tensorflow as tf; tf.constant(1)")


def test_commands_about_machines_need_no_tensorflow():
    said(f"import trainer.launch.__main__; {NOT_LOADED}")
