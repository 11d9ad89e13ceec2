"""Rows of a Parquet manifest in batches; an index that pandas wrote without a name is left out."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.errors import ManifestError
from pipeline.files.rows import BATCH_BYTES, BATCH_ROWS, Batch, Columns, Notice, Notices, check_names, check_required

_NS_RANGE_US = 2**63 // 1000 - 1  # microseconds from 1970 that nanoseconds in 64 bits hold
_INDEX_REMEDY = "give the index a name (DataFrame.rename_axis) to keep it as a column"


def read_parquet(path: Path, name: str, columns: Columns, notices: Notices) -> Iterator[Batch]:
    """The rows of the Parquet file at `path`, called `name`.

    Raises:
        ManifestError: a column is missing, unnamed, duplicate or differs from another only by case, or no single unit
            holds all timestamps of the type INT96.
        pa.ArrowException, OSError: the file cannot be read.
    """
    unit = _unit_of_int96(path, name)
    with pq.ParquetFile(
        path, memory_map=False, pre_buffer=False, buffer_size=2**20, coerce_int96_timestamp_unit=unit
    ) as file:
        index = unnamed_index(file.schema_arrow)
        for column in index:
            what = f"with the column {column!r}, which pandas wrote as an index without a name, left out"
            notices.add(Notice("file", what, _INDEX_REMEDY), name)
        names = [column for column in file.schema_arrow.names if column not in index]
        extra = check_names(names, columns, name)
        check_required(names, columns, name)
        total = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        row_bytes = max(1, total // max(1, file.metadata.num_rows))
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
        for batch in file.iter_batches(batch_size=rows, use_threads=False):
            known = {column: _values(batch.column(column)) for column in names if column in columns.known}
            cells = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
            yield Batch(cells, {}, pa.Table.from_batches([batch]).select(extra))


def _unit_of_int96(path: Path, name: str) -> str:
    """The unit in which Arrow reads all timestamps of the type INT96 without loss.

    Arrow's default is ns, which overflows after the year 2262 without an error. Spark writes whole microseconds, and
    often 9999-12-31 for "never"; such a file is read as us.
    """
    with pq.ParquetFile(path) as exact, pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as wide:
        leaves = [exact.schema.column(index) for index in range(len(exact.schema))]
        old = sorted({leaf.path.partition(".")[0] for leaf in leaves if leaf.physical_type == "INT96"})
        beyond, finer = None, None
        pages = (file.iter_batches(BATCH_ROWS, columns=old, use_threads=False) for file in (exact, wide))
        for ns_batch, us_batch in zip(*pages, strict=True) if old else ():
            for column in old:
                ns, us = ns_batch.column(column), us_batch.column(column)
                if pa.types.is_timestamp(us.type):
                    inside = pa.array(np.abs(us.cast(pa.int64()).fill_null(0).to_numpy()) <= _NS_RANGE_US)
                    beyond = beyond or (column if inside.false_count else None)
                    ns, us = ns.filter(inside), us.filter(inside)
                try:
                    finer = finer or (None if us.cast(ns.type).equals(ns) else column)
                except pa.ArrowInvalid:
                    beyond = beyond or column
    if beyond and finer:
        raise ManifestError(
            f"{name} has timestamps of the type INT96 beyond the year 2262 (column {beyond!r}) and some with "
            f"nanoseconds (column {finer!r}), which no single unit holds: write TIMESTAMP columns instead "
            "(Spark: spark.sql.parquet.outputTimestampType=TIMESTAMP_MICROS)"
        )
    return "us" if beyond else "ns"


def unnamed_index(schema: pa.Schema) -> list[str]:
    """Columns that are an unnamed index by the metadata of pandas; a named index is data, such as an id."""
    try:
        pandas = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        index = {column for column in pandas.get("index_columns", ()) if isinstance(column, str)}
        named = {column["field_name"]: column["name"] for column in pandas.get("columns", ())}
    except (ValueError, TypeError, KeyError, AttributeError):
        return []  # written by a program that only resembles pandas
    return [
        column
        for column in schema.names
        if column in index and named.get(column) is None and column.startswith("__index_level_")
    ]


def _values(column: pa.Array) -> list[object]:
    """Cells as Python values; text that is not UTF-8 stays bytes, which every text check refuses."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast(pa.binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value
