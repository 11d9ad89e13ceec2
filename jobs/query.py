"""`perfusion query`: SQL over the published tables."""

import json as json_text
import sys
from typing import Annotated, Any

import typer

from jobs.output import complain, plain, refuse, say_json, table
from jobs.target import Target, storage_of

Sql = Annotated[str, typer.Argument(help="one SELECT over concepts, renders, scores and current")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object a row")]
Csv = Annotated[bool, typer.Option("--csv", help="CSV with a header")]

_DEFAULT = "SELECT status, origin, count(*) AS rows, sum(bytes) AS bytes FROM renders GROUP BY ALL ORDER BY ALL"


def command(target: Target, sql: Sql = _DEFAULT, json: Json = False, csv: Csv = False) -> None:
    """Run SQL over the published tables. Views: concepts, renders, scores (all runs), current (what a shop shows)."""
    import duckdb

    from pipeline.views import connect

    if json and csv:
        refuse("--json and --csv exclude each other: give one of them")
    try:
        with connect(storage_of(target)) as connection:
            if not _published(connection):
                complain(f"nothing is published under {target} yet, so the tables are empty")
            relation = connection.sql(sql)
            if relation is None:
                refuse("the query gives no rows: write a SELECT over concepts, renders, scores and current")
            result = relation.to_arrow_table()
    except duckdb.Error as error:
        refuse(f"the query cannot be run: {str(error).strip()}")
    rows = list(zip(*(column.to_pylist() for column in result.columns), strict=True))
    if csv:
        _write_csv(result)
    elif json:
        names = _distinct(result.column_names)
        for row in rows:
            say_json(dict(zip(names, row, strict=True)))
    else:
        table(result.column_names, rows)


def _published(connection: Any) -> bool:
    return bool(connection.execute("SELECT 1 FROM concepts UNION ALL SELECT 1 FROM renders LIMIT 1").fetchall())


def _distinct(names: list[str]) -> list[str]:
    """Names that can be keys of one object: a second `a` becomes `a_1`."""
    seen: dict[str, None] = {}
    for name in names:
        number, candidate = 0, name
        while candidate in seen:
            number += 1
            candidate = f"{name}_{number}"
        seen[candidate] = None
    return list(seen)


def _write_csv(result: Any) -> None:
    """Bytes to stdout; lists as in a CSV manifest, with `;` between the elements, other nested values as JSON."""
    import pyarrow as pa
    import pyarrow.csv

    for index, field in enumerate(result.schema):
        if any(test(field.type) for test in (pa.types.is_nested, pa.types.is_binary, pa.types.is_interval)):
            flat = pa.types.is_list(field.type) and not pa.types.is_nested(field.type.value_type)
            texts = [_text(value, flat=flat) for value in result.column(index).to_pylist()]
            result = result.set_column(index, field.name, pa.array(texts, pa.string()))
    sys.stdout.flush()
    pyarrow.csv.write_csv(result, sys.stdout.buffer)


def _text(value: Any, *, flat: bool) -> str | None:
    if value is None:
        return None
    if flat:
        return ";".join("" if element is None else str(plain(element)) for element in value)
    known = plain(value)
    return known if isinstance(known, str) else json_text.dumps(known, ensure_ascii=False)
