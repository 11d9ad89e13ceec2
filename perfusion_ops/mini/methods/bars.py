"""What a measurement must show, stated once: at the CI size that everything works, at the full size the comparison."""

from collections.abc import Callable, Mapping, Sequence

from pydantic import computed_field

from perfusion_ops.compare.intervals import Interval, ranks
from perfusion_ops.config import Frozen
from perfusion_ops.mini.methods.summary import FRONTS, Line, dominated

BEATEN = ("textual-inversion", "custom-diffusion")
STRONG = ("lora-r16", "dreambooth", "dreambooth-prior")
REAL_AT_LEAST = {"overall": 0.9, "nearest": 0.9, "context": 0.97}
IDENTITY_OVER_WORD = 0.1
SMALLER = 25.0
HYPERVOLUME = {4: 1.10, 1: 1.15}
RANKS_ALIKE = 0.9

Difference = Callable[[Line, Line, str], Interval]


class Bar(Frozen):
    """One bar: `value` must be at least `bar`."""

    name: str
    value: float
    bar: float

    @computed_field
    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.value >= self.bar


def working(lines: Mapping[str, Line], real: Line) -> list[Bar]:
    """That the scores know real renders, and that every method learns its product."""
    # What is not trained looks at no photo.
    label = f"set {real.set}, {min(each.photos for each in lines.values())} photos"
    found = [
        Bar(name=f"{label}: real {name}", value=real.figures[name].mean, bar=bar)
        for name, bar in REAL_AT_LEAST.items()
        if name in real.figures
    ]
    floor = lines["word"].figures["identity"].mean
    return found + [
        Bar(
            name=f"{label}: {name} identity over the word",
            value=each.figures["identity"].mean - floor,
            bar=IDENTITY_OVER_WORD,
        )
        for name, each in lines.items()
        if each.numbers
    ]


def comparison(ours: Line, rivals: Mapping[str, Line], difference: Difference) -> list[Bar]:
    """Our best method against its rivals, all on one set and learned from the same number of photos.

    Args:
        ours: the line of our best method.
        rivals: lines of the others by name.
        difference: paired, ours minus theirs.
    """
    label = f"set {ours.set}, {ours.photos} photos"
    found = []
    for name in BEATEN:
        found += [
            Bar(
                name=f"{label}: points of {name} dominated by {front}",
                value=dominated(rivals[name].points[front], ours.points[front]),
                bar=1.0,
            )
            for front in FRONTS
        ]
    for name in STRONG:
        # Not below: the interval of the difference does not lie below zero as a whole.
        found += [
            Bar(
                name=f"{label}: {front} against {name}, upper end",
                value=difference(ours, rivals[name], front).high,
                bar=0.0,
            )
            for front in FRONTS
        ]
        obeyed = difference(ours, rivals[name], "obeyed").low > 0
        smaller = rivals[name].numbers_at_sd15 / ours.numbers_at_sd15
        found.append(
            Bar(
                name=f"{label}: obedience above {name}, or as many times smaller",
                value=SMALLER if obeyed else smaller,
                bar=SMALLER,
            )
        )
    best = {front: max(each.hypervolume[front] for each in rivals.values()) for front in FRONTS}
    return found + [
        Bar(
            name=f"{label}: hypervolume by {front} over the best rival's",
            value=ours.hypervolume[front] / best[front] if best[front] else 0.0,
            bar=HYPERVOLUME.get(ours.photos, 1.0),
        )
        for front in FRONTS
    ]


def stable(first: Sequence[Line], second: Sequence[Line]) -> list[Bar]:
    """That two sets rank the methods alike: the share of pairs of methods in the same order, by each front's identity.

    Args:
        first: methods on one set.
        second: the same methods in the same order on another.
    """
    found = []
    for front in FRONTS:
        one, other = (ranks([line.figures[front].mean for line in lines]) for lines in (first, second))
        pairs = [(i, j) for i in range(len(one)) for j in range(i)]
        alike = [(one[i] - one[j]) * (other[i] - other[j]) >= 0 for i, j in pairs]
        share = sum(alike) / len(alike) if alike else 1.0
        found.append(Bar(name=f"pairs of methods ranked alike by {front}", value=share, bar=RANKS_ALIKE))
    return found
