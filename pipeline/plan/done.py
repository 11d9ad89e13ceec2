"""Which objects exist: outcomes of earlier runs, trusted only if storage lists the object with the recorded size.

Storage is listed once and the listing is joined in SQL, so the cost does not depend on the number of planned rows. Work
whose object is missing or has another size is done again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.contract import schemas
from pipeline.contract.kinds import CONCEPTS, RENDERS, RESULTS, ResultTable
from pipeline.contract.layout import table_folder
from pipeline.database.memory import retried
from pipeline.database.parquet import gathered, read_tables
from pipeline.database.plandb import PlanDB, Stage
from pipeline.runs.find import list_runs
from pipeline.storage.objects import Storage

_LISTED = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
_KEY = "0" * 64


@dataclass(frozen=True)
class _Source:
    """Which columns of a file become records: its schema, and SQL for kind, key, loss and finish time in seconds."""

    schema: pa.Schema
    kind: str
    key: str
    loss: str
    finished_at: str


_PART = _Source(schemas.PART, "kind", "key", "loss", "finished_at")
_TABLES = (
    (CONCEPTS, _Source(schemas.CONCEPTS, "'concept'", CONCEPTS.key_column, "loss", "epoch_us(finished_at) / 1e6")),
    (RENDERS, _Source(schemas.RENDERS, "'render'", RENDERS.key_column, "NULL", "epoch_us(finished_at) / 1e6")),
)


@retried
def list_objects(db: PlanDB, storage: Storage) -> int:
    """Fill the table `objects` with every concept and render in storage; returns their number.

    Raises:
        StorageError: storage cannot be listed.
    """
    connection = db.connection
    connection.execute("DELETE FROM objects")
    for table in RESULTS:
        start, ends = _around_key(table)
        values = {"kind": table.kind, "start": start, "ends": ends, "skip": len(start) + 4}
        for rows in gathered(pa.table(list(page), schema=_LISTED) for page in storage.pages(table.folder)):
            connection.register("rows_read", rows)
            connection.execute(_OBJECTS, values)
            connection.unregister("rows_read")
    db.mark_filled(Stage.OBJECTS)
    [(count,)] = connection.execute("SELECT count(*) FROM objects").fetchall()
    return count


@retried
def load_done(db: PlanDB, storage: Storage) -> int:
    """Fill `done` from every published table and every staged part; returns the number of rows.

    Args:
        db: with `objects` filled.
        storage: where the objects were listed.

    Raises:
        StorageError: storage cannot be listed, or a table or part cannot be read.
    """
    db.require(Stage.OBJECTS)
    connection = db.connection
    connection.execute("DELETE FROM done")
    connection.execute("""
        CREATE OR REPLACE TABLE records (
            kind VARCHAR, key VARCHAR, sha256 VARCHAR, bytes BIGINT,
            accelerator_s DOUBLE, loss DOUBLE, finished_at DOUBLE
        )
    """)
    [(any_object,)] = connection.execute("SELECT EXISTS (FROM objects)").fetchall()
    for path, source in _sources(storage) if any_object else ():
        columns = f"{source.kind}, {source.key}, sha256, bytes, accelerator_s, {source.loss}, {source.finished_at}"
        for rows in gathered(rows for _, rows in read_tables(storage, [path], source.schema)):
            connection.register("rows_read", rows)
            connection.execute(f"INSERT INTO records SELECT {columns} FROM rows_read WHERE status = 'ok'")
    paths = []
    for table in RESULTS:
        start, ends = _around_key(table)
        paths += [(table.kind, form, f"{storage.root}/{start}", end) for form, end in enumerate(ends, 1)]
    connection.execute("CREATE OR REPLACE TEMP TABLE paths (kind VARCHAR, form UTINYINT, start VARCHAR, rest VARCHAR)")
    connection.executemany("INSERT INTO paths VALUES (?, ?, ?, ?)", paths)
    # The newest record with the object's size: an object that was made again may have another size. Runs that reused it
    # recorded no seconds. Only numbers are aggregated: DuckDB cannot spill aggregates of text.
    connection.execute("""
        INSERT INTO done BY NAME
        WITH newest AS (
            SELECT arg_max(r.rowid, coalesce(r.finished_at, 0)) AS rid, max(r.accelerator_s) AS accelerator_s,
                arg_max(o.form, coalesce(r.finished_at, 0)) AS form
            FROM records r JOIN objects o USING (kind, key, bytes) GROUP BY r.kind, md5_number(r.key)
        )
        SELECT r.kind, r.key, p.start || substr(r.key, 1, 2) || '/' || r.key || p.rest AS uri,
            r.sha256, r.bytes, n.accelerator_s, r.loss
        FROM newest n JOIN records r ON r.rowid = n.rid JOIN paths p ON p.kind = r.kind AND p.form = n.form
    """)
    connection.execute("DROP TABLE records; DROP TABLE paths")
    db.mark_filled(Stage.DONE)
    [(count,)] = connection.execute("SELECT count(*) FROM done").fetchall()
    return count


def _around_key(table: ResultTable) -> tuple[str, list[str]]:
    """What the path of an object has before the first two digits of its key, and what it may have after its key."""
    parts = [path.split(f"{_KEY[:2]}/{_KEY}") for path in table.object_paths(_KEY)]
    return parts[0][0], [end for _, end in parts]


def _sources(storage: Storage) -> Iterator[tuple[str, _Source]]:
    """Every staged part and published table. Parts of a finished run are skipped: its tables have the same rows."""
    # Runs are listed before tables: a run that is published in between is read twice, never missed.
    for run in list_runs(storage).values():
        yield from ((path, _PART) for path in run.parts if not run.published)
    for table, source in _TABLES:
        for path, _ in storage.list(table_folder(table.name)):
            if path.endswith(".parquet"):
                yield path, source


# Files at any other path were not written by this program.
_OBJECTS = """
INSERT INTO objects
SELECT $kind, key, form, bytes
FROM (
    SELECT *, substr(path, $skip, 64) AS key, list_position($ends, substr(path, $skip + 64)) AS form FROM rows_read
)
WHERE form > 0 AND starts_with(path, $start || substr(key, 1, 2) || '/' || key)
"""
