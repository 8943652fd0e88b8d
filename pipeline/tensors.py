"""The three tensors of one picture: what a dataset stores and what a model reads.

| tensor  | shape         | content                                       | range   |
|---------|---------------|-----------------------------------------------|---------|
| l_224   | [224, 224, 1] | L / 50 - 1: the input of the encoder          | [-1, 1] |
| l_299   | [299, 299, 3] | L / 50 - 1, three times: the extractor's input| [-1, 1] |
| ab_224  | [224, 224, 2] | a / 128, b / 128: the target                  | [-1, 1] |
"""

import numpy as np

from pipeline import color, image
from pipeline.image import ResizeMode

ENCODER_SIZE = 224
EXTRACTOR_SIZE = 299
SHAPES = {
    "l_224": (ENCODER_SIZE, ENCODER_SIZE, 1),
    "l_299": (EXTRACTOR_SIZE, EXTRACTOR_SIZE, 3),
    "ab_224": (ENCODER_SIZE, ENCODER_SIZE, 2),
}
RANGE = (-1.0, 1.0)


def from_image(rgb: np.ndarray, mode: ResizeMode) -> dict[str, np.ndarray]:
    """Computes the tensors of one picture.

    Args:
        rgb: uint8 [height, width, 3], any size.
        mode: how the picture becomes square.

    Returns:
        float32 arrays by name, with the shapes of `SHAPES`; `l_299` is a read-only view that repeats one channel.
    """
    l_224, ab_224 = color.rgb_to_normalized(image.fit(rgb, ENCODER_SIZE, mode))
    l_299 = color.rgb_to_normalized_l(image.fit(rgb, EXTRACTOR_SIZE, mode))[..., None]  # (299, 299, 1)
    return {"l_224": l_224, "l_299": np.broadcast_to(l_299, SHAPES["l_299"]), "ab_224": ab_224}
