"""`perfusion query`: SQL over the published tables."""

import sys
from typing import Annotated, Any

import typer

from jobs.output import USAGE, complain, say_json, storage_of, table

Target = Annotated[str, typer.Argument(help="a root, or a spec file that names one", show_default=False)]
Sql = Annotated[str, typer.Argument(help="one SELECT over concepts, renders and current")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object a row")]
Csv = Annotated[bool, typer.Option("--csv", help="CSV with a header")]

_DEFAULT = "SELECT status, origin, count(*) AS rows, sum(bytes) AS bytes FROM renders GROUP BY ALL ORDER BY ALL"


def command(target: Target, sql: Sql = _DEFAULT, json: Json = False, csv: Csv = False) -> None:
    """Run SQL over the views concepts, renders (all runs) and current (what a shop would show now)."""
    import duckdb
    import pyarrow.csv

    from pipeline.views import query

    try:
        result = query(storage_of(target), sql)
    except duckdb.Error as error:
        complain(f"the query cannot be run: {str(error).strip()}")
        raise typer.Exit(USAGE) from error
    if csv:
        sys.stdout.flush()
        pyarrow.csv.write_csv(_flat(result), sys.stdout.buffer)
    elif json:
        for row in result.to_pylist():
            say_json(row)
    else:
        table("", result.column_names, (row.values() for row in result.to_pylist()))


def _flat(result: Any) -> Any:
    """Lists as `;`-separated text, which is how a CSV manifest writes them."""
    import pyarrow as pa

    for index, field in enumerate(result.schema):
        if pa.types.is_list(field.type):
            texts = [None if cell is None else ";".join(map(str, cell)) for cell in result.column(index).to_pylist()]
            result = result.set_column(index, field.name, pa.array(texts, pa.string()))
    return result
