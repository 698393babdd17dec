"""Heat maps as pictures: confidences in false colours, alone and over the picture that they belong to.

From black through red and yellow to white, so that a higher confidence is also the brighter pixel. Colours go by the
confidence itself, 0 to 1, and are not stretched: a map in which nothing is found is dark.
"""

import numpy as np

from ..masks import erode

MOST = 0.7  # opacity of a confidence of 1 over a picture


def paint(confidence: np.ndarray) -> np.ndarray:
    """Confidences (H, W), 0 to 1 -> uint8 RGB (H, W, 3): red, then green, then blue rise from 0 to 255."""
    rise = 3 * confidence[..., None] - np.arange(3, dtype=np.float32)
    return (rise.clip(0, 1) * 255).round().astype(np.uint8)


def blend(image: np.ndarray, confidence: np.ndarray, above: np.ndarray) -> np.ndarray:
    """False colours over uint8 RGB (H, W, 3), more opaque where they are brighter, and the outline of a mask in white.

    above: bool (H, W), the pixels above the threshold.
    """
    opacity = MOST * confidence[..., None].clip(0, 1)
    out = (image * (1 - opacity) + paint(confidence) * opacity).round().astype(np.uint8)
    out[above & ~erode(above, 1 + max(image.shape[:2]) // 500)] = 255
    return out
