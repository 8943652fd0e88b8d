"""The usual way from a picture to its tensors: scikit-image, as the report and most colorizers have it."""

import numpy as np


def tensors(rgb: np.ndarray) -> dict[str, np.ndarray]:
    """What `pipeline.tensors.from_image` makes of a picture, all in float64 and on one core.

    Args:
        rgb: uint8 [H, W, 3].

    Returns:
        `l_224`, `l_299` and `ab_224`, float32, normalized.
    """
    import skimage.color
    import skimage.transform

    small, large = (
        skimage.color.rgb2lab(skimage.transform.resize(rgb, (side, side), anti_aliasing=True)) for side in (224, 299)
    )
    l_299 = np.repeat(large[..., :1] / 50 - 1, 3, axis=-1)
    arrays = {"l_224": small[..., :1] / 50 - 1, "l_299": l_299, "ab_224": small[..., 1:] / 128}
    return {name: array.astype(np.float32) for name, array in arrays.items()}
