"""How alike a picture and a true drawing are, from 0 to 1: colours, pattern, edges. Pure functions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.mini.oracle.search import Drawn, blurred

Floats = NDArray[np.float32]

_SOFT = 2.0  # pixels: what is coarser is colour, what is finer is pattern
_FAR = 45.0  # CIE 1976 colour difference that counts as another colour


def color_score(picture: Floats, drawn: Drawn) -> float:
    """1 minus the mean colour difference of both, blurred, in units of another colour; never below 0."""
    inside = drawn.cover > 0.5
    if not inside.any():
        return 0.0
    soft = [_lab(blurred(image, drawn.cover, _SOFT)) for image in (picture, drawn.colors)]
    difference = np.sqrt(((soft[0] - soft[1]) ** 2).sum(2))
    return float(np.clip(1 - difference[inside].mean() / _FAR, 0, 1))


def pattern_score(picture: Floats, drawn: Drawn) -> float:
    """2 <a, b> / (<a, a> + <b, b>) of what is finer than the blur, inside; never below 0.

    Blur makes a smaller than b, another pattern makes them unlike, added detail makes a larger: each lowers it.
    """
    inside = drawn.cover > 0.95
    fine = [image - blurred(image, drawn.cover, _SOFT) for image in (picture, drawn.colors)]
    return _dice(fine[0][inside], fine[1][inside])


def edge_score(picture: Floats, drawn: Drawn) -> float:
    """The same for gradients around the outline: of the picture, and of the picture with the drawing in it."""
    pasted = picture * (1 - drawn.cover[:, :, None]) + drawn.colors * drawn.cover[:, :, None]
    ring = _spread(drawn.cover > 0.5, 2) & ~_shrunk(drawn.cover > 0.5, 2)
    slopes = [np.stack([np.gradient(image, axis=axis)[ring] for axis in (0, 1)]) for image in (picture, pasted)]
    return _dice(slopes[0], slopes[1])


def _dice(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    energy = float((one**2).sum() + (other**2).sum())
    # Two surfaces without any detail are alike.
    return float(np.clip((2 * (one * other).sum() + 1e-3) / (energy + 1e-3), 0, 1))


def _spread(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
    return mask


def _shrunk(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    return ~_spread(~mask, steps)


def _lab(rgb: Floats) -> Floats:
    """CIE L*a*b* of sRGB in 0..1, white point D65."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clip(0, 1) + 0.055) / 1.055) ** 2.4)
    xyz = (
        linear
        @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]], np.float32)
        / np.array([0.9505, 1.0, 1.089], np.float32)
    )
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], axis=-1
    ).astype(np.float32)


def mean_score(parts: Sequence[float]) -> float:
    """Geometric mean: one part that is wholly wrong cannot be made up for."""
    return float(np.prod(parts) ** (1 / len(parts)))
