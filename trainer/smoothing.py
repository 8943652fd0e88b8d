"""Colors that stay with the things in a video: a network that sees frame by frame gives them new ones each time."""

import cv2
import numpy as np

_LEAST_SIDE = 32  # pixels; smaller pictures have too little in them to be followed
_MISMATCH = 12.0  # levels of gray by which a pixel and what it is taken for may well differ, in grain or shadow
_CUT = 0.5  # mean trust below which nothing is followed: the scene is another


class Smoother:
    """Follows what a video shows by optical flow, and gives it a mixture of its last color and its new one.

    Where the gray of a pixel is not that of the place it is followed to, it is something else, and its new color is
    taken as it is; so are all at a cut. Flow: Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (2016).

    Args:
        strength: the part of the last color, in [0, 1); 0 changes nothing.
    """

    def __init__(self, strength: float):
        self._strength = strength
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_FAST)
        self._gray: np.ndarray | None = None
        self._ab: np.ndarray | None = None

    def smooth(self, rgb: np.ndarray, ab: np.ndarray) -> np.ndarray:
        """Mixes the color of the next frame with that of the ones before.

        Args:
            rgb: uint8 [height, width, 3]: the frame, of which the gray is looked at.
            ab: floating [h, w, 2]: its predicted a and b, in any size.

        Returns:
            float32 [h, w, 2].
        """
        ab = ab.astype(np.float32)
        height, width = ab.shape[:2]
        if not self._strength or min(height, width) < _LEAST_SIDE:
            return ab
        gray = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (width, height), interpolation=cv2.INTER_AREA)
        if self._gray is not None and self._ab is not None:
            ab = self._mix(gray, ab, self._gray, self._ab)
        self._gray, self._ab = gray, ab
        return ab

    def _mix(self, gray: np.ndarray, ab: np.ndarray, last_gray: np.ndarray, last_ab: np.ndarray) -> np.ndarray:
        height, width = gray.shape
        places = self._flow.calc(gray, last_gray, None)  # (h, w, 2): how far each pixel has come, in x and y
        places += np.dstack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)))
        followed = cv2.remap(last_gray, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        trust = np.exp(-np.square((followed.astype(np.float32) - gray) / _MISMATCH))
        if trust.mean() < _CUT:
            return ab
        last = cv2.remap(last_ab, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return ab + (self._strength * trust)[..., None] * (last - ab)
