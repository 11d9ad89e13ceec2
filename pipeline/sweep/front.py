"""Which point of a sweep is best for a concept: its front of obedience and identity, and the choice on it.

Obedience is the mean similarity of the renders to their prompts, identity their mean similarity to the photos. No point
of the front is surpassed in one of them without a loss in the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.sweep.grid import SweepError

Rule = Literal["knee", "harmonic", "min-identity"]


@dataclass(frozen=True)
class Measured:
    """One concept at one point of the grid.

    Attributes:
        point: number of the point in the grid.
        obedience: mean `text_similarity`.
        identity: mean `image_similarity`.
        renders: number of renders of both means.
    """

    point: int
    obedience: float
    identity: float
    renders: int


@dataclass(frozen=True)
class Select:
    """How a point is chosen; `least` is the identity that `min-identity` asks for."""

    rule: Rule = "knee"
    least: float = 0.0

    def __str__(self) -> str:
        return f"{self.rule}={self.least:g}" if self.rule == "min-identity" else self.rule


@dataclass(frozen=True)
class Choice:
    """The chosen point, and whether it does what was asked."""

    chosen: Measured
    met: bool = True


def parse_select(text: str) -> Select:
    """Read `knee`, `harmonic` or `min-identity=X`.

    Raises:
        SweepError: it is none of them.
    """
    rule, equals, number = text.partition("=")
    if rule in ("knee", "harmonic") and not equals:
        return Select(rule)
    try:
        least = float(number)
    except ValueError:
        least = 2.0
    if rule != "min-identity" or not -1 <= least <= 1:
        raise SweepError(f"--select is {text!r}: give knee, harmonic or min-identity=X with X from -1 to 1")
    return Select("min-identity", least)


def front(points: Sequence[Measured]) -> list[Measured]:
    """The points that no other point surpasses, by rising obedience; of equal points the first one."""
    kept: list[Measured] = []
    for each in sorted(points, key=lambda one: (-one.obedience, -one.identity, one.point)):
        if not kept or each.identity > kept[-1].identity:
            kept.append(each)
    return kept[::-1]


def choose(points: Sequence[Measured], select: Select) -> Choice:
    """The best point of one concept. Of equally good ones, the one with the higher identity.

    - `knee`: on the front, the farthest point from the line between its ends, both axes scaled to 0..1.
    - `harmonic`: the highest harmonic mean of obedience and identity; negative similarities count as 0.
    - `min-identity`: the most obedient of the points that reach `least`; if none does, the one with the most identity.

    Args:
        points: at least one.
        select: the rule.
    """
    best = front(points)
    if select.rule == "min-identity":
        enough = [each for each in best if each.identity >= select.least]
        return Choice(enough[-1]) if enough else Choice(best[0], met=False)
    if select.rule == "harmonic":
        return Choice(max(best, key=_harmonic))
    low, high = best[0], best[-1]

    def above_line(each: Measured) -> float:
        if low is high:
            return 0.0
        return (each.obedience - low.obedience) / (high.obedience - low.obedience) + (each.identity - high.identity) / (
            low.identity - high.identity
        )

    return Choice(max(best, key=lambda each: (round(above_line(each), 9), each.identity)))


def _harmonic(each: Measured) -> tuple[float, float]:
    a, b = max(each.obedience, 0.0), max(each.identity, 0.0)
    return (2 * a * b / (a + b) if a + b else 0.0, each.identity)
