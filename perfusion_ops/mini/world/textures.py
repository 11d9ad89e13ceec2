"""Gentle variation for surfaces: one fixed bank of soft noise, from which a background takes a random window.

Its finest detail is about eight pixels wide: a model cannot learn noise that changes from pixel to pixel.
"""

from functools import cache

import numpy as np
from PIL import Image

# The base model was trained on the texture of this seed.
_BANK_SEED = 12345
_BANK_SIDE = 256


@cache
def _bank() -> np.ndarray:
    rng = np.random.default_rng(_BANK_SEED)

    def octave(cells: int) -> np.ndarray:
        grid = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        return np.asarray(grid.resize((_BANK_SIDE, _BANK_SIDE), Image.Resampling.BICUBIC))

    soft = octave(8) * 0.5 + octave(16) * 0.3 + octave(32) * 0.2
    return soft - soft.mean()


def noise(side: int, rng: np.random.Generator) -> np.ndarray:
    """A random (side, side) float32 window of about -0.5..0.5 around zero. `side` is below 256; do not write to it."""
    top, left = rng.integers(0, _BANK_SIDE - side, 2)
    return _bank()[top : top + side, left : left + side]
