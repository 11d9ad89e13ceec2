"""`perfusion query`: SQL over the published tables."""

import sys
from typing import Annotated, Any

import typer

from jobs.options import Target
from jobs.output import complain, refuse, say_json, table

Sql = Annotated[str, typer.Argument(help="one SELECT over concepts, renders, scores and current")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object per row")]
Csv = Annotated[bool, typer.Option("--csv", help="print CSV with a header")]

_DEFAULT = "SELECT status, origin, count(*) AS rows, sum(bytes) AS bytes FROM renders GROUP BY ALL ORDER BY ALL"


def command(target: Target, sql: Sql = _DEFAULT, json: Json = False, csv: Csv = False) -> None:
    """Run SQL over the published tables. Views: concepts, renders, scores (all runs), current (latest renders)."""
    import duckdb

    from jobs.results.csv_file import write_csv
    from jobs.results.values import result_rows
    from jobs.target import storage_of
    from pipeline.tables.views import connect

    if json and csv:
        refuse("--json and --csv exclude each other: give one of them")
    try:
        with connect(storage_of(target)) as connection:
            if not _published(connection):
                complain(f"nothing is published under {target} yet, so the tables are empty")
            # Times with a zone are printed in the zone of the session, by default that of the machine.
            connection.execute("SET TimeZone = 'UTC'")
            relation = connection.sql(sql)
            if relation is None:
                refuse("the query gives no rows: write a SELECT over concepts, renders, scores and current")
            rows = result_rows(connection, relation)
            if csv:
                write_csv(sys.stdout, relation.columns, relation.types, rows)
            elif json:
                names = _distinct(relation.columns)
                for row in rows:
                    say_json(dict(zip(names, row, strict=True)))
            else:
                table(relation.columns, rows)
    except duckdb.Error as error:
        refuse(f"the query cannot be run: {str(error).strip()}")


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
