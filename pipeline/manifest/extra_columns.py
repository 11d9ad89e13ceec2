"""A manifest's extra columns, carried under their own names and types into one table of the plan's database.

Parquet columns keep their types (`pipeline.manifest.carried_types`), and a column has the same type in all files. A
column will be published, so it is accepted only if the database and Parquet, tried in memory, return its values
unchanged.

CSV and JSON columns are held as text until all rows are read. Then a column becomes whole numbers, numbers or booleans
if each value prints as the text in the file; otherwise it stays text. JSON numbers must only keep their value
(`pipeline.files.json_values`), and JSON text stays text.
"""

import duckdb
import pyarrow as pa
from duckdb.sqltypes import DuckDBPyType

from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import EXTRA_ROW
from pipeline.database.query import quoted
from pipeline.manifest.carried_types import carry, changes, kept, through_parquet

_MAX_COLUMNS = 1_000
# Texts that may be numbers; infinities and NaN count as words.
_NUMBER = r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"
# JSON numbers that a DOUBLE holds: not whole numbers that it would round.
_JSON_DOUBLE = r"-?[0-9]{1,15}|-?[0-9]+(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)"
_CSV_TYPES = (("BOOLEAN", "true|false"), ("BIGINT", "-?[0-9]+"), ("DOUBLE", _NUMBER))
_JSON_TYPES = (
    ("BOOLEAN", frozenset({"bool"}), "true|false"),
    ("BIGINT", frozenset({"int"}), "-?[0-9]+"),
    ("DOUBLE", frozenset({"int", "float"}), _JSON_DOUBLE),
)


class ExtraColumns:
    """The table `name` of `EXTRA_ROW` and the extra columns, filled in batches; `finish` sets the types of text."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._types: dict[str, DuckDBPyType] = {}
        self._kinds: dict[str, set[str]] = {}
        self._untyped: set[str] = set()
        self._notices: dict[str, None] = {}
        connection.execute(f"CREATE TABLE {name} ({EXTRA_ROW} BIGINT NOT NULL)")

    @property
    def names(self) -> list[str]:
        """Every extra column so far."""
        return [*self._types, *sorted(self._untyped.difference(self._types))]

    @property
    def notices(self) -> tuple[str, ...]:
        """A message for each column whose type in the tables differs from the manifest's."""
        return tuple(self._notices)

    def append(self, first_row: int, rows: int, extra: pa.Table, kinds: dict[str, set[str]]) -> None:
        """Add `rows` rows, numbered from `first_row`.

        Args:
            first_row: number of the first of them.
            rows: number of rows.
            extra: their extra columns, if any.
            kinds: kinds of value in each text column (`pipeline.files.rows.Batch`).

        Raises:
            ManifestError: a column changes its type, or has values that cannot be published unchanged.
        """
        for column, met in kinds.items():
            self._kinds.setdefault(column, set()).update(met)
        # A column of only nulls may have no type; another file decides.
        self._untyped.update(field.name for field in extra.schema if pa.types.is_null(field.type))
        columns = {
            name: self._carried(name, extra.column(name))
            for name in extra.column_names
            if not pa.types.is_null(extra.schema.field(name).type)
        }
        numbers = pa.array(range(first_row, first_row + rows), pa.int64())
        table = pa.table({EXTRA_ROW: numbers, **columns})
        try:
            self._connection.register("extra_batch", table)
            self._connection.execute(f"INSERT INTO {self._name} BY NAME SELECT * FROM extra_batch")
        finally:
            self._connection.unregister("extra_batch")

    def finish(self) -> None:
        """Give each text column the type that all its values fit."""
        for column in sorted(self._untyped.difference(self._types)):
            self._declare(column, DuckDBPyType("VARCHAR"))
        for column, kind in self._types.items():
            if (known := _filled(kind)) != str(kind):
                self._retype(column, known)
        for column, kinds in self._kinds.items():
            if kind := self._settled(column, kinds):
                self._retype(column, kind)

    def _carried(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """The column as the database takes it, tried on the whole way to a published file.

        Raises:
            ManifestError: the way changes a value or does not support the type.
        """
        try:
            carried = carry(column)
            self._connection.register("extra_column", pa.table({name: carried}))
            try:
                relation = self._connection.sql("SELECT * FROM extra_column")
                kind, returned = relation.types[0], relation.to_arrow_table()
            finally:
                self._connection.unregister("extra_column")
            unchanged = kept(carried, through_parquet(returned).column(0))
            self._declare(name, kind)
        except (pa.ArrowException, duckdb.DataError, duckdb.NotSupportedError, duckdb.ProgrammingError) as error:
            raise ManifestError(_refusal(name, column.type, str(error).strip().splitlines()[0])) from error
        if not unchanged:
            raise ManifestError(_refusal(name, column.type, "its values would be changed"))
        self._notices.update(dict.fromkeys(f"column {name!r} {change}" for change in changes(column.type)))
        return carried

    def _declare(self, column: str, kind: DuckDBPyType) -> None:
        if (known := self._types.get(column)) is None:
            self._connection.execute(f"ALTER TABLE {self._name} ADD COLUMN {quoted(column)} {kind}")
            known = self._types[column] = kind
        merged = _merged(known, kind)
        if merged is None:
            raise ManifestError(
                f"column {column!r} is {known} in one file and {kind} in another: write all files with one type"
            )
        if len(self._types) > _MAX_COLUMNS:
            raise ManifestError(f"the manifest has more than {_MAX_COLUMNS:,} columns of its own: drop some")
        if merged != str(known):
            self._retype(column, merged)

    def _retype(self, column: str, kind: str) -> None:
        self._connection.execute(f"ALTER TABLE {self._name} ALTER COLUMN {quoted(column)} TYPE {kind}")
        self._types[column] = DuckDBPyType(kind)

    def _settled(self, column: str, kinds: set[str]) -> str | None:
        """The type for a text column, or None if it stays text, because no other type fits all values."""
        name = quoted(column)
        if "text" in kinds:
            options = [
                (kind, look, f"CAST(TRY_CAST({name} AS {kind}) AS VARCHAR) IS NOT DISTINCT FROM {name}")
                for kind, look in _CSV_TYPES
            ]
        else:
            options = [
                (kind, look, f"TRY_CAST({name} AS {kind}) IS NOT NULL")
                for kind, allowed, look in _JSON_TYPES
                if kinds and kinds <= allowed
            ]
        for kind, look, holds in options:
            fits = f"SELECT bool_and(regexp_full_match({name}, '{look}') AND {holds}) FROM {self._name} "
            # `fetchall` for one row: the connection refuses other work until a result has been read to its end.
            if self._connection.execute(f"{fits} WHERE {name} IS NOT NULL").fetchall()[0][0]:
                return kind
        return None


def _refusal(name: str, kind: pa.DataType, reason: str) -> str:
    return (
        f"column {name!r} of type {kind} cannot be published without loss ({reason}): "
        "write it as text or as plain numbers, or drop it"
    )


def _merged(known: DuckDBPyType, other: DuckDBPyType) -> str | None:
    """The common type of two that differ only where one has only nulls; None if they clash."""
    if str(known) == str(other) or other.id == "null":
        return str(known)
    if known.id == "null":
        return str(other)
    if known.id != other.id or known.id not in ("list", "array", "map", "struct"):
        return None
    ours, theirs = _members(known), _members(other)
    if list(ours) != list(theirs) or (
        known.id == "array" and dict(known.children)["size"] != dict(other.children)["size"]
    ):
        return None
    members = {name: _merged(mine, theirs[name]) for name, mine in ours.items()}
    return None if None in members.values() else _spelt(known, members)


def _filled(kind: DuckDBPyType) -> str:
    """The type with text where all values were null."""
    if kind.id == "null":
        return "VARCHAR"
    if kind.id not in ("list", "array", "map", "struct"):
        return str(kind)
    return _spelt(kind, {name: _filled(each) for name, each in _members(kind).items()})


def _members(kind: DuckDBPyType) -> dict[str, DuckDBPyType]:
    return {name: each for name, each in kind.children if isinstance(each, DuckDBPyType)}


def _spelt(kind: DuckDBPyType, members: dict[str, str | None]) -> str:
    if kind.id == "map":
        return f"MAP({members['key']}, {members['value']})"
    if kind.id == "struct":
        return f"STRUCT({', '.join(f'{quoted(name)} {each}' for name, each in members.items())})"
    return f"{members['child']}[{dict(kind.children)['size'] if kind.id == 'array' else ''}]"
