"""The report of a run: one HTML file that works offline, from S3, on paper and without scripts.

Everything is counted from the published tables, never from a log. Pictures are inlined; the page holds as many sheets
as fit into its size and says how many it leaves out and how to query them. Ids, prompts, messages and carried columns
come from strangers: all of it is escaped, shortened and freed of control characters, and the page's policy forbids
scripts and every kind of loading.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import duckdb
import jinja2
import pyarrow as pa
import pyarrow.dataset
from markupsafe import Markup

from pipeline.contract.errors import MEANING, Code, Status
from pipeline.contract.kinds import RESULTS, ResultTable
from pipeline.contract.layout import TABLES_FOLDER, is_of_run, table_folder, table_pattern
from pipeline.contract.schemas import PUBLISHED
from pipeline.database.memory import in_memory
from pipeline.database.query import Row, quoted, rows
from pipeline.report.scores import MAX_SCORERS, extremes, scorer_figures
from pipeline.report.sheets import PictureReader, combined_renders, concept_cards, sample_concepts
from pipeline.runs.record import RunRecord
from pipeline.storage.objects import MissingObjectError, Storage
from pipeline.storage.scratch import scratch_folder

MIN_BYTES = 500_000  # the page without any picture stays below this, whatever the tables hold
MAX_COMBINED = 24  # pictures of several concepts
EXAMPLES = 3  # rows shown per error code
SLOWEST = 6  # pictures and concepts shown
SETTINGS = 60  # lines of the spec shown
BINS = 24

_COMBINED_SHARE = 0.25  # of the room for pictures
_SCORED_SHARE = 0.1  # likewise
_SLACK = 4096  # the page's sentences grow by some digits once the sheets are in
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


@dataclass(frozen=True)
class Totals:
    """What became of one table's rows.

    `statuses` and `origins` count rows. Several rows may share one object: `made` and `reused` count objects, and
    `bytes` and `accelerator_s` (this run's own work, failed attempts included) count each object once.
    """

    rows: int
    statuses: dict[str, int]
    made: int
    reused: int
    bytes: int
    accelerator_s: float


@dataclass(frozen=True)
class Histogram:
    """Accelerator seconds per object made: `counts[i]` lie in [i, i + 1) x `width`; the last bin is open."""

    total: int
    median: float
    p95: float
    largest: float
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class _Tables:
    """A run's tables as DuckDB views `concepts` and `renders`, and the names of the concepts' carried columns."""

    connection: duckdb.DuckDBPyConnection
    carried: tuple[str, ...]
    run_date: str


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
        known: its published files, whether a listing that lags behind shows them or not.
        max_concepts: concepts shown at most, each with its pictures.
        max_bytes: size of the page at most; concepts that do not fit are counted instead of shown.

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
    with _open_tables(storage, run_id, known) as tables:
        page = _page(storage, run_id, tables, max_concepts, max_bytes)
    return RunRecord(storage, run_id).write_report(page)


def _page(storage: Storage, run_id: str, tables: _Tables, max_concepts: int, max_bytes: int) -> bytes:
    """The whole page, as UTF-8, of at most `max_bytes`."""
    environment = _environment()
    template = environment.get_template("report.html.j2")
    tiles: Any = environment.get_template("tiles.html.j2").module
    scored: Any = environment.get_template("scores.html.j2").module
    view = _figures(storage, run_id, tables)
    photos = RunRecord(storage, run_id).photos()
    reader = PictureReader(storage)

    def render(cards: list[Markup], combined: list[Markup], ends: list[Markup]) -> bytes:
        return template.render(view, cards=cards, combined=combined, extremes=ends).encode("utf-8")

    room = max_bytes - len(render([], [], [])) - _SLACK
    ends: list[Markup] = []
    if view["scores"]:
        both = extremes(tables.connection, view["scores"][0].digest, reader)
        ends = _that_fit(map(scored.scored, both), int(room * _SCORED_SHARE))
    room -= sum(map(_size, ends))
    combined = _that_fit(
        map(tiles.combined, combined_renders(tables.connection, MAX_COMBINED, photos, reader)),
        int(room * _COMBINED_SHARE),
    )
    room -= sum(map(_size, combined))
    # Drawn by digest, so that what fits is a fair sample; shown by id, so that one is found again.
    sample = sample_concepts(tables.connection, max_concepts)
    cards = _that_fit(map(tiles.card, concept_cards(tables.connection, sample, tables.carried, photos, reader)), room)
    shown = zip((row["concept_id"] for row in sample), cards, strict=False)
    return render([card for _, card in sorted(shown)], combined, ends)


def _figures(storage: Storage, run_id: str, tables: _Tables) -> dict[str, Any]:
    """All of the page but its pictures."""
    connection = tables.connection
    for table in RESULTS:
        _count_objects(connection, table)
    return {
        "run_id": run_id,
        "run_date": tables.run_date,
        "root": storage.root,
        "settings": _settings(storage, run_id),
        "settings_shown": SETTINGS,
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
        "scores": scorer_figures(connection, storage, run_id),
        "scores_shown": MAX_SCORERS,
        "pattern": {table: storage.uri(table_pattern(table, run_id)) for table in PUBLISHED},
    }


@contextmanager
def _open_tables(storage: Storage, run_id: str, known: Iterable[str]) -> Iterator[_Tables]:
    """The run's published tables, read where they lie; sorting spills to local scratch."""
    there = {*known, *(path for path, _ in storage.list(TABLES_FOLDER) if is_of_run(path, run_id))}
    files = {
        table.name: sorted(path for path in there if path.startswith(f"{table_folder(table.name)}/"))
        for table in RESULTS
    }
    found = [path for paths in files.values() for path in paths]
    if not found:
        raise MissingObjectError(
            f"run {run_id!r} has published nothing under {storage.uri(TABLES_FOLDER)}: "
            "check the run id, or let the run finish first"
        )
    dates = re.findall(r"/run_date=([^/]+)/", "".join(found))
    with (
        scratch_folder("report") as scratch,
        in_memory({"memory_limit": "1GB", "temp_directory": str(scratch)}) as connection,
    ):
        carried = {name: _view(connection, storage, name, paths) for name, paths in files.items()}
        yield _Tables(connection, carried["concepts"], max(dates, default=""))


def _view(connection: duckdb.DuckDBPyConnection, storage: Storage, table: str, paths: list[str]) -> tuple[str, ...]:
    """Create the view `table` over `paths`; return the names of its carried columns, which it shows as short texts."""
    fixed = PUBLISHED[table]
    source: Any = fixed.empty_table()
    carried: list[pa.Field] = []
    if paths:
        full = [storage.full(path) for path in paths]
        found = pyarrow.dataset.dataset(full, filesystem=storage.filesystem, format="parquet")
        carried = [field for field in found.schema if field.name not in fixed.names]
        # Columns that an older file lacks are read as null.
        source = pyarrow.dataset.dataset(
            full, filesystem=storage.filesystem, format="parquet", schema=pa.schema([*fixed, *carried])
        )
    connection.register(f"{table}_files", source)
    quoted_names = [quoted(field.name) for field in carried]
    texts = "".join(f", left(CAST({name} AS VARCHAR), 200) AS {name}" for name in quoted_names)
    plain = ", ".join(quoted(name) for name in fixed.names if name != "finished_at")
    connection.execute(
        f"CREATE VIEW {table} AS SELECT {plain}, epoch(finished_at) AS finished_at{texts} FROM {table}_files"
    )
    return tuple(field.name for field in carried)


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
    """Rows that are not ok, by code and most frequent first, each with its meaning and its first few rows."""
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
    if code == Status.FILTERED:
        return "The picture was made, but a policy withholds it."
    return "A code that this version does not know: a newer version wrote the table."


def _histogram(connection: duckdb.DuckDBPyConnection, table: ResultTable) -> Histogram | None:
    """Seconds of what this run made; None when it made nothing. The open last bin keeps a few stragglers in view."""
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
    """The next number of two digits or less that is a convenient step of an axis; 0.001 for nothing."""
    if value <= 0:
        return 0.001
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        power * step for step in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if power * step >= value * (1 - 1e-9)
    )


def _that_fit(fragments: Iterable[Markup], room: int) -> list[Markup]:
    """The leading fragments that together have at most `room` bytes; later ones are not even made."""
    kept: list[Markup] = []
    for fragment in fragments:
        room -= _size(fragment)
        if room < 0:
            break
        kept.append(fragment)
    return kept


def _size(text: str) -> int:
    return len(text.encode("utf-8"))


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    (count,) = connection.execute(sql).fetchall()[0]
    return count


def _settings(storage: Storage, run_id: str) -> list[tuple[str, str]]:
    """Names and values of the recorded spec; empty if the run has none."""
    record = RunRecord(storage, run_id)
    return list(_flat(record.spec().model_dump(mode="json"))) if record.has_begun() else []


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of the leaves of a JSON value that are set."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif value not in (None, [], ""):
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@cache
def _environment() -> jinja2.Environment:
    """The same for all reports: compiling the templates takes longer than filling them."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clip": _clip,
        "csp_hash": lambda text: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        "grouped": lambda number: f"{number:,}",
        "literal": lambda text: "'" + str(text).replace("'", "''") + "'",
        "data_size": _data_size,
        "duration": _duration,
        "moment": lambda epoch: datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return environment


def _clip(value: Any, length: int) -> str:
    """At most `length` characters of a stranger's text, without line breaks, control or text-direction characters."""
    text = _UNPRINTABLE.sub(" ", str(value))
    return text if len(text) <= length else text[: length - 1] + "…"


def _data_size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _duration(seconds: float) -> str:
    if 0 < seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


# Reused rows carry the time of the run that made them.
_SPAN = """
    SELECT min(finished_at) AS first, max(finished_at) AS last, count(DISTINCT worker) AS workers FROM (
        SELECT finished_at, worker FROM concepts WHERE origin IS DISTINCT FROM 'reused' AND finished_at > 0
        UNION ALL
        SELECT finished_at, worker FROM renders WHERE origin IS DISTINCT FROM 'reused' AND finished_at > 0
    )
"""

# One row per manifest row and code: a prompt crossed with a thousand concepts is one thing to correct.
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
