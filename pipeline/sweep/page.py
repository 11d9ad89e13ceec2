"""The page of a sweep: each concept's front, with renders of the same prompts at its points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import duckdb
from markupsafe import Markup

from pipeline.contract.layout import sweep_path
from pipeline.database.query import Row, rows
from pipeline.report.sheets import PictureReader, RenderTile
from pipeline.report.templating import environment
from pipeline.storage.objects import Storage
from pipeline.sweep.front import Measured, front
from pipeline.sweep.record import Sweep
from pipeline.tables.views import connect

MAX_CONCEPTS = 60
MAX_BYTES = 20_000_000
_STRIPS = 6  # points of a front that are shown with pictures
_PICTURES = 4  # of each of them


@dataclass(frozen=True)
class Mark:
    """A point in a concept's plot: `x` and `y` are 0..100, scaled to the concept's own ranges."""

    x: float
    y: float
    obedience: float
    identity: float
    settings: dict[str, Any]
    on_front: bool
    chosen: bool


@dataclass(frozen=True)
class Strip:
    """A point of the front with some of its renders."""

    mark: Mark
    tiles: tuple[RenderTile, ...]


@dataclass(frozen=True)
class SweepCard:
    """One concept."""

    concept_id: str
    renders: int
    met: bool
    chosen: Mark
    marks: tuple[Mark, ...]
    strips: tuple[Strip, ...]


def write_page(storage: Storage, sweep: Sweep, *, points_uri: str, without: int) -> str:
    """Write `index.html` of a sweep, replacing an earlier one; returns its URI.

    Args:
        storage: the root of the sweep's runs.
        sweep: what was measured.
        points_uri: of the file of points.
        without: number of concepts that could not be measured.

    Raises:
        StorageError: storage fails. A picture that cannot be read is replaced by a note.
    """
    page: Any = (
        environment()
        .get_template("sweep.html.j2")
        .make_module(
            {
                "sweep_id": sweep.sweep_id,
                "select": str(sweep.select),
                "scorer": sweep.scorer,
                "concepts": len(sweep.measured),
                "without": without,
                "unmet": sum(not choice.met for choice in sweep.choices.values()),
                "points": _points(sweep),
                "points_uri": points_uri,
                "cards": _fitting(storage, sweep),
            }
        )
    )
    path = sweep_path(sweep.sweep_id, "index.html")
    storage.write(path, str(page.page()).strip().encode())
    return storage.uri(path)


def _points(sweep: Sweep) -> list[dict[str, Any]]:
    """Each point with its means over concepts."""
    chosen = [choice.chosen.point for choice in sweep.choices.values()]
    found = []
    for number, settings in enumerate(sweep.points):
        here = [each for points in sweep.measured.values() for each in points if each.point == number]
        found.append(
            {
                "settings": settings,
                "run_id": sweep.runs[number],
                "chosen": chosen.count(number),
                "obedience": fmean(each.obedience for each in here) if here else None,
                "identity": fmean(each.identity for each in here) if here else None,
            }
        )
    return found


def _fitting(storage: Storage, sweep: Sweep) -> list[Markup]:
    """The cards of the first concepts that fit into the page's size."""
    template: Any = environment().get_template("sweep.html.j2").module
    room, kept = MAX_BYTES, []
    for card in _cards(storage, sweep):
        text = template.card(card)
        room -= len(text.encode())
        if room < 0:
            break
        kept.append(text)
    return kept


def _cards(storage: Storage, sweep: Sweep) -> Iterator[SweepCard]:
    reader = PictureReader(storage)
    with connect(storage) as connection:
        for concept in sorted(sweep.measured)[:MAX_CONCEPTS]:
            points, choice = sweep.measured[concept], sweep.choices[concept]
            best = front(points)
            marks = {
                each.point: Mark(
                    x=_scaled(each.obedience, [one.obedience for one in points]),
                    y=_scaled(each.identity, [one.identity for one in points]),
                    obedience=each.obedience,
                    identity=each.identity,
                    settings=dict(sweep.points[each.point]),
                    on_front=each in best,
                    chosen=each.point == choice.chosen.point,
                )
                for each in points
            }
            yield SweepCard(
                concept_id=concept,
                renders=points[0].renders,
                met=choice.met,
                chosen=marks[choice.chosen.point],
                marks=tuple(sorted(marks.values(), key=lambda mark: mark.x)),
                strips=tuple(
                    Strip(marks[each.point], _tiles(connection, reader, concept, sweep.runs[each.point]))
                    for each in _shown(best, choice.chosen)
                ),
            )


def _shown(best: Sequence[Measured], chosen: Measured) -> list[Measured]:
    """At most `_STRIPS` points of a front, evenly spread, with both ends and the chosen one."""
    if len(best) <= _STRIPS:
        return list(best)
    last = len(best) - 1
    places = {round(step * last / (_STRIPS - 1)) for step in range(_STRIPS)}
    wanted = best.index(chosen)
    nearest = min(places - {0, last}, key=lambda place: abs(place - wanted))
    return [best[place] for place in sorted(places - {nearest} | {wanted})]


def _scaled(value: float, among: Sequence[float]) -> float:
    """From 0 for the lowest to 100 for the highest; 50 if all are equal."""
    low, high = min(among), max(among)
    return 100 * (value - low) / (high - low) if high > low else 50.0


def _tiles(
    connection: duckdb.DuckDBPyConnection, reader: PictureReader, concept: str, run_id: str
) -> tuple[RenderTile, ...]:
    found: list[Row] = rows(
        connection,
        "SELECT prompt, concept_ids, render_key, seed, origin, uri, status, error_code FROM renders "
        "WHERE run_id = ? AND concept_id = ? AND len(concept_ids) = 1 AND status = 'ok' "
        "ORDER BY image_index, manifest_row LIMIT ?",
        [run_id, concept, _PICTURES],
    )
    pictures = reader.read_all([row["uri"] for row in found])
    return tuple(RenderTile(row, picture) for row, picture in zip(found, pictures, strict=True))
