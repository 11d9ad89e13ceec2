"""Evaluates `where` expressions of the prompts manifest in a sandbox that has only the concepts' columns.

An expression is one boolean DuckDB expression over `concept_id`, `superclass` and the manifest's extra columns. It runs
in a separate database with that one table, without access to files, network, extensions, settings or variables of this
program. Several statements, a value that is not boolean, an unknown column or a timeout is a `RowError` with the first
line of DuckDB's message. No expression can change the plan.
"""

import threading
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from pipeline.contract.errors import Code, RowError
from pipeline.contract.messages import reason
from pipeline.database.plandb import EXTRA_ROW, extra_columns
from pipeline.database.query import quoted

_SECONDS = 60.0  # a filter over a million concepts takes less than one
_SANDBOX = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
    "memory_limit": "1GB",
    "threads": 2,
}


class Sandbox:
    """A locked database with the table of good concepts; a context manager."""

    def __init__(self, plan: duckdb.DuckDBPyConnection, *, seconds: float = _SECONDS) -> None:
        """Copy the good concepts out of a plan.

        Args:
            plan: connection of the PlanDB, with `concept_keys` filled.
            seconds: timeout of one expression.
        """
        extras = extra_columns(plan, "concepts")
        columns = "".join(f", e.{quoted(name)}" for name in extras)
        join = f"LEFT JOIN concepts_extra e ON e.{EXTRA_ROW} = c.row" if extras else ""
        good = plan.sql(
            f"SELECT c.concept_id, c.superclass{columns} FROM concepts c "
            f"SEMI JOIN concept_keys k ON k.row = c.row {join}"
        )
        self._connection = duckdb.connect(config=_SANDBOX)
        self._connection.register("good", good.to_arrow_reader())
        self._connection.execute("CREATE TABLE concepts AS SELECT * FROM good")
        self._connection.unregister("good")
        self._connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        self._concepts = self._connection.table("concepts")
        self._seconds = seconds

    def matching(self, expression: str) -> pa.Table:
        """A table with the `concept_id` of each concept for which the expression is true, in any order.

        Raises:
            RowError: BAD_WHERE, with the fault and the available columns.
        """
        timer = threading.Timer(self._seconds, self._connection.interrupt)
        timer.start()
        try:
            kinds = self._concepts.project(expression).types
            if kinds != ["BOOLEAN"]:
                raise self._refusal(expression, f"its type is {', '.join(map(str, kinds))}, not BOOLEAN")
            return self._concepts.filter(expression).project("concept_id").to_arrow_table()
        except duckdb.InterruptException as error:
            raise self._refusal(expression, f"it takes longer than {self._seconds:g} s") from error
        except duckdb.Error as error:
            raise self._refusal(expression, reason(error)) from error
        finally:
            timer.cancel()

    def close(self) -> None:
        """Drop the database."""
        self._connection.close()

    def _refusal(self, expression: str, reason: str) -> RowError:
        return RowError(
            Code.BAD_WHERE,
            f"where {expression!r} cannot be used: {reason}; write one condition over the concepts manifest's columns "
            f"{', '.join(self._concepts.columns)}, for example superclass = 'mug'",
            column="where",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
