"""Runs the cells that are missing: trains each product once, draws it at every guidance scale, scores the pictures."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.compare.methods import Contestant, Studio
from perfusion_ops.config import TrainingConfig
from perfusion_ops.mini.methods.cells import REAL, Cell, Row, has_pictures, missing, pictures_of, rows_of, write
from perfusion_ops.mini.methods.scores import Judges
from perfusion_ops.mini.methods.sets import Ask, asks, photos, products, real_scene
from perfusion_ops.mini.quality.prompts import requests
from perfusion_ops.mini.world.products import Product
from perfusion_ops.mini.world.scene import render
from perfusion_ops.mini.world.vocabulary import superclass
from perfusion_ops.rivals.personalised import Personalised, unchanged
from perfusion_ops.training.examples import make_example

Pictures = NDArray[np.uint8]

_SCALE = 1000  # seeds of one product
_UNRELATED = 240  # prompts among which the first of other classes are taken


@dataclass
class Bench:
    """What a measurement needs, loaded once.

    Attributes:
        studio: the base model.
        judges: the scorers.
        contestants: methods by name.
    """

    studio: Studio
    judges: Judges
    contestants: dict[str, Contestant]
    _base: dict[tuple[int, float, int], Pictures] = field(default_factory=dict)

    def unrelated(self, numbers: Sequence[int], guidance: float, steps: int) -> Pictures:
        """The base model's own pictures of some of the unrelated prompts; each is drawn once."""
        new = [number for number in numbers if (number, guidance, steps) not in self._base]
        if new:
            asked = requests(_UNRELATED)
            plain = unchanged(self.studio.parts, "")
            pictures = plain.draw([asked[number].prompt for number in new], new, guidance=guidance, steps=steps)
            self._base.update({(n, guidance, steps): picture for n, picture in zip(new, pictures, strict=True)})
        return np.stack([self._base[number, guidance, steps] for number in numbers])


def run(bench: Bench, cells: Sequence[Cell], out: Path) -> int:
    """Measure the cells whose file does not exist; returns how many they were."""
    left = missing(cells, out)
    groups: dict[str, list[Cell]] = {}
    for cell in left:
        groups.setdefault(cell.training, []).append(cell)
    for number, group in enumerate(groups.values(), 1):
        first = group[0]
        show(
            f"{number} of {len(groups)}: {first.method} on set {first.set}, {first.photos} photos {_said(bench, first)}"
        )
        _run_group(bench, group, out)
    return len(left)


def score_again(bench: Bench, cells: Sequence[Cell], out: Path) -> None:
    """Replace the scores of complete cells by those of the judges as they are now; pictures and costs stay.

    Raises:
        ValueError: a cell is of a record, without its pictures.
    """
    complete = [cell for cell in cells if not missing([cell], out)]
    for cell in complete:
        if not has_pictures(cell, out):
            raise ValueError(
                f"{cell.file(out)} has no pictures to be judged again: delete it, and it is measured again"
            )
    for cell in complete:
        rows, pictures = rows_of(cell, out), pictures_of(cell, out)
        fresh: list[Row] = []
        for item in products(cell.set, cell.amount.products):
            places = [n for n, row in enumerate(rows) if row.instance == item.instance]
            asked = asks(item, cell.amount.prompts)
            scores = bench.judges.score(item, [asked[rows[n].number] for n in places], pictures[places])
            fresh += [rows[n].model_copy(update={"score": score}) for n, score in zip(places, scores, strict=True)]
        write(cell, out, fresh, pictures)


def _run_group(bench: Bench, cells: Sequence[Cell], out: Path) -> None:
    """Cells of one training."""
    rows: list[list[Row]] = [[] for _ in cells]
    drawn: list[list[Pictures]] = [[] for _ in cells]
    for item in products(cells[0].set, cells[0].amount.products):
        start = time.perf_counter()
        learned = None if cells[0].method == REAL else _trained(bench, cells[0], item)
        train_s = time.perf_counter() - start
        for place, cell in enumerate(cells):
            more, pictures = _pictures(bench, cell, item, learned, train_s)
            rows[place] += more
            drawn[place].append(pictures)
    for cell, found, pictures in zip(cells, rows, drawn, strict=True):
        write(cell, out, found, np.concatenate(pictures))


def _said(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The settings of a cell that differ from their kind's defaults."""
    if cell.method == REAL:
        return {}
    kind = type(bench.contestants[cell.method].settings[0])
    return kind.model_validate(cell.settings).model_dump(exclude_defaults=True)


def _trained(bench: Bench, cell: Cell, item: Product) -> Personalised:
    contestant = bench.contestants[cell.method]
    settings = type(contestant.settings[0]).model_validate(cell.settings)
    # Only the seed of an example's own settings could matter here, and a budget has its own.
    example = make_example(
        bench.studio.base, superclass(item.look.category), photos(item, cell.photos), TrainingConfig()
    )
    return contestant.train(bench.studio, example, cell.budget, settings)


def _pictures(
    bench: Bench, cell: Cell, item: Product, learned: Personalised | None, train_s: float
) -> tuple[list[Row], Pictures]:
    """The rows of one product, in the order of prompts and seeds, with their pictures."""
    wanted = [(ask, number) for ask in asks(item, cell.amount.prompts) for number in range(cell.amount.seeds)]
    seeds = [item.instance % _SCALE * _SCALE + ask.number * 10 + number for ask, number in wanted]
    start = time.perf_counter()
    if learned is None:
        pictures = real_pictures(item, wanted, later=1000)
    else:
        prompts = [ask.prompt for ask, _ in wanted]
        pictures = learned.draw(prompts, seeds, guidance=cell.guidance, steps=cell.amount.steps)
    draw_s = (time.perf_counter() - start) / len(wanted)
    scores = bench.judges.score(item, [ask for ask, _ in wanted], pictures)
    same: dict[str, Any] = {
        "category": item.look.category,
        "instance": item.instance,
        "pattern": item.look.pattern,
        "drift": _drift(bench, cell, item, learned),
        "train_s": train_s,
        "draw_s": draw_s,
        "numbers": learned.numbers if learned else 0,
        "size": learned.size if learned else 0,
    }
    rows = [
        Row(number=ask.number, kind=ask.kind, prompt=ask.prompt, seed=seed, score=score, **same)
        for (ask, _), seed, score in zip(wanted, seeds, scores, strict=True)
    ]
    return rows, pictures


def real_pictures(item: Product, wanted: Sequence[tuple[Ask, int]], *, later: int = 0) -> Pictures:
    """Real renders of a product that show what is asked, (N, 64, 64, 3); another `later` gives other ones."""
    return np.stack([render(real_scene(item, ask, number + later)).pixels for ask, number in wanted])


def _drift(bench: Bench, cell: Cell, item: Product, learned: Personalised | None) -> float | None:
    """Mean absolute difference (of 255) of pictures of prompts about other classes, to the base model's own."""
    amount = cell.amount
    if learned is None or not amount.drift_prompts:
        return None
    if learned.apart:
        return 0.0
    others = [
        (number, request.prompt)
        for number, request in enumerate(requests(_UNRELATED))
        if item.look.category not in request.shown.categories
    ][: amount.drift_prompts]
    numbers = [number for number, _ in others]
    moved = learned.draw([prompt for _, prompt in others], numbers, guidance=cell.guidance, steps=amount.steps)
    base = bench.unrelated(numbers, cell.guidance, amount.steps)
    return float(np.abs(moved.astype(np.int16) - base.astype(np.int16)).mean())


def show(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
