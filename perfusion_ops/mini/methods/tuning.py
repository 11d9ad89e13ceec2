"""The plan: which cells are measured, and how the tuning set decides which settings the final sets see.

The rule: of all settings and guidance scales of a method, the one with the largest harmonic mean of three means over
the products of the tuning set: the share of pictures nearest to their product, the judge's overall score, and the share
of pictures that show all that was asked. Ties go to the earlier setting. No final product is looked at before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perfusion_ops.compare.intervals import harmonic_mean
from perfusion_ops.compare.methods import Contestant
from perfusion_ops.config import Frozen
from perfusion_ops.mini.methods.cells import REAL, Cell, in_full, read
from perfusion_ops.mini.methods.sets import PHOTOS, SetName
from perfusion_ops.mini.methods.sizes import Size

RULE = ("nearest", "overall", "obeyed")


class Choice(Frozen):
    """What the tuning chose for one method; `value` is the rule's, None without tuning."""

    method: str
    place: int
    guidance: float
    value: float | None


@dataclass(frozen=True)
class Plan:
    """What a measurement of one size consists of.

    Attributes:
        size: how much.
        base, scorers: digests.
    """

    size: Size
    base: str
    scorers: str

    def tuning(self, contestant: Contestant) -> list[list[Cell]]:
        """The cells of each setting, one for each guidance scale; empty where nothing is tuned."""
        if self.size.tuning is None:
            return []
        settings = contestant.settings[: self.size.settings]
        return [
            [self._cell("tuning", contestant, place, PHOTOS, guidance) for guidance in self.size.guidances]
            for place in range(len(settings))
        ]

    def final(self, choice: Choice, contestant: Contestant, name: SetName, photos: int) -> list[Cell]:
        """The cells of a method with its chosen setting, one for each guidance scale; its own best one is larger."""
        return [
            self._cell(name, contestant, choice.place, photos, guidance, front=guidance != choice.guidance)
            for guidance in self.size.guidances
        ]

    def real(self, name: SetName) -> Cell:
        """The cell of real renders of a final set."""
        return self._make(name, REAL, {}, PHOTOS, 1.0)

    def _cell(
        self, name: SetName, contestant: Contestant, place: int, photos: int, guidance: float, *, front: bool = False
    ) -> Cell:
        # What is not trained looks at no photo: one cell serves all numbers of them.
        photos = photos if contestant.trained else PHOTOS
        settings = in_full(contestant.settings[place])
        return self._make(name, contestant.name, settings, photos, guidance, front=front)

    def _make(
        self, name: SetName, method: str, settings: dict, photos: int, guidance: float, *, front: bool = False
    ) -> Cell:
        amount = self.size.tuning if name == "tuning" else self.size.front if front else self.size.final
        assert amount is not None
        return Cell(
            set=name,
            method=method,
            settings=settings,
            photos=photos,
            guidance=guidance,
            amount=amount,
            budget=self.size.budget,
            strangers=self.size.strangers,
            base=self.base,
            scorers=self.scorers,
        )


def by_product(columns: dict[str, list], name: str) -> np.ndarray:
    """The mean of a column over the pictures of each product, (P,) by instance; NaN where all are None."""
    instances = np.asarray(columns["instance"])
    values = np.array([np.nan if value is None else float(value) for value in columns[name]])
    means = []
    for instance in np.unique(instances):
        own = values[instances == instance]
        known = own[~np.isnan(own)]
        means.append(known.mean() if len(known) else np.nan)
    return np.array(means)


def rule(columns: dict[str, list]) -> float:
    """See the module; what no prompt asks for does not count."""
    means = [by_product(columns, name) for name in RULE]
    return harmonic_mean([float(np.nanmean(each)) for each in means if not np.isnan(each).all()])


def choose(plan: Plan, contestant: Contestant, out: Path) -> Choice:
    """The best setting and guidance scale of a method whose tuning cells are complete.

    Raises:
        FileNotFoundError: one is not.
    """
    tried = plan.tuning(contestant)
    if not tried:
        return Choice(method=contestant.name, place=0, guidance=plan.size.guidance, value=None)
    found = [
        Choice(method=contestant.name, place=place, guidance=cell.guidance, value=rule(read(cell, out)))
        for place, cells in enumerate(tried)
        for cell in cells
    ]
    return max(found, key=lambda choice: choice.value or 0.0)


def tuning_table(plan: Plan, entrants: Sequence[Contestant], out: Path) -> list[dict]:
    """One line for each tried setting and guidance scale that is complete: the rule, its parts and the settings."""
    lines = []
    for contestant in entrants:
        for place, cells in enumerate(plan.tuning(contestant)):
            for cell in cells:
                if cell.file(out).is_file():
                    columns = read(cell, out)
                    parts = {name: float(np.nanmean(by_product(columns, name))) for name in (*RULE, "identity", "text")}
                    lines.append(
                        {
                            "method": contestant.name,
                            "place": place,
                            "guidance": cell.guidance,
                            "rule": rule(columns),
                            **parts,
                            "settings": cell.settings,
                        }
                    )
    return lines
