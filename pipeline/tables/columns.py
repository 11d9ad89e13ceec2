"""The carried columns of a root: extra columns of the manifests, with one name and one type in all published files.

A root stores its columns in `tables/<table>/run_date=1970-01-01/run_id=schema/part-….parquet`, a file without rows. It
sorts first, so readers that take the schema from the first file see all columns. A newer version has a lower number, so
the newest is the first. A version is created exclusively, has all columns of the version before, and never changes. The
files of a run have all columns that its root has at that time.

A column keeps its first type. Values of another type are converted if each one converts back to itself. Texts are also
converted if each one is a number or a truth value of the column's type, such as `12.00` in a DOUBLE column; a notice
reports it. Otherwise a number column is widened (whole numbers to a larger type or DOUBLE, FLOAT to DOUBLE) if no
published value changes. Other values are published in a second column `<column>__<type>`, with null in the first one.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contract.kinds import ResultTable
from pipeline.contract.layout import schema_path, table_folder
from pipeline.contract.schemas import METADATA, PUBLISHED
from pipeline.database.plandb import PlanDB, extra_columns
from pipeline.database.query import quoted
from pipeline.storage.objects import Storage, StorageError

_LAST_VERSION = 99_999
_FOOTERS_AT_ONCE = 8
_WHOLE = {"TINYINT": 8, "SMALLINT": 16, "INTEGER": 32, "BIGINT": 64}
_NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?"  # a text with a leading zero is a code
_EXACT_WHOLE = 2**53  # a DOUBLE holds every whole number up to this one


@dataclass(frozen=True)
class Carried:
    """One carried column.

    Attributes:
        field: name and type in the tables.
        kind: the type as DuckDB names it.
        manifest: concepts or prompts; None if only earlier runs had the column.
        column: its name in that manifest; None in the same case.
    """

    field: pa.Field
    kind: str
    manifest: str | None
    column: str | None


def carried_columns(db: PlanDB, storage: Storage, table: ResultTable) -> tuple[tuple[Carried, ...], tuple[str, ...]]:
    """The carried columns of this run's rows, and a notice for each column that is not published as it is.

    Args:
        db: with both manifests loaded.
        storage: the root.
        table: whose columns.

    Raises:
        StorageError: the root's schema cannot be read.
    """
    _, remembered = _remembered(storage, table)
    return _merged(db, storage, table, remembered)


def agree(db: PlanDB, storage: Storage, table: ResultTable) -> tuple[Carried, ...]:
    """The same columns, stored as a version of the root. Of two concurrent runs, the second takes the first's types.

    Raises:
        StorageError: the root's schema cannot be read or written.
    """
    while True:
        version, remembered = _remembered(storage, table)
        carried, _ = _merged(db, storage, table, remembered)
        schema = pa.schema([*PUBLISHED[table.name], *(each.field for each in carried)], metadata=METADATA)
        if remembered is not None and version is not None and remembered.equals(schema):
            return carried
        number = _LAST_VERSION if version is None else version - 1
        sink = io.BytesIO()
        pq.write_table(schema.empty_table(), sink)
        if storage.create(schema_path(table.name, number), sink.getvalue()):
            return carried


def _remembered(storage: Storage, table: ResultTable) -> tuple[int | None, pa.Schema | None]:
    """Number and schema of the newest version; for a root without versions, None and the columns of its tables."""
    paths = sorted(path for path, _ in storage.list(table_folder(table.name)) if path.endswith(".parquet"))
    folder = schema_path(table.name, 0).rpartition("/")[0] + "/"
    versions = [path for path in paths if path.startswith(folder)]
    if versions:
        number = int(re.sub(r"\D", "", versions[0].rpartition("/")[2]))
        return number, _footer(storage, versions[0], lambda file: file.schema_arrow)
    fields: dict[str, pa.Field] = {}
    for schema in _footers(storage, paths, lambda file: file.schema_arrow):
        for field in schema:
            fields.setdefault(field.name.lower(), field)
    return None, pa.schema(list(fields.values())) if paths else None


def _merged(
    db: PlanDB, storage: Storage, table: ResultTable, remembered: pa.Schema | None
) -> tuple[tuple[Carried, ...], tuple[str, ...]]:
    connection = db.connection
    fixed = {name.lower() for name in PUBLISHED[table.name].names}
    old = [field for field in remembered or () if field.name.lower() not in fixed]
    kinds = dict(zip((field.name for field in old), _kinds(connection, pa.schema(old).empty_table()), strict=True))
    carried = {field.name.lower(): Carried(field, kinds[field.name], None, None) for field in old}
    notices: list[str] = []
    for manifest in table.manifests:
        for new in _given(connection, manifest):
            taken, notice = _placed(connection, storage, table, new, carried)
            carried[taken.field.name.lower()] = taken
            notices += [f"column {new.column!r} of the {manifest} manifest {notice}"] if notice else []
    return tuple(carried.values()), tuple(notices)


def _given(connection: duckdb.DuckDBPyConnection, manifest: str) -> list[Carried]:
    """The extra columns of a manifest with their own names and types."""
    if not (names := extra_columns(connection, manifest)):
        return []
    relation = connection.sql(f"SELECT {', '.join(map(quoted, names))} FROM {manifest}_extra LIMIT 0")
    kinds = map(str, relation.types)
    fields = relation.to_arrow_table().schema
    return [Carried(field, kind, manifest, field.name) for field, kind in zip(fields, kinds, strict=True)]


def _placed(
    connection: duckdb.DuckDBPyConnection,
    storage: Storage,
    table: ResultTable,
    new: Carried,
    carried: dict[str, Carried],
) -> tuple[Carried, str | None]:
    """The column of the root that a manifest's column is published in, and a notice unless it is the same column."""
    name = new.field.name
    old = carried.get(name.lower())
    if old is None:
        return new, None
    notice = f"is published as {old.field.name!r}, as in earlier runs" if old.field.name != name else None
    if old.kind == new.kind or _converts(connection, new, old.kind):
        return Carried(old.field, old.kind, new.manifest, new.column), notice
    spelled = _spelled(connection, new) if new.kind == "VARCHAR" else None
    if spelled == old.kind:
        return Carried(old.field, old.kind, new.manifest, new.column), (
            f"is {old.kind} in earlier runs: its texts are published as such values, which loses their spelling "
            f"({'True becomes true' if old.kind == 'BOOLEAN' else '1.10 becomes 1.1'})"
        )
    wide = _wider(old.kind, spelled or new.kind)
    if wide and (wide != "DOUBLE" or _exact_as_double(storage, table, old.field.name)):
        field = pa.field(old.field.name, _arrow_type(connection, wide))
        return Carried(field, wide, new.manifest, new.column), f"widens from {old.kind} to {wide} in the tables"
    beside = f"{old.field.name}__{re.sub('[^a-z0-9]+', '_', new.kind.lower()).strip('_')[:40]}"
    again = Carried(pa.field(beside, new.field.type), new.kind, new.manifest, new.column)
    known = carried.get(beside.lower())
    if known is not None and known.manifest is not None:
        raise StorageError(
            f"column {name!r} is {new.kind} and was {old.kind} in earlier runs, so that it would be published as "
            f"{beside!r}, which the manifests use too: rename one of them"
        )
    return again, (
        f"is {new.kind} and was {old.kind} in earlier runs: its values are published as {beside!r}, and {name!r} is "
        f"null in this run's rows; write it as {old.kind}, or give it a new name, if that is not meant"
    )


def _converts(connection: duckdb.DuckDBPyConnection, new: Carried, kind: str) -> bool:
    """Whether each value converts to `kind` and back to itself; numbers never become truth values."""
    if kind == "BOOLEAN" and new.kind != "VARCHAR":
        return False
    assert new.column is not None
    column = quoted(new.column)
    # DuckDB refuses a cast that does not exist when it binds the statement, even in TRY_CAST.
    try:
        [(exact,)] = connection.execute(
            f"SELECT bool_and({column} IS NOT DISTINCT FROM TRY_CAST(TRY_CAST({column} AS {kind}) AS {new.kind})) "
            f"FROM {new.manifest}_extra WHERE {column} IS NOT NULL"
        ).fetchall()
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException):
            raise
        return False
    return exact is not False


def _spelled(connection: duckdb.DuckDBPyConnection, new: Carried) -> str | None:
    """DOUBLE if each text of a column is a number that a DOUBLE holds exactly, BOOLEAN if each is a truth value."""
    assert new.column is not None
    column = quoted(new.column)
    [(numbers, truths)] = connection.execute(
        f"SELECT bool_and(regexp_full_match({column}, '{_NUMBER}') AND length(ltrim({column}, '-0.')) <= 16), "
        f"bool_and(lower({column}) IN ('true', 'false')) FROM {new.manifest}_extra WHERE {column} IS NOT NULL"
    ).fetchall()
    return "DOUBLE" if numbers else "BOOLEAN" if truths else None


def _wider(old: str, new: str) -> str | None:
    """The number type that holds both; None if there is none, or if `old` already holds all values of `new`."""
    if old in _WHOLE and new in _WHOLE:
        return max(old, new, key=lambda kind: _WHOLE[kind])
    if {old, new} <= {*_WHOLE, "FLOAT", "DOUBLE"} and old != "DOUBLE":
        return "DOUBLE"
    return None


def _exact_as_double(storage: Storage, table: ResultTable, column: str) -> bool:
    """Whether a DOUBLE holds every published whole number of a column, by the statistics of the files."""

    def exact(file: pq.ParquetFile) -> bool:
        names = [file.schema.column(index).path for index in range(len(file.schema))]
        if column not in names or not pa.types.is_integer(file.schema_arrow.field(column).type):
            return True
        groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
        statistics = [group.column(names.index(column)).statistics for group in groups if group.num_rows]
        return all(
            each is not None and (not each.has_min_max or max(abs(each.min), abs(each.max)) <= _EXACT_WHOLE)
            for each in statistics
        )

    paths = [path for path, _ in storage.list(table_folder(table.name)) if path.endswith(".parquet")]
    return all(_footers(storage, paths, exact))


def _footers(storage: Storage, paths: Sequence[str], read: Callable[[pq.ParquetFile], Any]) -> Iterable[Any]:
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE, thread_name_prefix="footers") as pool:
        yield from pool.map(lambda path: _footer(storage, path, read), paths)


def _footer(storage: Storage, path: str, read: Callable[[pq.ParquetFile], Any]) -> Any:
    try:
        with storage.filesystem.open(storage.full(path), "rb") as source, pq.ParquetFile(source) as file:
            return read(file)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{storage.uri(path)} cannot be read ({error}): restore it, or move it out of the tables"
        ) from error


def _kinds(connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> list[str]:
    if not rows.column_names:
        return []
    connection.register("columns_described", rows)
    try:
        return [str(kind) for kind in connection.table("columns_described").types]
    finally:
        connection.unregister("columns_described")


def _arrow_type(connection: duckdb.DuckDBPyConnection, kind: str) -> pa.DataType:
    return connection.sql(f"SELECT CAST(NULL AS {kind}) AS value").to_arrow_table().schema.field("value").type
