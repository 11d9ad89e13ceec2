"""The published tables as SQL: `concepts`, `renders`, `scores` and `current`, on any storage, published or not.

Each call sees the files that are there when it connects. Files of older schema versions are read with nulls for what
they lack; with nothing published the views are empty and have the fixed columns.
"""

import glob
from typing import Any

import duckdb
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from pipeline.schemas import PUBLISHED
from pipeline.storage import Storage

_ENGINE: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}

# A picture's place is its prompt (concept ids and all), its negative prompt, its size and its index. What stands there
# is what the newest run that has an ok row for the place made; several rows of that run (seeds) all stand.
_CURRENT = """
CREATE VIEW current AS
WITH ages AS (SELECT run_id, run_date, max(finished_at) AS run_finished_at FROM renders GROUP BY run_id, run_date),
ranked AS (
    SELECT r.*, dense_rank() OVER (
        PARTITION BY prompt, negative_prompt, width, height, image_index
        ORDER BY run_date DESC, run_finished_at DESC, run_id DESC
    ) AS age
    FROM renders r JOIN ages USING (run_id, run_date) WHERE status = 'ok'
)
SELECT * EXCLUDE (age) FROM ranked WHERE age = 1
QUALIFY row_number() OVER (
    PARTITION BY prompt, negative_prompt, width, height, image_index, render_key ORDER BY manifest_row
) = 1
"""


def connect(storage: Storage) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection with the views of everything that is published under a root.

    - `concepts`, `renders`, `scores`: every row of every run, with `run_date` from the path.
    - `current`: the pictures that a shop would show now: for each prompt, size and index the ok rows of the newest run
      that has any, equal pictures once.

    Raises:
        StorageError: the tables cannot be listed.
    """
    connection = duckdb.connect(config=_ENGINE)
    local = isinstance(storage.filesystem, LocalFileSystem)
    if not local:
        connection.register_filesystem(storage.filesystem)
    for table in PUBLISHED:
        files = [path for path, _ in storage.list(f"tables/{table}") if path.endswith(".parquet")]
        if files:
            # DuckDB takes every name for a pattern.
            spell = storage.full if local else storage.uri
            names = [glob.escape(spell(path)) for path in sorted(files)]
            listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
            connection.execute(
                f"CREATE VIEW {table} AS SELECT run_id, run_date, * EXCLUDE (run_id, run_date) "
                f"FROM read_parquet([{listed}], union_by_name = true, "
                "hive_partitioning = true, hive_types = {'run_date': DATE, 'run_id': VARCHAR})"
            )
        else:
            empty = pa.schema([("run_id", pa.string()), ("run_date", pa.date32()), *PUBLISHED[table]]).empty_table()
            connection.register("nothing", empty)
            connection.execute(f"CREATE TABLE nothing_{table} AS SELECT * FROM nothing")
            connection.execute(f"CREATE VIEW {table} AS SELECT * FROM nothing_{table}")
            connection.unregister("nothing")
    connection.execute(_CURRENT)
    return connection


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
