"""The report of a run: one HTML file that works offline, from S3, on paper and without scripts.

All figures are counted from the published tables. Images are inlined; the page has as many sheets as fit into its size,
and says how many are left out and how to query them. Ids, prompts, messages and carried columns are untrusted text:
they are escaped, shortened and freed of control characters, and the page's security policy forbids scripts and loading.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from markupsafe import Markup

from pipeline.contract.layout import table_pattern
from pipeline.contract.schemas import PUBLISHED
from pipeline.report.figures import count_run
from pipeline.report.run_tables import RunTables, open_tables
from pipeline.report.scores import MAX_SCORERS, extremes, scorer_figures
from pipeline.report.sheets import PictureReader, combined_renders, concept_cards, sample_concepts
from pipeline.report.templating import environment
from pipeline.report.timeline import make_timeline
from pipeline.runs.record import RunRecord
from pipeline.storage.objects import Storage

MIN_BYTES = 500_000  # the page without images is smaller than this for any tables
MAX_COMBINED = 24  # renders of several concepts
SETTINGS = 60  # lines of the spec shown

_COMBINED_SHARE = 0.25  # of the bytes left for images
_SCORED_SHARE = 0.1  # of the same
_SLACK = 4096  # the page's texts grow by some digits when the sheets are added


def write_report(
    storage: Storage,
    run_id: str,
    *,
    known: Iterable[str] = (),
    max_concepts: int = 60,
    max_bytes: int = 20_000_000,
) -> str:
    """Write `runs/<run_id>/report/index.html`.

    Args:
        storage: the root that holds the run's published tables.
        run_id: the run.
        known: paths of published files that a stale listing may lack.
        max_concepts: concepts shown at most.
        max_bytes: size of the page at most; concepts that do not fit are only counted.

    Returns:
        The page's URI.

    Raises:
        ValueError: `max_bytes` below MIN_BYTES, or a negative `max_concepts`.
        MissingObjectError: the run has published no table.
    """
    if max_bytes < MIN_BYTES:
        raise ValueError(
            f"max_bytes is {max_bytes}: give at least {MIN_BYTES}, which the page may need without pictures"
        )
    if max_concepts < 0:
        raise ValueError(f"max_concepts is {max_concepts}: give 0 or more")
    with open_tables(storage, run_id, known) as tables:
        page = _page(storage, run_id, tables, max_concepts, max_bytes)
    return RunRecord(storage, run_id).write_report(page)


def _page(storage: Storage, run_id: str, tables: RunTables, max_concepts: int, max_bytes: int) -> bytes:
    """The page as UTF-8, of at most `max_bytes`."""
    templates = environment()
    template = templates.get_template("report.html.j2")
    tiles: Any = templates.get_template("tiles.html.j2").module
    scored: Any = templates.get_template("scores.html.j2").module
    view = _figures(storage, run_id, tables)
    photos = RunRecord(storage, run_id).photos()
    reader = PictureReader(storage)

    def render(cards: list[Markup], combined: list[Markup], ends: list[Markup]) -> bytes:
        return template.render(view, cards=cards, combined=combined, extremes=ends).encode("utf-8")

    room = max_bytes - len(render([], [], [])) - _SLACK
    ends: list[Markup] = []
    if view["scores"]:
        both = extremes(tables.connection, view["scores"][0].digest, reader)
        ends = _fitting(map(scored.scored, both), int(room * _SCORED_SHARE))
    room -= sum(map(_size, ends))
    combined = _fitting(
        map(tiles.combined, combined_renders(tables.connection, MAX_COMBINED, photos, reader)),
        int(room * _COMBINED_SHARE),
    )
    room -= sum(map(_size, combined))
    # Taken in the order of a digest, so that what fits is a fair sample; shown in the order of ids.
    sample = sample_concepts(tables.connection, max_concepts)
    cards = _fitting(map(tiles.card, concept_cards(tables.connection, sample, tables.carried, photos, reader)), room)
    shown = zip((row["concept_id"] for row in sample), cards, strict=False)
    return render([card for _, card in sorted(shown)], combined, ends)


def _figures(storage: Storage, run_id: str, tables: RunTables) -> dict[str, Any]:
    """Everything on the page but the images."""
    return {
        **count_run(tables.connection),
        "timeline": make_timeline(tables.connection),
        "run_id": run_id,
        "run_date": tables.run_date,
        "root": storage.root,
        "settings": _settings(storage, run_id),
        "settings_shown": SETTINGS,
        "scores": scorer_figures(tables.connection, storage, run_id),
        "scores_shown": MAX_SCORERS,
        "pattern": {table: storage.uri(table_pattern(table, run_id)) for table in PUBLISHED},
    }


def _fitting(fragments: Iterable[Markup], room: int) -> list[Markup]:
    """The leading fragments that together have at most `room` bytes; the iterator advances no further."""
    kept: list[Markup] = []
    for fragment in fragments:
        room -= _size(fragment)
        if room < 0:
            break
        kept.append(fragment)
    return kept


def _size(text: str) -> int:
    return len(text.encode("utf-8"))


def _settings(storage: Storage, run_id: str) -> list[tuple[str, str]]:
    """Names and values of the recorded spec; empty if the run has none."""
    record = RunRecord(storage, run_id)
    return list(_flat(record.spec().model_dump(mode="json"))) if record.has_begun() else []


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of each leaf of a JSON value that is set."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif value not in (None, [], ""):
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
