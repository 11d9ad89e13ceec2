"""Rows of a DuckDB result as Python values, without loss and without further packages.

Python's dates end in the year 9999, its times have microseconds, and DuckDB needs pytz for a time with a zone. So the
database prints values of such types as text, at any depth, and this module parses the text.
"""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import duckdb
from duckdb.sqltypes import DuckDBPyType

_ROWS = 10_000
_MOMENTS = {
    "date": 0,
    "time": 6,
    "time_ns": 9,
    "time with time zone": 6,
    "timestamp": 6,
    "timestamp_s": 0,
    "timestamp_ms": 3,
    "timestamp_ns": 9,
    "timestamp with time zone": 6,
    "timestamptz_ns": 9,
}
_TEXTS = frozenset({*_MOMENTS, "interval", "geometry", "bit", "type"})
_JSON = frozenset({"union", "variant"})
_NESTED = frozenset({"list", "array", "map", "struct", "tuple"})
_MOMENT = re.compile(r"(?:(\d{4}-\d\d-\d\d)[ T])?(\d\d:\d\d:\d\d)(?:\.(\d+))?([+-]\d\d(?::\d\d)*)?")
_UNITS = re.compile(r"(-?\d+) (year|month|day)s?")
_CLOCK = re.compile(r"(-?)(\d+):(\d\d):(\d\d)(?:\.(\d+))?")


def result_rows(connection: duckdb.DuckDBPyConnection, result: duckdb.DuckDBPyRelation) -> Iterator[tuple[Any, ...]]:
    """The rows of a result. Do not use the connection for anything else before the last row.

    Dates and times are ISO 8601 text, or DuckDB's own text if ISO 8601 has none (`infinity`, years before 1 or after
    9999). Intervals are months, days and nanoseconds. A union is an object with the name of its member. A map is a list
    of pairs. Numbers are exact.

    Raises:
        duckdb.Error: the query fails.
    """
    perfusion_result = result
    kinds = perfusion_result.types
    names = [f"c{index}" for index in range(len(kinds))]
    casts = [f"CAST({name} AS {_sql(kind)})" if _sql(kind) else name for name, kind in zip(names, kinds, strict=True)]
    # DuckDB finds the relation by the name of a local variable.
    connection.execute(f"SELECT {', '.join(casts)} FROM perfusion_result AS t({', '.join(names)})")
    while rows := connection.fetchmany(_ROWS):
        for row in rows:
            yield tuple([_value(value, kind) for value, kind in zip(row, kinds, strict=True)])


def csv_moment(text: str, kind: DuckDBPyType) -> str:
    """A date or time of `result_rows` as CSV text: a blank instead of `T`, and all digits of its type."""
    if not (found := _MOMENT.fullmatch(text)):
        return text
    day, clock, fraction, offset = found.groups(default="")
    digits = _MOMENTS[str(kind.id)]
    fraction = f".{fraction[:digits].ljust(digits, '0')}" if digits else ""
    return f"{day}{' ' if day else ''}{clock}{fraction}{offset.replace(':', '') if len(offset) == 6 else offset}"


def is_moment(kind: DuckDBPyType) -> bool:
    """Whether values of a type are dates or times."""
    return str(kind.id) in _MOMENTS


def _sql(kind: DuckDBPyType) -> str | None:
    """The type to cast a column to before Python fetches it without loss; None if it needs no cast."""
    if kind.id in _TEXTS:
        return "VARCHAR"
    if kind.id in _JSON:
        return "JSON"
    if kind.id not in _NESTED:
        return None
    members = _members(kind)
    inner = [(name, _sql(member), member) for name, member in members]
    if not any(sql for _, sql, _ in inner):
        return None
    types = [sql or str(member) for _, sql, member in inner]
    match kind.id:
        case "list":
            known = f"{types[0]}[]"
        case "array":
            known = f"{types[0]}[{dict(kind.children)['size']}]"
        case "map":
            known = f"MAP({types[0]}, {types[1]})"
        case "tuple":
            known = f"TUPLE({', '.join(types)})"
        case _:
            names = ['"' + name.replace('"', '""') + '"' for name, _ in members]
            known = f"STRUCT({', '.join(map(' '.join, zip(names, types, strict=True)))})"
    return known


def _members(kind: DuckDBPyType) -> list[tuple[str, DuckDBPyType]]:
    return [(name, member) for name, member in kind.children if isinstance(member, DuckDBPyType)]


def _value(value: Any, kind: DuckDBPyType) -> Any:
    """The value to print for a fetched value of a type, after the cast of `_sql`."""
    if value is None:
        return None
    match kind.id:
        case "interval":
            known = _interval(value)
        case "bignum":
            known = Decimal(value)
        case "union" | "variant":
            known = json.loads(value, parse_float=Decimal, parse_int=Decimal)
        case "list" | "array":
            [(_, child)] = _members(kind)
            known = [_value(member, child) for member in value]
        case "tuple":
            known = [_value(member, inner) for member, (_, inner) in zip(value, _members(kind), strict=True)]
        case "struct":
            known = {name: _value(value[name], inner) for name, inner in _members(kind)}
        case "map":
            (_, key), (_, item) = _members(kind)
            known = _pairs(value, key, item)
        case _ if is_moment(kind):
            known = _iso(value)
        case _:
            known = value
    return known


def _iso(text: str) -> str:
    """DuckDB's text of a date or time as ISO 8601; a fraction has 6 or 9 digits."""
    if not (found := _MOMENT.fullmatch(text)):
        return text
    day, clock, fraction, offset = found.groups(default="")
    fraction = fraction and f".{fraction.ljust(6 if len(fraction) <= 6 else 9, '0')}"
    return f"{day}{'T' if day else ''}{clock}{fraction}{offset}{':00' if len(offset) == 3 else ''}"


def _pairs(value: dict[Any, Any], key: DuckDBPyType, item: DuckDBPyType) -> list[list[Any]]:
    # DuckDB gives keys that Python cannot hash as two lists.
    unhashable = key.id in _NESTED and list(value) == ["key", "value"]
    pairs = zip(value["key"], value["value"], strict=True) if unhashable else value.items()
    return [[_value(name, key), _value(inner, item)] for name, inner in pairs]


def _interval(text: str) -> list[int]:
    """Months, days and nanoseconds of an interval in DuckDB's text, such as `1 year 2 days -00:00:01.5`."""
    months = days = nanoseconds = 0
    for count, unit in _UNITS.findall(text):
        match unit:
            case "year":
                months += 12 * int(count)
            case "month":
                months += int(count)
            case _:
                days += int(count)
    if found := _CLOCK.search(text):
        sign, hours, minutes, seconds, fraction = found.groups()
        whole = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
        nanoseconds = (whole * 10**9 + int((fraction or "").ljust(9, "0"))) * (-1 if sign else 1)
    return [months, days, nanoseconds]
