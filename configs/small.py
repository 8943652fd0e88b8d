r"""A small network on some hundred pictures, without a GPU and without weights of an extractor.

    python -m beam_jobs.preprocess --config=configs/small.py --source=images:PICTURES --output=DATA
    python -m beam_jobs.embed --config=configs/small.py --data=DATA
    python -m trainer.train --config=configs/small.py --data=DATA --workdir=RUN
    python -m trainer.evaluate --workdir=RUN --data=DATA

On 617 pictures of ImageNet, of which a quarter is held out, on two cores: HOW LONG
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """The network of `demo`, trained for longer, and a quarter of the pictures to measure on."""
    config = demo.get_config()
    config.dataset.validation_fraction = 0.25
    config.learning_rates = (1e-3, 1e-4)
    config.epochs_per_learning_rate = (60, 15)
    config.steps_per_log = 50
    return config
