"""Intervals, differences and fronts of plain arrays. Pure functions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.config import Frozen

Floats = NDArray[np.floating]

_COVERED = 0.95


class Interval(Frozen):
    """A mean and the interval that covers it with 95 %, by bootstrap over products."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Mean and bounds, three digits each."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Sequence[float] | Floats, *, resamples: int, seed: int = 0) -> Interval:
    """The mean of one value per product, and the percentiles of the means of resampled products.

    Args:
        values: (P,), one or more; NaN is a product without a value.
        resamples: how many times P products are drawn with replacement.
        seed: equal numbers of products are resampled alike, so that paired values keep their pairs.

    Raises:
        ValueError: no product has a value.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        raise ValueError("no product has a value: there is no interval")
    chosen = np.random.default_rng(seed).integers(0, len(known), (resamples, len(known)))
    means = known[chosen].mean(1)
    low, high = np.quantile(means, [(1 - _COVERED) / 2, (1 + _COVERED) / 2])
    return Interval(mean=float(known.mean()), low=float(low), high=float(high))


def paired(ours: Floats, theirs: Floats, *, resamples: int, seed: int = 0) -> Interval:
    """The interval of the mean difference of two values per product, (P,) each, in the same order."""
    return bootstrap(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64), resamples=resamples, seed=seed)


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """The area between the origin and the front of points with coordinates from 0: what one of them dominates."""
    area, height = 0.0, 0.0
    for across, up in sorted(points, reverse=True):
        if up > height:
            area += across * (up - height)
            height = up
    return area


def harmonic_mean(parts: Sequence[float]) -> float:
    """Of numbers from 0; 0 as soon as one of them is."""
    return 0.0 if min(parts) <= 0 else len(parts) / sum(1 / part for part in parts)


def ranks(values: Sequence[float]) -> list[int]:
    """The place of each value, 1 for the largest; equal values share the better place."""
    return [1 + sum(other > value for other in values) for value in values]
