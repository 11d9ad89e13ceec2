"""Noise for surfaces: one fixed bank of three grains, from which a background takes a random window."""

from functools import cache
from typing import Literal

import numpy as np
from PIL import Image

Grain = Literal["soft", "mid", "fine"]

# The base model knows the textures that this seed gives.
_BANK_SEED = 12345
_BANK_SIDE = 256


@cache
def _bank() -> dict[Grain, np.ndarray]:
    rng = np.random.default_rng(_BANK_SEED)

    def octave(cells: int) -> np.ndarray:
        grid = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        return np.asarray(grid.resize((_BANK_SIDE, _BANK_SIDE), Image.Resampling.BICUBIC))

    soft = octave(8) * 0.5 + octave(16) * 0.3 + octave(32) * 0.2
    mid = octave(32) * 0.5 + octave(64) * 0.5
    fine = rng.random((_BANK_SIDE, _BANK_SIDE)).astype(np.float32)
    return {"soft": soft - soft.mean(), "mid": mid - 0.5, "fine": fine - 0.5}


def noise(grain: Grain, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random (side, side) float32 window of about -0.5..0.5 around zero. `side` is below 256; do not write to it."""
    top, left = rng.integers(0, _BANK_SIDE - side, 2)
    return _bank()[grain][top : top + side, left : left + side]
