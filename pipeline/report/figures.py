"""The figures of a run: totals, failures, seconds per object, counted from its published tables."""

import math
from dataclasses import dataclass
from typing import Any

import duckdb

from pipeline.contract.errors import MEANING, Code, Status
from pipeline.contract.kinds import RESULTS, ResultTable
from pipeline.database.query import Row, rows

EXAMPLES = 3  # rows shown per error code
SLOWEST = 6  # renders and concepts shown
BINS = 24


@dataclass(frozen=True)
class Totals:
    """Totals of one table.

    `statuses` counts rows. Several rows may share one object: `made` and `reused` count objects, and `bytes` and
    `accelerator_s` (of this run, failed tries included) count each object once.
    """

    rows: int
    statuses: dict[str, int]
    made: int
    reused: int
    bytes: int
    accelerator_s: float


@dataclass(frozen=True)
class Histogram:
    """Accelerator seconds per object: `counts[i]` objects are in [i, i + 1) x `width`; the last bin is open."""

    total: int
    median: float
    p95: float
    largest: float
    width: float
    counts: tuple[int, ...]


def count_run(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The figures of a run, by their names in the page's template.

    Args:
        connection: has the views `concepts` and `renders`; gets temporary tables of this module.
    """
    for table in RESULTS:
        _count_objects(connection, table)
    return {
        "base": rows(
            connection, "SELECT DISTINCT base, base_digest FROM concepts WHERE base IS NOT NULL ORDER BY ALL LIMIT 1"
        )
        or rows(
            connection, "SELECT DISTINCT base, base_digest FROM renders WHERE base IS NOT NULL ORDER BY ALL LIMIT 1"
        ),
        "span": rows(connection, _SPAN)[0],
        "totals": {table.name: _totals(connection, table) for table in RESULTS},
        "failures": _failures(connection),
        "histograms": {table.name: _histogram(connection, table) for table in RESULTS},
        "slowest": rows(connection, _SLOWEST, {"limit": SLOWEST}),
        "concepts_total": _count(connection, "SELECT count(DISTINCT concept_id) FROM concepts"),
        "combined_total": _count(connection, "SELECT count(*) FROM renders WHERE len(concept_ids) > 1"),
    }


def _count_objects(connection: duckdb.DuckDBPyConnection, table: ResultTable) -> None:
    """Create `<table>_objects`: bytes, seconds spent by this run and whether it made the object, one row per key."""
    connection.execute(
        f"""
        CREATE TEMP TABLE {table.name}_objects AS SELECT * EXCLUDE (key) FROM (
            SELECT
                {table.key_column} AS key,
                coalesce(max(bytes) FILTER (status = 'ok'), 0) AS bytes,
                coalesce(max(accelerator_s) FILTER (origin IS DISTINCT FROM 'reused'), 0) AS accelerator_s,
                coalesce(bool_or(status = 'ok' AND origin <> 'reused'), false) AS made,
                coalesce(bool_or(status = 'ok'), false) AS ok
            FROM {table.name} WHERE {table.key_column} IS NOT NULL GROUP BY ALL
        )
        """
    )


def _totals(connection: duckdb.DuckDBPyConnection, table: ResultTable) -> Totals:
    counted = f"SELECT status, count(*) FROM {table.name} GROUP BY status ORDER BY status"
    found = dict(connection.execute(counted).fetchall())
    objects = rows(
        connection,
        f"""
        SELECT count(*) FILTER (made) AS made, count(*) FILTER (ok AND NOT made) AS reused,
            coalesce(sum(bytes), 0)::BIGINT AS bytes, coalesce(sum(accelerator_s), 0) AS accelerator_s
        FROM {table.name}_objects
        """,
    )[0]
    statuses = {str(status): found.pop(status) for status in Status if status in found} | found
    return Totals(rows=sum(statuses.values()), statuses=statuses, **objects)


def _failures(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """Error codes, most frequent first, each with its meaning and its first few rows."""
    connection.execute(_NOT_OK)
    codes = rows(
        connection,
        """
        SELECT code, any_value(status) AS status, count(*) AS manifest_rows,
            coalesce(sum(results) FILTER (manifest = 'concepts'), 0)::BIGINT AS concepts,
            coalesce(sum(results) FILTER (manifest = 'prompts'), 0)::BIGINT AS pictures
        FROM not_ok GROUP BY code ORDER BY concepts + pictures DESC, code
        """,
    )
    examples = rows(
        connection,
        """
        SELECT * FROM not_ok QUALIFY row_number() OVER (PARTITION BY code ORDER BY manifest, manifest_row) <= ?
        ORDER BY code, manifest, manifest_row
        """,
        [EXAMPLES],
    )
    for code in codes:
        code["meaning"] = _meaning(code["code"])
        code["examples"] = [example for example in examples if example["code"] == code["code"]]
    return codes


def _meaning(code: str) -> str:
    if code in MEANING:
        return MEANING[Code(code)]
    return "A code that this version does not know: a newer version wrote the table."


def _histogram(connection: duckdb.DuckDBPyConnection, table: ResultTable) -> Histogram | None:
    """Accelerator seconds of what this run made; None if it made nothing. The last bin holds the outliers."""
    stats = rows(
        connection,
        f"""
        SELECT count(*) AS total, median(accelerator_s) AS median, quantile_cont(accelerator_s, 0.95) AS p95,
            quantile_cont(accelerator_s, 0.99) AS p99, max(accelerator_s) AS largest
        FROM {table.name}_objects WHERE made
        """,
    )[0]
    if not stats["total"]:
        return None
    width = _round_up(stats.pop("p99") / (BINS - 2))
    counts = dict(
        connection.execute(
            f"""
            SELECT least(floor(accelerator_s / ?), ?)::INTEGER AS bin, count(*)
            FROM {table.name}_objects WHERE made GROUP BY bin
            """,
            [width, BINS - 1],
        ).fetchall()
    )
    return Histogram(**stats, width=width, counts=tuple(counts.get(index, 0) for index in range(BINS)))


def _round_up(value: float) -> float:
    """The next larger convenient step of an axis, with at most three digits; 0.001 for zero."""
    if value <= 0:
        return 0.001
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        power * step for step in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if power * step >= value * (1 - 1e-9)
    )


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    (count,) = connection.execute(sql).fetchall()[0]
    return count


# Reused rows have the time of the run that made the object.
_SPAN = """
    SELECT min(finished_at) AS first, max(finished_at) AS last, count(DISTINCT worker) AS workers FROM (
        SELECT finished_at, worker FROM concepts WHERE origin IS DISTINCT FROM 'reused' AND finished_at > 0
        UNION ALL
        SELECT finished_at, worker FROM renders WHERE origin IS DISTINCT FROM 'reused' AND finished_at > 0
    )
"""

# One row per manifest row and code: a prompt for a thousand concepts is corrected once.
_NOT_OK = """
    CREATE TEMP TABLE not_ok AS
    SELECT manifest, manifest_row, coalesce(error_code, status) AS code, any_value(status) AS status,
        count(*) AS results, arg_min(error_column, image_index) AS error_column,
        arg_min(error_message, image_index) AS error_message
    FROM (
        SELECT 'concepts' AS manifest, manifest_row, 0 AS image_index, status, error_code, error_column, error_message
        FROM concepts WHERE status <> 'ok'
        UNION ALL
        SELECT 'prompts', manifest_row, coalesce(image_index, 0), status, error_code, error_column, error_message
        FROM renders WHERE status <> 'ok'
    ) GROUP BY manifest, manifest_row, code
"""

_SLOWEST = """
    FROM (
        SELECT 'picture' AS kind, manifest_row, image_index, concept_id, prompt AS what, status, accelerator_s, batch,
            attempts
        FROM renders WHERE origin IS DISTINCT FROM 'reused' AND accelerator_s > 0
        ORDER BY accelerator_s DESC, manifest_row, image_index LIMIT $limit
    )
    UNION ALL FROM (
        SELECT 'concept', manifest_row, 0, concept_id, superclass, status, accelerator_s, batch, attempts
        FROM concepts WHERE origin IS DISTINCT FROM 'reused' AND accelerator_s > 0
        ORDER BY accelerator_s DESC, manifest_row LIMIT $limit
    )
    ORDER BY kind DESC, accelerator_s DESC, manifest_row, image_index
"""
