"""The manifests' own columns as a root's tables carry them: one name and one type in every file, whatever the night.

A root remembers its columns in `tables/<table>/run_date=1970-01-01/run_id=schema/part-….parquet`: a file without rows
that sorts before every other, where readers that take the schema from the first file find all columns. A later version
bears a lower number, so that the newest is the first; a version is created exclusively, has every column of the one
before, and is never changed. Files of a run carry every column that its root has had so far.

A column keeps the type that it got first. Values of another type are converted when every one converts back to itself,
and texts also when each spells a number or a truth value of that type: `12.00` in a column of DOUBLE, of which a notice
tells. Otherwise a number column widens (whole numbers to larger ones or to DOUBLE, FLOAT to DOUBLE) when no published
value would change. What cannot be widened is published beside the first as `<column>__<type>`, with null in the first.
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
_NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?"  # with a leading zero it is a code
_EXACT_WHOLE = 2**53  # a DOUBLE holds every whole number up to here


@dataclass(frozen=True)
class Carried:
    """One such column: its name and type in the tables, and the manifest column it is filled from, if this run has it.

    `manifest` is concepts or prompts, `column` the name there; both are None for a column of earlier runs alone.
    """

    field: pa.Field
    kind: str
    manifest: str | None
    column: str | None


def carried_columns(db: PlanDB, storage: Storage, table: ResultTable) -> tuple[tuple[Carried, ...], tuple[str, ...]]:
    """The columns that this run's rows of `table` would have, and a sentence for each that was not taken as it is.

    Args:
        db: with both manifests loaded.
        storage: the root.
        table: concepts or renders.

    Raises:
        StorageError: the root's schema cannot be read.
    """
    _, remembered = _remembered(storage, table)
    return _merged(db, storage, table, remembered)


def agree(db: PlanDB, storage: Storage, table: ResultTable) -> tuple[Carried, ...]:
    """The same, remembered by the root from now on; of two runs at once the second takes the first one's types.

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
    """The newest version's number and schema; of a root without one, what its tables have so far, if any."""
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
    """A manifest's own columns under their own names and types."""
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
    """Where a manifest's column goes among those of the root, and what to say of it if that is not its own place."""
    name = new.field.name
    old = carried.get(name.lower())
    if old is None:
        return new, None
    said = f"is published as {old.field.name!r}, as in earlier runs" if old.field.name != name else None
    if old.kind == new.kind or _converts(connection, new, old.kind):
        return Carried(old.field, old.kind, new.manifest, new.column), said
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
    """Whether every value converts to `kind` and back to itself; a number never becomes a truth value."""
    if kind == "BOOLEAN" and new.kind != "VARCHAR":
        return False
    assert new.column is not None
    column = quoted(new.column)
    # A cast that does not exist is refused when the statement is bound, even by TRY_CAST.
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
    """DOUBLE or BOOLEAN when every text of a column spells such a value, which a DOUBLE holds exactly."""
    assert new.column is not None
    column = quoted(new.column)
    [(numbers, truths)] = connection.execute(
        f"SELECT bool_and(regexp_full_match({column}, '{_NUMBER}') AND length(ltrim({column}, '-0.')) <= 16), "
        f"bool_and(lower({column}) IN ('true', 'false')) FROM {new.manifest}_extra WHERE {column} IS NOT NULL"
    ).fetchall()
    return "DOUBLE" if numbers else "BOOLEAN" if truths else None


def _wider(old: str, new: str) -> str | None:
    """The number type that holds both; None where there is none, or where `old` holds all of `new`'s already."""
    if old in _WHOLE and new in _WHOLE:
        return max(old, new, key=lambda kind: _WHOLE[kind])
    if {old, new} <= {*_WHOLE, "FLOAT", "DOUBLE"} and old != "DOUBLE":
        return "DOUBLE"
    return None


def _exact_as_double(storage: Storage, table: ResultTable, column: str) -> bool:
    """Whether no published whole number of a column would change as a DOUBLE, by the files' own statistics."""

    def exact(file: pq.ParquetFile) -> bool:
        names = [file.schema.column(index).path for index in range(len(file.schema))]
        if column not in names or not pa.types.is_integer(file.schema_arrow.field(column).type):
            return True
        groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
        told = [group.column(names.index(column)).statistics for group in groups if group.num_rows]
        return all(
            each is not None and (not each.has_min_max or max(abs(each.min), abs(each.max)) <= _EXACT_WHOLE)
            for each in told
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
