"""The report on all that is complete: figures of each method, the bars, and what lies in the folder afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perfusion_ops.compare.intervals import Interval
from perfusion_ops.compare.methods import Contestant
from perfusion_ops.config import Frozen
from perfusion_ops.mini.methods.bars import Bar, comparison, stable, working
from perfusion_ops.mini.methods.cells import REAL, SCHEMA, Cell, has_pictures, missing, pictures_of
from perfusion_ops.mini.methods.cost import numbers_at_sd15
from perfusion_ops.mini.methods.figure import front_figure, picture_grid
from perfusion_ops.mini.methods.record import keep
from perfusion_ops.mini.methods.sets import SetName
from perfusion_ops.mini.methods.summary import Features, Line, difference, line, real_features
from perfusion_ops.mini.methods.tuning import Choice, Plan, choose, tuning_table

_ON_SHEET = 12  # products


class Methods(Frozen):
    """One measurement.

    Attributes:
        size: its name.
        base_digest, scorers_digest: of what it was made with.
        cells, complete: how many cells the whole measurement has, and how many are measured.
        measured: how many of them by this call.
        choices: what the tuning chose.
        lines: figures of each method, set and number of photos that is complete.
        bars: what must be reached.
        ok: everything is complete and every bar is met.
    """

    name: str = "methods"
    size: str
    base_digest: str
    scorers_digest: str
    cells: int
    complete: int
    measured: int
    choices: tuple[Choice, ...]
    lines: tuple[Line, ...]
    bars: tuple[Bar, ...]
    ok: bool


@dataclass(frozen=True)
class Reporter:
    """Reads the cells of one measurement.

    Attributes:
        plan: which cells there are.
        entrants: all methods.
        out: folder of the measurement.
        features: of pictures, for the Fréchet distance.
    """

    plan: Plan
    entrants: Sequence[Contestant]
    out: Path
    features: Features

    def report(self, measured: int) -> Methods:
        """Figures and bars of all that is complete; writes `rows.parquet`, figures and sheets."""
        size = self.plan.size
        choices = {each.name: choose(self.plan, each, self.out) for each in tuned(self.plan, self.entrants, self.out)}
        lines: dict[tuple[str, str, int], Line] = {}
        bars: list[Bar] = []
        for name in size.sets:
            for photos in size.photos:
                found = self._lines(choices, name, photos)
                lines |= {(each.method, each.set, each.photos): each for each in found}
                bars += self._bars(found, choices)
                if len(found) > 1:
                    self._draw(found, choices, name, photos)
        if size.ranked:
            bars += self._stable(list(lines.values()))
        cells = self._cells()
        complete = [cell for cell in cells if cell.file(self.out).is_file()]
        self._write_rows([cell for cell in complete if cell.set != "tuning"])
        expected = self._expected()
        return Methods(
            size=size.name,
            base_digest=self.plan.base,
            scorers_digest=self.plan.scorers,
            cells=expected,
            complete=len(complete),
            measured=measured,
            choices=tuple(choices.values()),
            lines=tuple(lines.values()),
            bars=tuple(bars),
            ok=len(complete) == expected and bool(bars) and all(bar.met for bar in bars),
        )

    def keep(self, report: Methods, record: Path) -> None:
        """Add what is complete to a record; see `record.keep`."""
        choices = {each.method: each for each in report.choices}
        distances = {
            self._cell_of(choices, each).file(self.out): each.frechet_distance
            for each in report.lines
            if each.frechet_distance is not None
        }
        keep(self._cells(), self.out, record, distances)

    def tuning(self) -> list[dict]:
        """See `tuning_table`."""
        return tuning_table(self.plan, self.entrants, self.out)

    def _lines(self, choices: dict[str, Choice], name: SetName, photos: int) -> list[Line]:
        """Real renders first, then each method whose cells are complete."""
        real = self.plan.real(name)
        if missing([real], self.out):
            return []
        wanted = real_features(real, self.features)
        shown = partial(line, out=self.out, features=self.features, real=wanted, resamples=self.plan.size.resamples)
        found = [shown([real], real.guidance, numbers_at_sd15=0)]
        for each in self.entrants:
            choice = choices.get(each.name)
            cells = self.plan.final(choice, each, name, photos) if choice else []
            if choice and not missing(cells, self.out):
                count = numbers_at_sd15(each, each.settings[choice.place])
                found.append(shown(cells, choice.guidance, numbers_at_sd15=count))
        return found

    def _bars(self, found: Sequence[Line], choices: dict[str, Choice]) -> list[Bar]:
        """Of one set and number of photos, once every method is complete; ours is the best of ours in the tuning."""
        if len(found) <= len(self.entrants):
            return []
        real, methods = found[0], {each.method: each for each in found[1:]}
        bars = working(methods, real)
        if not self.plan.size.ranked:
            return bars
        own = max((name for name in methods if name.startswith("ours")), key=lambda name: choices[name].value or 0.0)
        rivals = {name: each for name, each in methods.items() if each.numbers and not name.startswith("ours")}
        return bars + comparison(methods[own], rivals, partial(self._difference, choices))

    def _difference(self, choices: dict[str, Choice], one: Line, other: Line, figure: str) -> Interval:
        ours, theirs = (self._cell_of(choices, each) for each in (one, other))
        return difference(ours, theirs, figure, self.out, resamples=self.plan.size.resamples)

    def _cell_of(self, choices: dict[str, Choice], each: Line) -> Cell:
        """The cell whose figures a line shows."""
        if each.method == REAL:
            return self.plan.real(each.set)
        return self._chosen(choices, each.method, each.set, each.photos)

    def _chosen(self, choices: dict[str, Choice], method: str, name: SetName, photos: int) -> Cell:
        """The cell of a method at its own best guidance scale."""
        [contestant] = [each for each in self.entrants if each.name == method]
        cells = self.plan.final(choices[method], contestant, name, photos)
        return next(cell for cell in cells if cell.guidance == choices[method].guidance)

    def _stable(self, lines: Sequence[Line]) -> list[Bar]:
        most = self.plan.size.photos[0]
        first, second = (
            {each.method: each for each in lines if each.set == name and each.photos == most and each.numbers}
            for name in self.plan.size.sets
        )
        both = [name for name in first if name in second]
        return stable([first[name] for name in both], [second[name] for name in both]) if len(both) > 1 else []

    def _cells(self) -> list[Cell]:
        """All cells that are known so far, each once."""
        tried = [cell for each in self.entrants for cells in self.plan.tuning(each) for cell in cells]
        return [*tried, *finals_of(self.plan, self.entrants, self.out)]

    def _expected(self) -> int:
        """How many cells there will be; what is not trained has one for all numbers of photos."""
        size = self.plan.size
        tuning = sum(len(cells) for each in self.entrants for cells in self.plan.tuning(each))
        finals = sum(len(size.photos) if each.trained else 1 for each in self.entrants)
        return tuning + len(size.sets) * (1 + len(size.guidances) * finals)

    def _write_rows(self, cells: Sequence[Cell]) -> None:
        """All final pictures' rows in one file, without the pictures."""
        columns = [name for name in SCHEMA.names if name != "picture"]
        if cells:
            tables = [pq.read_table(cell.file(self.out), columns=columns) for cell in cells]
            rows = pa.concat_tables([each.replace_schema_metadata(None) for each in tables])
            pq.write_table(rows, self.out / "rows.parquet", compression="zstd")

    def _draw(self, found: Sequence[Line], choices: dict[str, Choice], name: SetName, photos: int) -> None:
        size = self.plan.size.final
        title = f"set {name}, {photos} photos, {size.products} products: this small base and nothing else"
        front_figure(found[1:], title).save(self.out / f"front-{name}-photos{photos}.png")
        each = size.prompts * size.seeds  # pictures of a product; the sheet shows the first of each
        cells = [self.plan.real(name), *(self._chosen(choices, line.method, name, photos) for line in found[1:])]
        shown = [cell for cell in cells if has_pictures(cell, self.out)]
        if shown:
            rows = np.stack([pictures_of(cell, self.out)[::each][:_ON_SHEET] for cell in shown])
            sheet = self.out / f"sheet-{name}-photos{photos}.png"
            picture_grid(rows, [cell.method for cell in shown]).save(sheet)


def finals_of(plan: Plan, entrants: Sequence[Contestant], out: Path) -> list[Cell]:
    """All final cells that are known so far, each once."""
    cells = [plan.real(name) for name in plan.size.sets]
    for each in tuned(plan, entrants, out):
        choice = choose(plan, each, out)
        cells += [
            cell for name in plan.size.sets for n in plan.size.photos for cell in plan.final(choice, each, name, n)
        ]
    return list({cell.file(out): cell for cell in cells}.values())


def tuned(plan: Plan, entrants: Sequence[Contestant], out: Path) -> list[Contestant]:
    """The methods whose tuning is complete."""
    return [each for each in entrants if not missing([cell for cells in plan.tuning(each) for cell in cells], out)]


def table(report: Methods) -> str:
    """The figures for a person: mean and 95 % interval over products, each method at its own best guidance scale."""
    names = ("overall", "pattern", "legible", "nearest", "identity", "context", "obeyed", "text")
    heads = "".join(f"{name:>22}" for name in names)
    lines = [
        f"{'method':20}{'set':>4}{'photos':>7}{'guid.':>6}{heads}{'FD':>7}{'drift':>7}{'at SD 1.5':>13}{'train s':>9}"
    ]
    for each in report.lines:
        figures = "".join(f"{each.figures.get(name, '')!s:>22}" for name in names)
        distance = "" if each.frechet_distance is None else f"{each.frechet_distance:.1f}"
        drift = "" if each.drift is None else f"{each.drift:.2f}"
        lines.append(
            f"{each.method:20}{each.set:>4}{each.photos:>7}{each.guidance:>6g}{figures}{distance:>7}"
            f"{drift:>7}{each.numbers_at_sd15:>13,}{each.train_s:>9.1f}"
        )
    lines += [f"{'met' if bar.met else 'MISSED':8}{bar.name}: {bar.value:.3f} (bar {bar.bar:g})" for bar in report.bars]
    lines.append(f"{report.complete} of {report.cells} cells complete, {report.measured} measured now")
    return "\n".join(lines)
