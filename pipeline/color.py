"""sRGB and CIE L*a*b* in NumPy, and the scaling that the datasets and the models use.

Definitions: sRGB as in IEC 61966-2-1, white point D65 of the 2 degree observer, L*a*b* as in CIE 15. The constants are
those of scikit-image, with which the results agree to 1e-3.

| quantity     | range                     | normalized              |
|--------------|---------------------------|-------------------------|
| L            | [0, 100]                  | L / 50 - 1 in [-1, 1]   |
| a, b         | about [-108, 99] in sRGB  | a / 128, b / 128        |
"""

import cv2
import numpy as np

_RGB_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])
EPSILON = 0.008856  # the value of t below which f(t) is a straight line
LEAST_F = 0.2068966  # f of it
SLOPE, OFFSET = 7.787, 16.0 / 116.0


def _srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """Undoes the sRGB transfer curve; both sides in [0, 1]."""
    return np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


# A picture has 256 levels, so the transfer curve is a table; the white point is folded into the matrix.
LINEAR_OF_LEVEL = _srgb_to_linear(np.arange(256) / 255.0).astype(np.float32)
RGB_TO_RELATIVE_XYZ = (_RGB_TO_XYZ / _WHITE_D65[:, None]).astype(np.float32)
_F_TO_LAB = np.array([[0, 116, 0, -16], [500, -500, 0, 0], [0, 200, -200, 0]], np.float32)  # the last column is added
LAB_TO_F = np.array([[1 / 116, 1 / 500, 0, 16 / 116], [1 / 116, 0, 0, 16 / 116], [1 / 116, 0, -1 / 200, 16 / 116]])
RELATIVE_XYZ_TO_RGB = np.linalg.inv(_RGB_TO_XYZ) * _WHITE_D65
# The least linear value that rounds to each level, and to none that there is. Powers would take four times as long; in
# cells so small that none holds two of these, one look finds the level but for one.
LEAST_OF_LEVEL = np.append(_srgb_to_linear((np.arange(256) - 0.5) / 255.0), np.inf)
_CELLS = 8192
_LEVEL_OF_CELL = (np.searchsorted(LEAST_OF_LEVEL, np.arange(_CELLS + 1) / _CELLS, side="right") - 1).astype(np.uint8)
_L_SCALE, _AB_SCALE = 50.0, 128.0
_F_TO_NORMALIZED = (_F_TO_LAB / [[_L_SCALE], [_AB_SCALE], [_AB_SCALE]] - [[0, 0, 0, 1], [0] * 4, [0] * 4]).astype(
    np.float32
)


def _relative_xyz(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] to float32 [1, pixels, rows of the matrix], or without the last axis where that is 1."""
    pixels = np.ascontiguousarray(rgb).reshape(1, -1, 3)  # what OpenCV takes for a picture
    return cv2.transform(cv2.LUT(pixels, LINEAR_OF_LEVEL), matrix)


def _f(t: np.ndarray) -> np.ndarray:
    """The CIE function: a cube root with a straight line near black."""
    f = np.cbrt(t)
    np.copyto(f, cv2.addWeighted(t, SLOPE, t, 0, OFFSET), where=t <= EPSILON)  # 20 % faster than `np.where`
    return f


def _check_rgb(rgb: np.ndarray) -> None:
    if rgb.dtype != np.uint8 or rgb.ndim < 1 or rgb.shape[-1] != 3:
        raise ValueError(f"expected uint8 [..., 3], got {rgb.dtype} {list(rgb.shape)}")


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Converts sRGB to L*a*b*.

    Args:
        rgb: uint8 [..., 3].

    Returns:
        float32 [..., 3]: L in [0, 100], a and b in about [-108, 99].

    Raises:
        ValueError: another dtype or another number of channels.
    """
    _check_rgb(rgb)
    f = _f(_relative_xyz(rgb, RGB_TO_RELATIVE_XYZ))
    return cv2.transform(f, _F_TO_LAB).reshape(rgb.shape)


def rgb_to_normalized(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts sRGB to what `normalize_l` and `normalize_ab` make of L*a*b*, in one go.

    Args:
        rgb: uint8 [height, width, 3].

    Returns:
        float32 [height, width, 1], L, and [height, width, 2], a and b; in [-1, 1].

    Raises:
        ValueError: another dtype or another number of channels.
    """
    _check_rgb(rgb)
    f = _f(_relative_xyz(rgb, RGB_TO_RELATIVE_XYZ))
    # Plane by plane: OpenCV takes ten times as long for two channels of three.
    lightness, a, b = (cv2.transform(f, row[None]) for row in _F_TO_NORMALIZED)
    return lightness.reshape(*rgb.shape[:-1], 1), cv2.merge([a, b]).reshape(*rgb.shape[:-1], 2)


def rgb_to_l(rgb: np.ndarray) -> np.ndarray:
    """The first channel of `rgb_to_lab` at half its cost.

    Args:
        rgb: uint8 [..., 3].

    Returns:
        float32 [...]: L in [0, 100].

    Raises:
        ValueError: another dtype or another number of channels.
    """
    return _lightness(rgb, _F_TO_LAB)


def rgb_to_normalized_l(rgb: np.ndarray) -> np.ndarray:
    """The first result of `rgb_to_normalized` at half its cost, without its last axis."""
    return _lightness(rgb, _F_TO_NORMALIZED)


def _lightness(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    _check_rgb(rgb)
    f = _f(_relative_xyz(rgb, RGB_TO_RELATIVE_XYZ[1:2]))
    _, scale, _, offset = matrix[0]
    f *= scale
    f += offset
    return f.reshape(rgb.shape[:-1])


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """Converts L*a*b* to sRGB; colors outside of sRGB are clipped channel by channel.

    Args:
        lab: floating [..., 3]: L in [0, 100], a and b in [-128, 128].

    Returns:
        uint8 [..., 3].

    Raises:
        ValueError: another dtype or another number of channels.
    """
    if not np.issubdtype(lab.dtype, np.floating) or lab.ndim < 1 or lab.shape[-1] != 3:
        raise ValueError(f"expected floating [..., 3], got {lab.dtype} {list(lab.shape)}")
    f = cv2.transform(lab.reshape(1, -1, 3).astype(np.float64), LAB_TO_F)
    np.maximum(f[..., 2], 0.0, out=f[..., 2])
    xyz = f * f * f
    np.copyto(xyz, (f - OFFSET) / SLOPE, where=f <= LEAST_F)
    linear = np.clip(cv2.transform(xyz, RELATIVE_XYZ_TO_RGB), 0.0, 1.0)
    level = _LEVEL_OF_CELL[(linear * _CELLS).astype(np.intp)]
    level += linear >= LEAST_OF_LEVEL[level + np.intp(1)]
    return level.reshape(lab.shape)


def normalize_l(lightness: np.ndarray) -> np.ndarray:
    """L in [0, 100] to [-1, 1]; any shape, dtype kept."""
    return lightness / _L_SCALE - 1.0


def denormalize_l(normalized: np.ndarray) -> np.ndarray:
    """[-1, 1] to L in [0, 100]; any shape, dtype kept. Works on tensors as well."""
    return (normalized + 1.0) * _L_SCALE


def normalize_ab(ab: np.ndarray) -> np.ndarray:
    """a, b in [-128, 128] to [-1, 1]; any shape, dtype kept."""
    return ab / _AB_SCALE


def denormalize_ab(normalized: np.ndarray) -> np.ndarray:
    """[-1, 1] to a, b in [-128, 128]; any shape, dtype kept. Works on tensors as well."""
    return normalized * _AB_SCALE
