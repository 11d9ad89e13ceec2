"""The grid of a sweep: some dials of the sampling settings, and the values of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from perfusion_ops.config import Recipe, SamplingConfig
from perfusion_ops.errors import UsageError
from pipeline.contract.errors import RowError
from pipeline.manifest.cells import setting
from pipeline.manifest.points import DIALS

MAX_POINTS = 100  # each point renders the whole plan once

# What is swept by default: the dial of the recipe from weak to strong, and the guidance.
_DEFAULTS: Mapping[Recipe, Mapping[str, tuple[float, ...]]] = {
    "paper": {"bias": (0.4, 0.6, 0.8), "guidance": (3.0, 4.5, 7.0)},
    "offset": {"strength": (0.6, 1.0, 1.4), "guidance": (3.0, 4.5, 7.0)},
}


class SweepError(UsageError):
    """A sweep cannot start or cannot choose; the message says what to change."""


@dataclass(frozen=True)
class Grid:
    """Values by dial; a point has one value of each dial."""

    dials: Mapping[str, tuple[Any, ...]]

    @property
    def points(self) -> tuple[dict[str, Any], ...]:
        """All points; the last dial changes fastest."""
        return tuple(dict(zip(self.dials, values, strict=True)) for values in product(*self.dials.values()))


def make_grid(dials: Mapping[str, Sequence[Any]]) -> Grid:
    """A checked grid.

    Args:
        dials: values by name; names are those of `pipeline.manifest.points.DIALS`.

    Raises:
        SweepError: a name or a value is not allowed, a value is there twice, or there are too many points.
    """
    checked: dict[str, tuple[Any, ...]] = {}
    for name, values in dials.items():
        if name not in DIALS:
            raise SweepError(f"{name!r} cannot be swept: the dials are {', '.join(DIALS)}")
        check = setting(SamplingConfig, name)
        try:
            checked[name] = tuple(check(name, value) for value in values)
        except RowError as error:
            raise SweepError(f"--dial {name}: {error}") from error
        if not checked[name] or len(set(checked[name])) < len(checked[name]):
            raise SweepError(f"--dial {name} has no value, or one twice: give each value once")
    points = math.prod(map(len, checked.values()))
    if not checked or points > MAX_POINTS:
        raise SweepError(f"the grid has {points if checked else 0} points: give 1 to {MAX_POINTS}")
    return Grid(checked)


def default_grid(recipe: Recipe, sampling: SamplingConfig) -> Grid:
    """The grid for concepts of a recipe; it has the point of the present settings too."""
    return Grid({name: tuple(sorted({*values, getattr(sampling, name)})) for name, values in _DEFAULTS[recipe].items()})
