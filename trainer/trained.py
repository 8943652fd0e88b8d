"""The model of a run, as it was saved last."""

import dataclasses

from ml_collections import ConfigDict

from pipeline.errors import UserError
from pipeline.manifest import Manifest
from trainer import models, workdir
from trainer.checkpoints import Checkpoints
from trainer.models.base import ColorModel


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model: the step of its checkpoint, its configuration, and the manifest of its dataset."""

    model: ColorModel
    step: int
    config: ConfigDict
    dataset: Manifest


def load(work_dir: str) -> Trained:
    """Loads the last checkpoint of a run.

    Raises:
        UserError: there is no run, no checkpoint, or one that cannot be read.
    """
    config, dataset = workdir.load(work_dir)
    checkpoints = Checkpoints(work_dir)
    step = None
    if checkpoints.steps():  # before a model is built
        model = models.create(config.model, config.seed)
        step = checkpoints.restore(model.network)
    if step is None:
        raise UserError(f"--workdir={work_dir} holds no checkpoint yet; one is written after each epoch")
    return Trained(model, step, config, dataset)
