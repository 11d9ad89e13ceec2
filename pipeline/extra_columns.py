"""A manifest's own columns, carried through under their own names and types into one table of the plan's database.

Parquet columns keep their types, and one column has one type in all files: nothing is cast. CSV and JSON columns are
held as text until all of them have been seen; then a column whose every value is a whole number, a number or a boolean
becomes one. A CSV code such as "007" stays text, and so does JSON text that looks like a number.
"""

import duckdb
import pyarrow as pa

from pipeline.errors import ManifestError
from pipeline.plandb import EXTRA_ROW

_MAX_COLUMNS = 1_000
# What text must look like throughout, in order of preference: no leading zeros, which mark codes rather than numbers,
# and no whole number that a DOUBLE would round.
_DOUBLE = r"-?(0|[1-9][0-9]{0,14})|-?(0|[1-9][0-9]*)(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)"
_CSV_TYPES = (
    ("BOOLEAN", "true|false|True|False|TRUE|FALSE"),
    ("BIGINT", "-?(0|[1-9][0-9]*)"),
    ("DOUBLE", _DOUBLE),
)
_JSON_TYPES = (
    ("BOOLEAN", frozenset({"bool"}), "true|false"),
    ("BIGINT", frozenset({"int"}), "-?[0-9]+"),
    ("DOUBLE", frozenset({"int", "float"}), _DOUBLE),
)


class ExtraColumns:
    """The table `name`: `EXTRA_ROW` and the extra columns, filled by batches; `finish` settles the types of text."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._types: dict[str, str] = {}
        self._kinds: dict[str, set[str]] = {}
        self._untyped: set[str] = set()
        connection.execute(f"CREATE TABLE {name} ({EXTRA_ROW} BIGINT NOT NULL)")

    @property
    def names(self) -> list[str]:
        """Every extra column met so far."""
        return [*self._types, *sorted(self._untyped.difference(self._types))]

    def append(self, first_row: int, rows: int, extra: pa.Table, kinds: dict[str, set[str]]) -> None:
        """Add `rows` rows, numbered from `first_row`.

        Args:
            first_row: number of the first of them.
            rows: how many.
            extra: their extra columns; may have none.
            kinds: for columns of text: the kinds of value in them (`pipeline.manifest_files.Batch`).

        Raises:
            ManifestError: a column that has another type than before or that the database cannot hold.
        """
        for column, met in kinds.items():
            self._kinds.setdefault(column, set()).update(met)
        # A column of nothing but nulls may have no type of its own: another file decides.
        self._untyped.update(field.name for field in extra.schema if pa.types.is_null(field.type))
        typed = extra.select([field.name for field in extra.schema if not pa.types.is_null(field.type)])
        numbers = pa.array(range(first_row, first_row + rows), pa.int64())
        table = pa.table({EXTRA_ROW: numbers, **{name: typed.column(name) for name in typed.column_names}})
        try:
            self._connection.register("extra_batch", table)
            for column, kind, *_ in self._connection.execute("DESCRIBE SELECT * FROM extra_batch").fetchall()[1:]:
                self._declare(column, kind)
            self._connection.execute(f"INSERT INTO {self._name} BY NAME SELECT * FROM extra_batch")
        except duckdb.Error as error:
            raise ManifestError(
                f"the extra columns cannot be carried through ({error}): drop or convert them"
            ) from error
        finally:
            self._connection.unregister("extra_batch")

    def finish(self) -> None:
        """Give every text column the type that all of its values have."""
        for column in sorted(self._untyped.difference(self._types)):
            self._declare(column, "VARCHAR")
        for column, kinds in self._kinds.items():
            if kind := self._settled(column, kinds):
                self._connection.execute(f"ALTER TABLE {self._name} ALTER COLUMN {_quoted(column)} TYPE {kind}")

    def _declare(self, column: str, kind: str) -> None:
        known = self._types.setdefault(column, kind)
        if known != kind:
            raise ManifestError(
                f"column {column!r} is {known} in one file and {kind} in another: write all files with one type"
            )
        if len(self._types) > _MAX_COLUMNS:
            raise ManifestError(f"the manifest has more than {_MAX_COLUMNS:,} columns of its own: drop some")
        self._connection.execute(f"ALTER TABLE {self._name} ADD COLUMN IF NOT EXISTS {_quoted(column)} {kind}")

    def _settled(self, column: str, kinds: set[str]) -> str | None:
        """The type for a text column, or None when it stays text; one that would not hold a value is not taken."""
        if "text" in kinds:
            options = list(_CSV_TYPES)
        else:
            options = [(kind, look) for kind, allowed, look in _JSON_TYPES if kinds and kinds <= allowed]
        for kind, look in options:
            fits = (
                f"regexp_full_match({_quoted(column)}, '{look}') AND TRY_CAST({_quoted(column)} AS {kind}) IS NOT NULL"
            )
            where = f"{_quoted(column)} IS NOT NULL"
            # All rows are fetched, although there is one: the connection refuses other work until a result has ended.
            if self._connection.execute(f"SELECT bool_and({fits}) FROM {self._name} WHERE {where}").fetchall()[0][0]:
                return kind
        return None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
