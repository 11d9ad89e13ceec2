"""The published tables as SQL: `concepts`, `renders`, `scores` and `current`, on any storage, published or not.

Each call sees the files that are there when it connects. Files of older schema versions are read with nulls for what
they lack; with nothing published the views are empty and have the fixed columns.
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

# The run is told by the last two folders alone: a root may lie below folders that look like partitions themselves.
# DuckDB opens only the files whose names pass a condition on these.
_FILE = f"{INTERNAL}file"
_RUN = "/run_date=([^/]*)/run_id=([^/]*)/[^/]*$"

# A picture's place is its prompt (concept ids and all), its negative prompt, its size and its index. What stands there
# is what the newest run that has an ok row for the place made; several rows of that run (seeds) all stand.
_CURRENT = """
CREATE VIEW current AS
WITH _perfusion_runs AS (
    SELECT run_id AS id, run_date AS day, max(finished_at) AS finished FROM renders GROUP BY run_id, run_date
),
_perfusion_ranked AS (
    SELECT r.*, dense_rank() OVER (
        PARTITION BY prompt, negative_prompt, width, height, image_index
        ORDER BY r.run_date DESC, _perfusion_runs.finished DESC, r.run_id DESC
    ) AS _perfusion_age
    FROM renders r JOIN _perfusion_runs ON _perfusion_runs.id = r.run_id AND _perfusion_runs.day = r.run_date
    WHERE r.status = 'ok'
)
SELECT * EXCLUDE (_perfusion_age) FROM _perfusion_ranked WHERE _perfusion_age = 1
QUALIFY row_number() OVER (
    PARTITION BY prompt, negative_prompt, width, height, image_index, render_key ORDER BY manifest_row
) = 1
"""


@contextmanager
def connect(storage: Storage) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB connection with the views of everything that is published under a root.

    - `concepts`, `renders`, `scores`: every row of every run, with `run_date` from the path.
    - `current`: the pictures that a shop would show now: for each prompt, size and index the ok rows of the newest run
      that has any, equal pictures once.

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
            # DuckDB takes every name for a pattern.
            spell = storage.full if local else storage.uri
            names = [glob.escape(spell(path)) for path in sorted(files)]
            listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
            connection.execute(
                f"CREATE VIEW {table} AS SELECT regexp_extract({_FILE}, '{_RUN}', 2) AS run_id, "
                f"CAST(regexp_extract({_FILE}, '{_RUN}', 1) AS DATE) AS run_date, * EXCLUDE ({_FILE}) "
                f"FROM read_parquet([{listed}], union_by_name = true, hive_partitioning = false, "
                f"filename = '{_FILE}')"
            )
        else:
            empty = pa.schema([("run_id", pa.string()), ("run_date", pa.date32()), *PUBLISHED[table]]).empty_table()
            connection.register("nothing", empty)
            connection.execute(f"CREATE TABLE nothing_{table} AS SELECT * FROM nothing")
            connection.execute(f"CREATE VIEW {table} AS SELECT * FROM nothing_{table}")
            connection.unregister("nothing")
    connection.execute(_CURRENT)


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
