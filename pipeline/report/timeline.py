"""When each worker trained, rendered and waited, rebuilt from a run's published tables.

The rows of one unit of work have the same worker and the same share of the unit's seconds, and they finish within
moments of each other. So a unit ends when its rows finished, and it lasted as long as their shares add up to. Time that
no row has is not in the tables and looks idle: setting up a worker, a unit that failed as a whole, and a row whose
object an earlier run had already made. Each worker's own clock tells when it finished.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import duckdb

from pipeline.contract.kinds import RESULTS, ResultTable
from pipeline.database.query import Row, rows

COLUMNS = 200  # of a lane: equal parts of the run's time
MAX_LANES = 40
HEIGHT = 40  # of a lane's drawing; it is COLUMNS wide

_LEAST_S = 1e-6  # width of a column at least: the resolution of the tables' times


@dataclass(frozen=True)
class Lane:
    """A worker, or all of them.

    `first_s` and `last_s` are seconds from the start of the timeline to the start of the worker's first unit and to the
    end of its last one; between them it was busy or idle. `first` and `last` are the same in columns. `trained` and
    `rendered` have the seconds of each column, as the tables give them. After a worker's clock was set back, its units
    may overlap and make more seconds than a column has; the paths are clipped there.
    """

    name: str
    training_s: float
    rendering_s: float
    present_s: float
    first_s: float
    last_s: float
    first: float
    last: float
    trained: tuple[float, ...]
    rendered: tuple[float, ...]
    training_path: str
    busy_path: str

    @property
    def busy(self) -> float:
        """Share of the time from the first unit to the last one, 1 at most."""
        return min(1.0, (self.training_s + self.rendering_s) / self.present_s)

    @property
    def idle_s(self) -> float:
        """Seconds between the first unit and the last one that no row accounts for."""
        return max(0.0, self.present_s - self.training_s - self.rendering_s)


@dataclass(frozen=True)
class Timeline:
    """The lanes of a run: `every` is the sum of all `workers`, `lanes` are the least busy ones, by name.

    `begin` is in seconds since 1970, `duration_s` from the start of the first unit to the end of the last one.
    """

    begin: float
    duration_s: float
    workers: int
    every: Lane
    lanes: tuple[Lane, ...]
    columns: int = COLUMNS
    height: int = HEIGHT

    @property
    def busy_of_all(self) -> float:
        """Share of all workers' time, as if each had been there from start to end; 1 at most."""
        return min(1.0, (self.every.training_s + self.every.rendering_s) / (self.workers * self.duration_s))


def make_timeline(connection: duckdb.DuckDBPyConnection) -> Timeline | None:
    """The timeline of a run; None if no row has a worker that spent time on it.

    Memory and the result are bounded for any number of rows and workers: at most MAX_LANES lanes of COLUMNS columns.

    Args:
        connection: has the views `concepts` and `renders`; gets temporary tables of this module.
    """
    connection.execute(_UNITS)
    [whole] = rows(connection, _WHOLE)
    if not whole["workers"]:
        return None
    column_s = max((whole["last_s"] - whole["first_s"]) / COLUMNS, _LEAST_S)
    connection.execute(_SHOWN, [MAX_LANES])
    shown = rows(connection, _NAMED)
    seconds: dict[tuple[int | None, str], list[float]] = {}
    columns = connection.execute(_COLUMNS, {"begin": whole["first_s"], "column_s": column_s, "columns": COLUMNS})
    for worker, kind, column, spent in columns.fetchall():
        seconds.setdefault((worker, kind), [0.0] * COLUMNS)[column] = spent

    def lane(row: Row, workers: int = 1) -> Lane:
        trained, rendered = (seconds.get((row["worker"], table.name), [0.0] * COLUMNS) for table in RESULTS)
        first_s, last_s = row["first_s"] - whole["first_s"], row["last_s"] - whole["first_s"]
        room = column_s * workers
        return Lane(
            name=row["name"],
            training_s=row["training_s"],
            rendering_s=row["rendering_s"],
            present_s=row["present_s"],
            first_s=first_s,
            last_s=last_s,
            first=first_s / column_s,
            last=last_s / column_s,
            trained=tuple(trained),
            rendered=tuple(rendered),
            training_path=outline(trained, room),
            busy_path=outline([sum(both) for both in zip(trained, rendered, strict=True)], room),
        )

    return Timeline(
        begin=whole["zero"] + whole["first_s"],
        duration_s=column_s * COLUMNS,
        workers=whole["workers"],
        every=lane({**whole, "worker": None, "name": "all workers"}, whole["workers"]),
        lanes=tuple(map(lane, shown)),
    )


def outline(seconds: Sequence[float], room: float) -> str:
    """The path of a filled step curve, one unit of length per column, HEIGHT high where a column is full.

    What is not zero is drawn, and nothing is higher than HEIGHT. Neighbors of equal height are one step.

    Args:
        seconds: of each column.
        room: seconds of a full column.
    """
    heights = [min(HEIGHT, math.ceil(HEIGHT * each / room)) if each > 0 else 0 for each in seconds]
    return "".join(_steps(heights))


def _steps(heights: Iterable[int]) -> Iterable[str]:
    at, width = 0, 0
    yield f"M0 {HEIGHT}"
    for height in heights:
        if height != at:
            yield f"{f'h{width}' if width else ''}v{at - height}"
            at, width = height, 0
        width += 1
    yield f"h{width}V{HEIGHT}z"


def _spent(table: ResultTable) -> str:
    """SQL for the rows of a table that this run spent time on."""
    return f"""
        SELECT hash(worker) AS worker, '{table.name}' AS kind, finished_at, accelerator_s FROM {table.name}
        WHERE origin IS DISTINCT FROM 'reused' AND worker IS NOT NULL AND finished_at > 0 AND accelerator_s > 0
    """


# Rows of one unit finish within moments, and between two units of one worker lie all shares of one of them. So rows are
# grouped by moments of half a share, and neighboring moments are joined. Times become differences to the first finish:
# seconds since 1970 would leave a double a quarter of a microsecond. A worker is the hash of its name, because DuckDB
# cannot spill aggregates of text. Of rows with equal keys, only one has the seconds.
_UNITS = f"""
    CREATE TEMP TABLE units AS
    WITH moments AS (
        SELECT worker, kind, accelerator_s, sum(accelerator_s) AS busy_s, min(finished_at) AS early,
            max(finished_at) AS late
        FROM ({" UNION ALL ".join(map(_spent, RESULTS))})
        GROUP BY worker, kind, accelerator_s, floor(2 * finished_at / accelerator_s)
    ), placed AS (
        SELECT *, early - lag(late) OVER neighbors < accelerator_s / 2 AS joined FROM moments
        WINDOW neighbors AS (PARTITION BY worker, kind, accelerator_s ORDER BY early)
    ), numbered AS (
        SELECT *, count(*) FILTER (joined IS NOT TRUE) OVER earlier AS number FROM placed
        WINDOW earlier AS (PARTITION BY worker, kind, accelerator_s ORDER BY early ROWS UNBOUNDED PRECEDING)
    ), zero AS (SELECT min(early) AS zero FROM moments)
    SELECT worker, kind, any_value(zero) AS zero, max(late - zero) AS last_s, sum(busy_s) AS busy_s
    FROM numbered, zero GROUP BY worker, kind, accelerator_s, number
"""
_SUMS = """
    coalesce(sum(busy_s) FILTER (kind = 'concepts'), 0) AS training_s,
    coalesce(sum(busy_s) FILTER (kind = 'renders'), 0) AS rendering_s,
    min(last_s - busy_s) AS first_s, max(last_s) AS last_s
"""
_BY_WORKER = f"""
    SELECT worker, {_SUMS}, greatest(max(last_s) - min(last_s - busy_s), max(busy_s)) AS present_s
    FROM units GROUP BY worker
"""
_WHOLE = f"""
    SELECT any_value(zero) AS zero, {_SUMS}, count(DISTINCT worker) AS workers,
        (SELECT sum(present_s) FROM ({_BY_WORKER})) AS present_s
    FROM units
"""
_SHOWN = f"""
    CREATE TEMP TABLE shown AS SELECT * FROM ({_BY_WORKER}) ORDER BY training_s + rendering_s, first_s, worker LIMIT ?
"""
_NAMED = """
    SELECT names.worker AS name, shown.* FROM shown JOIN (
        SELECT DISTINCT worker FROM (SELECT worker FROM concepts UNION ALL SELECT worker FROM renders)
        WHERE hash(worker) IN (SELECT worker FROM shown)
    ) names ON hash(names.worker) = shown.worker
    ORDER BY name
"""
_COLUMNS = """
    WITH timed AS (
        SELECT shown.worker, kind, units.last_s - busy_s - $begin AS first_s, units.last_s - $begin AS last_s
        FROM units LEFT JOIN shown ON shown.worker = units.worker
    ), parts AS (
        SELECT *, unnest(range(
            least(floor(first_s / $column_s), $columns - 1)::BIGINT,
            least(floor(last_s / $column_s), $columns - 1)::BIGINT + 1
        )) AS place FROM timed
    )
    SELECT worker, kind, place::INTEGER,
        sum(greatest(0, least(last_s, (place + 1) * $column_s) - greatest(first_s, place * $column_s)))
    FROM parts GROUP BY GROUPING SETS ((worker, kind, place), (kind, place))
    HAVING GROUPING(worker) = 1 OR worker IS NOT NULL
"""
