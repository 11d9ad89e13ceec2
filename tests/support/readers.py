"""The four readers, each by the call that `docs/tables.md` gives; all of them answer with an Arrow table."""

import re
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset

_PAGE = (Path(__file__).parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
_BLOCK = re.search(r"```python\n(.*?)```", _PAGE, re.DOTALL)[1].partition("\n\n")[2]
_NAMES = {"duckdb": duckdb, "pandas": pd, "polars": pl, "pyarrow": pyarrow}
_CALLS = re.findall(r"^\w+\..*?\)$", _BLOCK, re.MULTILINE | re.DOTALL)


def _reader(call):
    def read(folder):
        found = eval(call.replace("ROOT/tables/renders", str(folder)), dict(_NAMES))
        match call.partition(".")[0]:
            case "duckdb":
                table = found.to_arrow_table()
            case "polars":
                table = found.collect().to_arrow(compat_level=pl.CompatLevel.oldest())
            case "pandas":
                table = pa.Table.from_pandas(found, preserve_index=False)
            case _:
                table = found.to_table()
        return table.set_column(table.column_names.index("run_id"), "run_id", table["run_id"].cast(pa.string()))

    return read


READERS = {call.partition(".")[0]: _reader(call) for call in _CALLS}
assert list(READERS) == ["duckdb", "polars", "pandas", "pyarrow"]
