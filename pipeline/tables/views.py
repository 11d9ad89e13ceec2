"""The published tables as SQL: `concepts`, `renders`, `scores` and `current`, on any storage, published or not.

A connection sees the files that exist when it is opened. Columns that a file of an older schema version lacks are read
as null. If nothing is published, the views are empty and have the fixed columns.
"""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from pipeline.contract.layout import table_folder
from pipeline.contract.schemas import INTERNAL, PUBLISHED
from pipeline.database.memory import Config, in_memory
from pipeline.storage.objects import Storage

_ENGINE: Config = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}

# Only the last two folders name the run: folders above the root may look like partitions too. A condition on run_id or
# run_date is applied to file names, so DuckDB opens only the matching files.
_FILE = f"{INTERNAL}file"
_RUN = "/run_date=([^/]*)/run_id=([^/]*)/[^/]*$"

# The place of a render is its prompt (with concept ids), negative prompt, scene, ControlNet and its picture, size and
# index, and whether it is a video. Current are the ok rows of the newest run that has an ok row for the place; a run
# may have several (seeds).
_PLACE = "prompt, negative_prompt, scene, keep, control, control_picture, width, height, image_index, frames IS NULL"
_CURRENT = f"""
CREATE VIEW current AS
WITH _perfusion_runs AS (
    SELECT run_id AS id, run_date AS day, max(finished_at) AS finished FROM renders GROUP BY run_id, run_date
),
_perfusion_ranked AS (
    SELECT r.*, dense_rank() OVER (
        PARTITION BY {_PLACE}
        ORDER BY r.run_date DESC, _perfusion_runs.finished DESC, r.run_id DESC
    ) AS _perfusion_age
    FROM renders r JOIN _perfusion_runs ON _perfusion_runs.id = r.run_id AND _perfusion_runs.day = r.run_date
    WHERE r.status = 'ok'
)
SELECT * EXCLUDE (_perfusion_age) FROM _perfusion_ranked WHERE _perfusion_age = 1
QUALIFY row_number() OVER (
    PARTITION BY {_PLACE}, render_key ORDER BY manifest_row
) = 1
"""


@contextmanager
def connect(storage: Storage) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB connection with views of everything that is published under a root.

    - `concepts`, `renders`, `scores`: all rows of all runs, with `run_id` and `run_date` from the path.
    - `current`: the renders that a shop would show now: for each prompt, negative prompt, scene, ControlNet and its
      picture, size and index, and for pictures and videos, the ok rows of the newest run that has any, equal renders
      once.

    Raises:
        StorageError: the tables cannot be listed.
        MemoryFullError, ScratchFullError: a query in the block needs more memory or disk than there is.
    """
    with in_memory(_ENGINE) as connection:
        _create_views(connection, storage)
        yield connection


def _create_views(connection: duckdb.DuckDBPyConnection, storage: Storage) -> None:
    local = isinstance(storage.filesystem, LocalFileSystem)
    if not local:
        connection.register_filesystem(storage.filesystem)
    for table in PUBLISHED:
        files = [path for path, _ in storage.list(table_folder(table)) if path.endswith(".parquet")]
        if files:
            # DuckDB reads each name as a glob pattern.
            spell = storage.full if local else storage.uri
            names = [glob.escape(spell(path)) for path in sorted(files)]
            listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
            rows = (
                f"SELECT regexp_extract({_FILE}, '{_RUN}', 2) AS run_id, "
                f"CAST(regexp_extract({_FILE}, '{_RUN}', 1) AS DATE) AS run_date, * EXCLUDE ({_FILE}) "
                f"FROM read_parquet([{listed}], union_by_name = true, hive_partitioning = false, "
                f"filename = '{_FILE}')"
            )
            connection.execute(f"CREATE VIEW {table} AS {rows}")
            if absent := _absent(connection, table):
                connection.execute(f"CREATE OR REPLACE VIEW {table} AS SELECT *{absent} FROM ({rows})")
        else:
            empty = pa.schema([("run_id", pa.string()), ("run_date", pa.date32()), *PUBLISHED[table]]).empty_table()
            connection.register("nothing", empty)
            connection.execute(f"CREATE TABLE nothing_{table} AS SELECT * FROM nothing")
            connection.execute(f"CREATE VIEW {table} AS SELECT * FROM nothing_{table}")
            connection.unregister("nothing")
    connection.execute(_CURRENT)


def _absent(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    """SQL for the columns that all files of a table lack, which are of an earlier version."""
    rows = connection.execute("SELECT column_name FROM duckdb_columns() WHERE table_name = ?", [table]).fetchall()
    present = {name.lower() for (name,) in rows}
    absent = [field for field in PUBLISHED[table] if field.name.lower() not in present]
    kinds = connection.from_arrow(pa.schema(absent).empty_table()).types if absent else []
    return "".join(f", NULL::{kind} AS {field.name}" for field, kind in zip(absent, kinds, strict=True))


def query(storage: Storage, sql: str, parameters: list[Any] | None = None) -> pa.Table:
    """Rows of one query over the views.

    Args:
        storage: whose tables.
        sql: one SELECT over `concepts`, `renders`, `scores` and `current`.
        parameters: values of its placeholders.

    Raises:
        StorageError: the tables cannot be listed.
        duckdb.Error: the query is wrong.
    """
    with connect(storage) as connection:
        return connection.sql(sql, params=parameters).to_arrow_table()
