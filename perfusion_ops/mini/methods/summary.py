"""From complete cells to figures: intervals of each method, distances, costs, fronts, differences and bars."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.compare.intervals import Interval, bootstrap, hypervolume, paired
from perfusion_ops.config import Frozen
from perfusion_ops.mini.methods.cells import Cell, has_pictures, pictures_of, read, stored_distance
from perfusion_ops.mini.methods.measure import real_pictures
from perfusion_ops.mini.methods.sets import SetName, asks, products
from perfusion_ops.mini.methods.tuning import by_product
from perfusion_ops.mini.quality.figures import frechet_distance

FIGURES = (
    "overall", "color", "pattern", "edges", "legible", "nearest", "identity", "context", "noun", "attribute",
    "obeyed", "text",
)  # fmt: skip
FRONTS = ("overall", "nearest")  # each with `obeyed`

Features = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Line(Frozen):
    """One method on one set at its own best guidance scale.

    Attributes:
        method, set, photos, guidance: as in `Cell`.
        products, pictures: how many.
        figures: mean and interval over products by name, see `scores.Score`; a figure that nothing asks for is absent.
        frechet_distance: of the reader's features to those of as many real renders of the same products and prompts;
            None if neither the pictures nor their distance were kept.
        drift: mean absolute difference (of 255) of unrelated pictures; None where it is not measured.
        numbers, size: learned numbers and bytes of a file at this base.
        numbers_at_sd15: learned numbers at the width of Stable Diffusion 1.5.
        evaluations: of the denoiser, forward and backward, in one training.
        train_s, draw_s: seconds of a training, and of a picture, on the machine that measured.
        front: (guidance, overall, nearest, obeyed) means at every guidance scale.
        hypervolume: of the front by `overall` and by `nearest`, each with `obeyed`.
    """

    method: str
    set: SetName
    photos: int
    guidance: float
    products: int
    pictures: int
    figures: dict[str, Interval]
    frechet_distance: float | None
    drift: float | None
    numbers: int
    size: int
    numbers_at_sd15: int
    evaluations: int
    train_s: float
    draw_s: float
    front: tuple[tuple[float, float, float, float], ...]
    hypervolume: dict[str, float]

    @cached_property
    def points(self) -> dict[str, list[tuple[float, float]]]:
        """(identity, obedience) at every guidance scale, for each name of FRONTS."""
        return {name: [(point[place], point[3]) for point in self.front] for place, name in enumerate(FRONTS, start=1)}


def line(
    cells: Sequence[Cell],
    guidance: float,
    out: Path,
    *,
    features: Features,
    real: NDArray[np.float32],
    numbers_at_sd15: int,
    resamples: int,
) -> Line:
    """The figures of one method on one set.

    Args:
        cells: complete, one for each guidance scale.
        guidance: whose figures are taken; the others only make the front.
        out: folder of the measurement.
        features: of pictures, for the Fréchet distance.
        real: features of real renders of the same products and prompts.
        numbers_at_sd15: see `Line`.
        resamples: of the bootstrap.
    """
    columns = {cell.guidance: read(cell, out) for cell in cells}
    [cell] = [each for each in cells if each.guidance == guidance]
    own = columns[guidance]
    front = tuple(
        (scale, _mean(found, "overall"), _mean(found, "nearest"), _mean(found, "obeyed"))
        for scale, found in sorted(columns.items())
    )
    known = {name: by_product(own, name) for name in FIGURES}
    drift = [value for value in own["drift"] if value is not None]
    return Line(
        method=cell.method,
        set=cell.set,
        photos=cell.photos,
        guidance=guidance,
        products=cell.amount.products,
        pictures=len(own["instance"]),
        figures={
            name: bootstrap(values, resamples=resamples) for name, values in known.items() if not np.isnan(values).all()
        },
        frechet_distance=_distance(cell, out, features, real),
        drift=float(np.mean(drift)) if drift else None,
        numbers=own["numbers"][0],
        size=own["size"][0],
        numbers_at_sd15=numbers_at_sd15,
        evaluations=cell.budget.evaluations if numbers_at_sd15 else 0,
        train_s=float(np.mean(own["train_s"])),
        draw_s=float(np.mean(own["draw_s"])),
        front=front,
        hypervolume={
            name: hypervolume([(point[place], point[3]) for point in front])
            for place, name in enumerate(FRONTS, start=1)
        },
    )


def _distance(cell: Cell, out: Path, features: Features, real: NDArray[np.float32]) -> float | None:
    if has_pictures(cell, out):
        return frechet_distance(features(pictures_of(cell, out)), real)
    return stored_distance(cell, out)


def _mean(columns: dict[str, list], name: str) -> float:
    return float(np.nanmean(by_product(columns, name)))


def real_features(cell: Cell, features: Features) -> NDArray[np.float32]:
    """Features of real renders of the products and prompts of a cell, in its order; of no cell's own pictures."""
    drawn = [
        real_pictures(item, [(ask, n) for ask in asks(item, cell.amount.prompts) for n in range(cell.amount.seeds)])
        for item in products(cell.set, cell.amount.products)
    ]
    return features(np.concatenate(drawn))


def difference(ours: Cell, theirs: Cell, name: str, out: Path, *, resamples: int) -> Interval:
    """The mean difference of a figure over the same products, each at its own guidance scale."""
    one, other = (by_product(read(cell, out), name) for cell in (ours, theirs))
    return paired(one, other, resamples=resamples)


def dominated(points: Sequence[tuple[float, float]], by: Sequence[tuple[float, float]]) -> float:
    """The share (0..1) of points that some point of `by` equals or exceeds in both coordinates."""
    return float(np.mean([any(a >= x and b >= y for a, b in by) for x, y in points]))
