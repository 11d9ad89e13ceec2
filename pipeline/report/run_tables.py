"""A run's published tables as DuckDB views, for the report."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset

from pipeline.contract.kinds import RESULTS
from pipeline.contract.layout import TABLES_FOLDER, is_of_run, table_folder
from pipeline.contract.schemas import PUBLISHED
from pipeline.database.memory import in_memory
from pipeline.database.query import quoted
from pipeline.storage.objects import MissingObjectError, Storage
from pipeline.storage.scratch import scratch_folder


@dataclass(frozen=True)
class RunTables:
    """A run's tables as DuckDB views `concepts` and `renders`, and the names of the concepts' carried columns."""

    connection: duckdb.DuckDBPyConnection
    carried: tuple[str, ...]
    run_date: str


@contextmanager
def open_tables(storage: Storage, run_id: str, known: Iterable[str]) -> Iterator[RunTables]:
    """The run's published tables, read from storage; sorting spills to local scratch."""
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
        yield RunTables(connection, carried["concepts"], max(dates, default=""))


def _view(connection: duckdb.DuckDBPyConnection, storage: Storage, table: str, paths: list[str]) -> tuple[str, ...]:
    """Create the view `table` over `paths`; return the names of its carried columns, which become short texts."""
    fixed = PUBLISHED[table]
    source: Any = fixed.empty_table()
    carried: list[pa.Field] = []
    if paths:
        full = [storage.full(path) for path in paths]
        found = pyarrow.dataset.dataset(full, filesystem=storage.filesystem, format="parquet")
        carried = [field for field in found.schema if field.name not in fixed.names]
        # A column that an older file lacks is read as null.
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
