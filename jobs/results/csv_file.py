"""A query's result as CSV: text and nested values are quoted, other values are bare, null is empty."""

from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import numpy as np
from duckdb.sqltypes import DuckDBPyType

from jobs.output import json_text, plain
from jobs.results.values import csv_moment, is_moment

_BARE = frozenset(
    {"boolean", "tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint"}
    | {"uhugeint", "bignum", "decimal", "float", "double"}
)


def write_csv(file: TextIO, names: Sequence[str], kinds: Sequence[DuckDBPyType], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows.

    A list has `;` between its elements, as in a CSV manifest. An ambiguous list and any other nested value are JSON.

    Args:
        file: where to write.
        names: names of the columns.
        kinds: types of the columns.
        rows: rows of `result_rows`.
    """
    file.write(",".join(map(_quoted, names)) + "\n")
    for row in rows:
        file.write(",".join([_cell(value, kind) for value, kind in zip(row, kinds, strict=True)]) + "\n")


def _cell(value: Any, kind: DuckDBPyType) -> str:
    if value is None:
        return ""
    if is_moment(kind):
        return csv_moment(value, kind)
    if kind.id == "float":
        return str(np.float32(value))  # the shortest text that reads as the same float32
    text = _listed(value) if kind.id == "list" else _text(value)
    return text if kind.id in _BARE else _quoted(text)


def _text(value: Any) -> str:
    known = plain(value)
    return known if isinstance(known, str) else json_text(known)


def _listed(value: list[Any]) -> str:
    known = plain(value)
    if not _separable(known):
        return json_text(known)
    return ";".join("" if element is None else _text(element) for element in known)


def _separable(elements: list[Any]) -> bool:
    """Whether a reader can split the text again, and tell a missing element from an empty one."""
    if any(isinstance(element, list | dict) or element == "" for element in elements) or elements == [None]:
        return False
    return not any(";" in element or element.startswith(("[", "{")) for element in elements if isinstance(element, str))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
