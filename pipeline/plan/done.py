"""Which objects exist already: the outcomes of all earlier runs, believed only where storage lists the object.

Storage is listed once and joined in SQL, so the cost is one listing however many rows are planned. A row of a table or
a part whose object is gone, or has another size than the one recorded, does not count: the work is done again.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline.contract.layout import image_path, weights_path
from pipeline.contract.schemas import CONCEPTS, PART, RENDERS
from pipeline.database.memory import retried
from pipeline.database.plandb import PlanDB
from pipeline.storage.objects import Storage
from pipeline.tables.parts import gathered, read_tables

_LISTED = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
_KEY = "0" * 64
# Of each kind: the folder, and what a path has before and after its key and the key's first two digits.
_PATHS = {
    kind: (folder, *spell(_KEY).split(f"{_KEY[:2]}/{_KEY}"))
    for kind, folder, spell in (("concept", "weights", weights_path), ("render", "images", image_path))
}
# What of each record is kept: its schema, and as SQL its kind, key, loss and time in seconds.
_PART = (PART, "kind", "key", "loss", "finished_at")
_CONCEPT = (CONCEPTS, "'concept'", "concept_key", "loss", "epoch_us(finished_at) / 1e6")
_RENDER = (RENDERS, "'render'", "render_key", "NULL", "epoch_us(finished_at) / 1e6")


@retried
def list_objects(db: PlanDB, storage: Storage) -> int:
    """Fill the table `objects` (kind, key, bytes) with every concept and picture there is; returns their number.

    Raises:
        StorageError: storage cannot be listed.
    """
    connection = db.connection
    connection.execute("DELETE FROM objects")
    for kind, (folder, start, end) in _PATHS.items():
        values = {"kind": kind, "start": start, "end": end, "skip": len(start) + 4}
        for rows in gathered(pa.table(list(page), schema=_LISTED) for page in storage.pages(folder)):
            connection.register("rows_read", rows)
            connection.execute(_OBJECTS, values)
            connection.unregister("rows_read")
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
    connection = db.connection
    connection.execute("DELETE FROM done")
    connection.execute("""
        CREATE OR REPLACE TABLE records (
            kind VARCHAR, key VARCHAR, sha256 VARCHAR, bytes BIGINT,
            accelerator_s DOUBLE, loss DOUBLE, finished_at DOUBLE
        )
    """)
    [(any_object,)] = connection.execute("SELECT EXISTS (FROM objects)").fetchall()
    for path, (schema, kind, key, loss, finished_at) in _sources(storage) if any_object else ():
        for rows in gathered(rows for _, rows in read_tables(storage, [path], schema)):
            connection.register("rows_read", rows)
            connection.execute(
                f"INSERT INTO records SELECT {kind}, {key}, sha256, bytes, accelerator_s, {loss}, {finished_at} "
                "FROM rows_read WHERE status = 'ok'"
            )
    paths = [(kind, f"{storage.root}/{start}", end) for kind, (_, start, end) in _PATHS.items()]
    connection.execute("CREATE OR REPLACE TEMP TABLE paths (kind VARCHAR, start VARCHAR, rest VARCHAR)")
    connection.executemany("INSERT INTO paths VALUES (?, ?, ?)", paths)
    # The newest record of the object that is there: an object made again may have another size. Runs that reused it
    # recorded no seconds of their own. Only numbers are aggregated: DuckDB cannot spill aggregates of text.
    connection.execute("""
        INSERT INTO done BY NAME
        WITH newest AS (
            SELECT arg_max(r.rowid, coalesce(r.finished_at, 0)) AS rid, max(r.accelerator_s) AS accelerator_s
            FROM records r JOIN objects USING (kind, key, bytes) GROUP BY r.kind, md5_number(r.key)
        )
        SELECT r.kind, r.key, p.start || substr(r.key, 1, 2) || '/' || r.key || p.rest AS uri,
            r.sha256, r.bytes, n.accelerator_s, r.loss
        FROM newest n JOIN records r ON r.rowid = n.rid JOIN paths p USING (kind)
    """)
    connection.execute("DROP TABLE records; DROP TABLE paths")
    [(count,)] = connection.execute("SELECT count(*) FROM done").fetchall()
    return count


def _sources(storage: Storage) -> Iterator[tuple[str, tuple[pa.Schema, str, str, str, str]]]:
    """Every staged part and published table, with what is kept of it; a published run's parts say nothing new."""
    # Runs are listed before tables: a run that is published in between is read twice, never missed.
    runs = [PurePosixPath(path) for path, _ in storage.list("runs")]
    published = {path.parent for path in runs if path.name == "published.json"}
    for path in runs:
        if path.match("runs/*/parts/*.parquet") and path.parent.parent not in published:
            yield str(path), _PART
    for folder, kept in (("tables/concepts", _CONCEPT), ("tables/renders", _RENDER)):
        for path, _ in storage.list(folder):
            if path.endswith(".parquet"):
                yield path, kept


# What lies where no key leads is somebody else's.
_OBJECTS = """
INSERT INTO objects
SELECT $kind, key, bytes
FROM (SELECT *, substr(path, $skip, 64) AS key FROM rows_read)
WHERE path = $start || substr(key, 1, 2) || '/' || key || $end
"""
