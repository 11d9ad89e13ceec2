"""The report's section on scores: figures of each set of scorers, and the renders with the lowest and highest scores.

It is counted from the published scores; a run without scores has no section. Each set of scorers has its own figures,
because cosines of different scorers cannot be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import pyarrow.dataset

from pipeline.contract.layout import is_of_run, table_folder
from pipeline.contract.schemas import SCORES
from pipeline.database.query import Row, rows
from pipeline.report.sheets import PictureReader, RenderTile
from pipeline.storage.objects import Storage

MAX_SCORERS = 4  # sets of scorers shown, the latest first
EXTREMES = 6  # renders shown at each end
MAX_BINS = 24

_SIMILARITIES = ("image_similarity", "text_similarity")
_WIDTHS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Spread:
    """Histogram of one similarity: `counts[i]` values are in [low + i x width, low + (i + 1) x width)."""

    name: str
    total: int
    mean: float
    median: float
    least: float
    most: float
    low: float
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ScorerFigures:
    """Figures of one set of scorers: rows, errors by code, histograms, and how many contexts are correct."""

    scorer: str
    digest: str
    scored_at: float
    rows: int
    errors: tuple[tuple[str, int], ...]
    spreads: tuple[Spread, ...]
    contexts: int
    contexts_correct: int


@dataclass(frozen=True)
class Scored:
    """A render at one end of the scale."""

    render: RenderTile
    measure: str
    value: float


def scorer_figures(connection: duckdb.DuckDBPyConnection, storage: Storage, run_id: str) -> list[ScorerFigures]:
    """Create the view `scores` of a run; return the figures of each set of scorers, the latest first."""
    paths = sorted(path for path, _ in storage.list(table_folder("scores")) if is_of_run(path, run_id))
    source = SCORES.empty_table()
    if paths:
        full = [storage.full(path) for path in paths]
        source = pyarrow.dataset.dataset(full, filesystem=storage.filesystem, format="parquet", schema=SCORES)
    connection.register("score_files", source)
    columns = ", ".join(name for name in SCORES.names if name != "scored_at")
    connection.execute(f"CREATE VIEW scores AS SELECT {columns}, epoch(scored_at) AS scored_at FROM score_files")
    found = rows(
        connection,
        """
        SELECT scorer_digest AS digest, any_value(scorer) AS scorer, max(scored_at) AS scored_at, count(*) AS rows,
            count(context_correct) AS contexts, count(*) FILTER (context_correct) AS contexts_correct
        FROM scores GROUP BY 1 ORDER BY scored_at DESC, digest
        """,
    )
    return [
        ScorerFigures(**row, errors=_errors(connection, row["digest"]), spreads=_spreads(connection, row["digest"]))
        for row in found
    ]


def extremes(connection: duckdb.DuckDBPyConnection, digest: str, reader: PictureReader) -> Iterator[Scored]:
    """The renders with the lowest scores, then those with the highest, by image similarity if there is one.

    Images are read one by one as the iterator advances. No render comes twice.
    """
    for measure in _SIMILARITIES:
        found: list[Row] = rows(
            connection,
            f"""
            WITH placed AS (
                SELECT r.*, s.{measure} AS value,
                    row_number() OVER (ORDER BY s.{measure}, r.render_key) AS place, count(*) OVER () AS total
                FROM scores s JOIN (
                    SELECT render_key, prompt, concept_ids, seed, origin, status, uri, frames, fps
                    FROM renders WHERE status = 'ok'
                    QUALIFY row_number() OVER (PARTITION BY render_key ORDER BY manifest_row, image_index) = 1
                ) r USING (render_key)
                WHERE s.scorer_digest = $digest AND s.{measure} IS NOT NULL
            )
            SELECT * FROM placed WHERE place <= $each OR place > total - $each ORDER BY place
            """,
            {"digest": digest, "each": EXTREMES},
        )
        if found:
            for row in found:
                yield Scored(RenderTile(row, reader.read(row["uri"])), measure.replace("_", " "), row["value"])
            return


def _errors(connection: duckdb.DuckDBPyConnection, digest: str) -> tuple[tuple[str, int], ...]:
    return tuple(
        connection.execute(
            "SELECT error_code, count(*) FROM scores WHERE scorer_digest = ? AND error_code IS NOT NULL "
            "GROUP BY error_code ORDER BY error_code",
            [digest],
        ).fetchall()
    )


def _spreads(connection: duckdb.DuckDBPyConnection, digest: str) -> tuple[Spread, ...]:
    return tuple(spread for name in _SIMILARITIES if (spread := _spread(connection, digest, name)))


def _spread(connection: duckdb.DuckDBPyConnection, digest: str, name: str) -> Spread | None:
    [stats] = rows(
        connection,
        f"SELECT count({name}) AS total, avg({name}) AS mean, median({name}) AS median, min({name}) AS least, "
        f"max({name}) AS most FROM scores WHERE scorer_digest = ?",
        [digest],
    )
    if not stats["total"]:
        return None
    room = stats["most"] - stats["least"]
    width = next((width for width in _WIDTHS if room / width <= MAX_BINS - 2), _WIDTHS[-1])
    counts = dict(
        connection.execute(
            f"SELECT floor({name} / ?)::INTEGER AS bin, count(*) FROM scores "
            f"WHERE scorer_digest = ? AND {name} IS NOT NULL GROUP BY bin",
            [width, digest],
        ).fetchall()
    )
    first, last = min(counts), max(counts)
    bins = tuple(counts.get(index, 0) for index in range(first, last + 1))
    return Spread(name.replace("_", " "), **stats, low=first * width, width=width, counts=bins)
