"""Initial weights that depend on a seed and on nothing else."""

import random

import keras


def draw_weights(network: keras.Model, seed: int) -> None:
    """Draws every kernel of a network anew, in the order of its layers; biases and the like stay as they are.

    Keras takes the seed of a layer from Python's global generator, from which the other threads of a process draw as
    well: those of a Beam worker do.

    Args:
        network: its layers have at most a kernel to be drawn, and no layers of their own.
        seed: the same one gives the same weights.
    """
    seeds = random.Random(seed)
    for layer in network.layers:
        if hasattr(layer, "kernel_initializer"):
            settings = {**layer.kernel_initializer.get_config(), "seed": seeds.randrange(2**31)}
            initializer = type(layer.kernel_initializer).from_config(settings)
            layer.kernel.assign(initializer(layer.kernel.shape, layer.kernel.dtype))
