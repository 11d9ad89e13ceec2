"""One individual product: everything that stays the same in all of its pictures.

A product is a function of its category and instance number alone. Instance numbers are split by use, so that no model
is judged on its training data: the base model is trained on BASE_INSTANCES and the scorers on SCORER_INSTANCES. Tests
and concepts use numbers from HELD_OUT upwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfusion_ops.mini.world.colors import Rgb, shade
from perfusion_ops.mini.world.vocabulary import CATEGORIES, COLORS, PATTERNS, Look

BASE_INSTANCES = range(1_000_000)
SCORER_INSTANCES = range(1_000_000, 2_000_000)
HELD_OUT = 10_000_000

_STREAM = 77  # products and scenes of the same number have different random streams
_PATTERN_SHARES = (0.3, 0.2, 0.17, 0.13, 0.1, 0.1)
_LIGHT = frozenset({"orange", "yellow", "pink", "white"})


@dataclass(frozen=True)
class Product:
    """An individual product.

    Attributes:
        look: What words say about it.
        instance: Its number within the category.
        primary: RGB of the body.
        secondary: RGB of the second colour.
        accent: RGB of the third colour.
        shape: Eight numbers in 0..1 that the category's drawing reads proportions from.
        frequency: Repeats of the pattern per unit of the product's own coordinates.
        phase: How far the pattern's middle lies from the product's to the left and above, in repeats.
    """

    look: Look
    instance: int
    primary: Rgb
    secondary: Rgb
    accent: Rgb
    shape: tuple[float, ...]
    frequency: float
    phase: tuple[float, float]


def product(
    category: str, instance: int, *, colors: tuple[str, str, str] | None = None, pattern: str | None = None
) -> Product:
    """The product number `instance` of `category`, with its colours or pattern replaced where they are given.

    Args:
        category: One of CATEGORIES.
        instance: Any number from 0.
        colors: Names of the body's, the second and the third colour, all different.
        pattern: One of PATTERNS.

    Raises:
        ValueError: an unknown name, a negative number or a repeated colour.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category {category!r} is not in the product world: use one of {', '.join(CATEGORIES)}")
    if instance < 0:
        raise ValueError(f"instance {instance} is negative: use a number from 0")
    if pattern is not None and pattern not in PATTERNS:
        raise ValueError(f"pattern {pattern!r} is not in the product world: use one of {', '.join(PATTERNS)}")
    if colors is not None and (len(set(colors)) != 3 or not set(colors) <= set(COLORS)):
        raise ValueError(f"colors {colors!r} must be three different ones of {', '.join(COLORS)}")
    rng = np.random.default_rng([CATEGORIES.index(category), instance, _STREAM])
    order = rng.permutation(len(COLORS))
    drawn_pattern = PATTERNS[int(rng.choice(len(PATTERNS), p=_PATTERN_SHARES))]
    primary, secondary, accent = colors or contrasting([COLORS[int(place)] for place in order])
    return Product(
        look=Look(category, primary, secondary, accent, pattern or drawn_pattern),
        instance=instance,
        primary=shade(primary, rng),
        secondary=shade(secondary, rng),
        accent=shade(accent, rng),
        shape=tuple(rng.random(8).tolist()),
        frequency=float(rng.uniform(1.45, 1.75)),
        phase=(float(rng.uniform(-0.08, 0.08)), float(rng.uniform(-0.08, 0.08))),
    )


def contrasting(names: Sequence[str]) -> tuple[str, str, str]:
    """Three colours of a product: the first of `names`, the next that contrasts with it, and the next after that.

    Args:
        names: three or more different names of COLORS, at least one light and one dark.

    Raises:
        StopIteration: all are light, or all dark.
    """
    primary, *others = names
    secondary = next(name for name in others if (name in _LIGHT) != (primary in _LIGHT))
    return primary, secondary, next(name for name in others if name != secondary)
