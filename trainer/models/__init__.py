"""The models that a configuration can name. Adding one is adding a class to `MODELS`."""

from ml_collections import ConfigDict

from pipeline.errors import UserError
from trainer.models.base import ColorModel
from trainer.models.extractor import Extractor
from trainer.models.initial import draw_weights
from trainer.models.koalarization import Koalarization

MODELS: dict[str, type[ColorModel]] = {"koalarization": Koalarization}


def create_extractor(config: ConfigDict, seed: int) -> Extractor:
    """Builds the extractor alone, with the weights that `create` gives it.

    Args:
        config: the `model` fields of a configuration.
        seed: of the weights, where they are random.

    Raises:
        UserError: the fields are no good, or the weights cannot be had.
    """
    return Extractor(config, seed)


def find(name: str) -> type[ColorModel]:
    """The model of a name.

    Raises:
        UserError: there is none.
    """
    if name not in MODELS:
        raise UserError(f"model.name is '{name}'; choose one of {', '.join(MODELS)}")
    return MODELS[name]


def create(config: ConfigDict, seed: int, features: bool = False) -> ColorModel:
    """Builds the model that `config.name` names; call it within the scope of the distribution strategy.

    Args:
        config: the `model` fields of a configuration.
        seed: of the initial weights; the same seed gives the same weights.
        features: every batch will have stored features; build no extractor.

    Raises:
        UserError: an unknown name, or fields that the model refuses.
    """
    model = find(config.name)(config, seed, features)
    draw_weights(model.network, seed)
    return model
