"""Columns of the concepts manifest in prompts: `{product.season}`, or `{season}`, is the product's own text there.

A placeholder that is the id of a concept, good or bad, is this concept. Any other one in a prompt with `{product}` is
looked up among the columns, without case. Texts lose blanks at their ends and have one blank for each run of white
space; whole numbers and decimals are written as they are, other numbers without an exponent and without `.0`. Other
types are a problem of the prompt's row. A cell that has no such text is a fault of the renders of its product.

In the plan, `{=1}` is the place of the first column that the prompts name. No text of a column has a brace, so none can
become a placeholder.
"""

from difflib import get_close_matches
from typing import NamedTuple

import duckdb
import pyarrow as pa

from pipeline.contract.errors import Code
from pipeline.contract.placeholders import COLUMN_PREFIX, PLACEHOLDER
from pipeline.database.plandb import EXTRA_ROW
from pipeline.database.query import quoted
from pipeline.plan.request_sql import NAMES

MAX_TEXT = 200  # characters of one column's text, as of a superclass
_SHOWN_COLUMNS = 20
_WHOLE = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
)
_FLOATS = frozenset({"FLOAT", "DOUBLE"})
_MEANT = pa.schema([("name", pa.string()), ("number", pa.int32()), ("error_code", pa.string()), ("says", pa.string())])


class _Column(NamedTuple):
    """A column of the concepts manifest: SQL for its cell, and its type in the database."""

    name: str
    cell: str
    kind: str

    @property
    def writable(self) -> bool:
        return self.kind == "VARCHAR" or self.kind in _WHOLE | _FLOATS or self.kind.startswith("DECIMAL")


class ProductColumns:
    """The columns that the prompts of a plan name; `resolve` finds those of each chunk."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, weighted: bool = False) -> None:
        """Prepare the tables `keyed`, `asked` and `column_spellings`.

        Args:
            connection: of a PlanDB with `keyed` (`pipeline.bases.prompt_lengths.measure_concepts`).
            weighted: prompts have weights, so that parentheses of a text are escaped.
        """
        self._connection, self._weighted = connection, weighted
        extra = connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'concepts_extra' "
            "AND column_name <> ? ORDER BY column_index",
            [EXTRA_ROW],
        ).fetchall()
        own = [_Column(name, f"c.{name}", "VARCHAR") for name in ("concept_id", "superclass")]
        carried = [_Column(name, f"e.{quoted(name)}", kind) for name, kind in extra]
        self._columns = {column.name.lower(): column for column in (*own, *carried)}
        self._numbers: dict[str, int] = {}
        connection.execute(_EMPTY)
        spellings = pa.table({"name": [column.name for column in self._columns.values()]})
        connection.register("spellings", spellings)
        connection.execute("CREATE OR REPLACE TEMP TABLE column_spellings AS SELECT * FROM spellings")
        connection.unregister("spellings")

    def resolve(self) -> bool:
        """Mark the columns in `chunk`, take them out of `names`, and give `keyed` their texts.

        Returns:
            Whether a prompt of the chunk names a column. If not, only `asked` was emptied.
        """
        connection = self._connection
        connection.execute("DELETE FROM asked")
        unknown = [name for (name,) in connection.execute(_UNKNOWN).fetchall()]
        before = len(self._numbers)
        meant = [(name, *found) for name in unknown if (found := self._meaning(name))]
        if not meant:
            return False
        rows = pa.Table.from_pylist([dict(zip(_MEANT.names, each, strict=True)) for each in meant], _MEANT)
        connection.register("meant", rows)
        connection.execute(_ASKED)
        connection.unregister("meant")
        connection.execute(_MARKED)
        connection.execute(NAMES)
        if len(self._numbers) > before:
            connection.execute(self._texts())
        return True

    def _meaning(self, name: str) -> tuple[int | None, str | None, str | None] | None:
        """The number of the column that a name means, or what is wrong with it; None if it means none."""
        explicit = name.startswith(COLUMN_PREFIX)
        column = self._columns.get(name.removeprefix(COLUMN_PREFIX).lower())
        if column is None:
            return (None, Code.BAD_PLACEHOLDER, self._no_column(name)) if explicit else None
        if not column.writable:
            says = (
                f"and column '{column.name}' of the concepts manifest has the type {column.kind}: "
                "only text and numbers can be put into a prompt; write the column as text"
            )
            return None, Code.WRONG_TYPE, says
        return self._numbers.setdefault(column.name.lower(), len(self._numbers) + 1), None, None

    def _no_column(self, name: str) -> str:
        wanted = name.removeprefix(COLUMN_PREFIX)
        near = get_close_matches(wanted.lower(), self._columns, n=1)
        hint = f"write {{{COLUMN_PREFIX}{self._columns[near[0]].name}}} if that is meant; " if near else ""
        names = [column.name for column in self._columns.values()]
        listed = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
        return f"and the concepts manifest has no column '{wanted}': {hint}its columns are {listed}"

    def _texts(self) -> str:
        """SQL that gives `keyed` the text of each numbered column, or why a product has none."""
        named = [self._columns[name] for name in self._numbers]
        numbers = range(1, len(named) + 1)
        texts = ", ".join(f"{_text(column)} AS text_{number}" for number, column in zip(numbers, named, strict=True))
        faults = ", ".join(
            f"{_fault(column, f'text_{number}')} AS fault_{number}"
            for number, column in zip(numbers, named, strict=True)
        )
        shown = r"regexp_replace(text_{}, '([()])', '\\\1', 'g')" if self._weighted else "text_{}"
        fit = ", ".join(f"CASE WHEN fault_{number} IS NULL THEN {shown.format(number)} END" for number in numbers)
        return f"""
        CREATE OR REPLACE TEMP TABLE keyed AS
        SELECT k.* REPLACE ([{fit}] AS texts_of, [{", ".join(f"fault_{number}" for number in numbers)}] AS faults)
        FROM keyed k JOIN (
            SELECT *, {faults}
            FROM (SELECT c.row, {texts} FROM concepts c LEFT JOIN concepts_extra e ON e.{EXTRA_ROW} = c.row)
        ) t USING (row)
        """


def _text(column: _Column) -> str:
    if column.kind == "VARCHAR":
        return f"nullif(normalise_superclass({column.cell}), '')"
    if column.kind in _FLOATS:
        printed = f"regexp_replace(CAST({column.cell} AS VARCHAR), '\\.0$', '')"
        return f"CASE WHEN {column.cell} = 0 THEN '0' ELSE {printed} END"
    return f"CAST({column.cell} AS VARCHAR)"


def _fault(column: _Column, text: str) -> str:
    """SQL for code, fault and remedy of one text, or null."""
    name = column.name.replace("'", "''")

    def fault(code: Code, says: str, remedy: str) -> str:
        return f"{{'code': '{code}', 'says': {says}, 'remedy': '{remedy}'}}"

    cut = f"CASE WHEN length({text}) > 80 THEN left({text}, 77) || '...' ELSE {text} END"
    shown = f"'has ''' || {cut} || ''' in column ''{name}'''"
    cases = f"WHEN {text} IS NULL THEN " + fault(
        Code.MISSING_VALUE, f"'has no value in column ''{name}'''", "fill it in, or leave the product out with where"
    )
    if column.kind == "VARCHAR":
        large = f"'has ' || length({text}) || ' characters in column ''{name}'''"
        cases += (
            f" WHEN length({text}) > {MAX_TEXT} THEN "
            + fault(Code.TEXT_TOO_LONG, large, f"shorten it to {MAX_TEXT}")
            + f" WHEN regexp_matches({text}, '[{{}}]') THEN "
            + fault(Code.BAD_CHARACTER, shown, "braces mark placeholders; remove them")
            + f" WHEN regexp_matches({text}, '{_CONTROL}') THEN "
            + fault(Code.BAD_CHARACTER, f"'has a control character in column ''{name}'''", "remove it")
        )
    elif column.kind in _FLOATS:
        cases += (
            f" WHEN NOT isfinite({text}::DOUBLE) THEN "
            + fault(Code.NOT_FINITE, shown, "write a finite number")
            + f" WHEN contains({text}, 'e') THEN "
            + fault(Code.OUT_OF_RANGE, shown, "write the column as text")
        )
    return f"CASE {cases} END"


# As in the cells of prompts; white space has become blanks before.
_CONTROL = r"[\x00-\x1f\x7f-\x{9f}]"

_EMPTY = """
ALTER TABLE keyed ADD COLUMN texts_of VARCHAR[];
ALTER TABLE keyed ADD COLUMN faults STRUCT(code VARCHAR, says VARCHAR, remedy VARCHAR)[];
CREATE OR REPLACE TEMP TABLE asked (
    row BIGINT, position BIGINT, in_prompt BOOLEAN, crossed BOOLEAN, name VARCHAR, number INTEGER,
    error_code VARCHAR, says VARCHAR
);
CREATE OR REPLACE TEMP TABLE value_lengths (
    row BIGINT, product_row BIGINT, value_tokens INTEGER, negative_value_tokens INTEGER
);
CREATE OR REPLACE TEMP MACRO with_columns(words, columns, texts_of) AS
    CASE WHEN contains(words, '{=') THEN list_reduce(list_prepend(words, columns),
        lambda filled, number: replace(filled, '{=' || number || '}', coalesce(texts_of[number::INTEGER], '')))
    ELSE words END;
"""

_UNKNOWN = """
SELECT DISTINCT name FROM names WHERE name <> 'product' AND concept_key IS NULL AND bad_row IS NULL ORDER BY name
"""

# One row per placeholder of a column. Without {product} there is no product whose column is meant.
_ASKED = f"""
INSERT INTO asked
SELECT n.row, n.position, n.in_prompt, c.crossed, n.name, CASE WHEN c.crossed THEN m.number END, m.error_code, m.says
FROM names n JOIN meant m USING (name) JOIN chunk c USING (row)
WHERE c.crossed OR starts_with(n.name, '{COLUMN_PREFIX}')
"""

_CONCEPT = PLACEHOLDER.replace("(", "([^={}]")

_MARKED = f"""
CREATE OR REPLACE TEMP TABLE chunk AS
WITH marks AS (
    SELECT row, map_from_entries(list((name, mark))) AS marks
    FROM (SELECT DISTINCT row, name, coalesce('{{=' || number || '}}', '') AS mark FROM asked) GROUP BY row
),
numbers AS (
    SELECT row, list(CAST(number AS VARCHAR) ORDER BY first) AS numbers, count(*) FILTER (in_prompt) AS in_prompt
    FROM (
        SELECT row, number, min(position) AS first, bool_or(in_prompt) AS in_prompt
        FROM asked WHERE number IS NOT NULL GROUP BY row, number
    ) GROUP BY row
),
written AS (
    SELECT c.row, coalesce(n.numbers, []) AS numbers, coalesce(n.in_prompt, 0) AS in_prompt,
        list_transform(c.names, lambda name: coalesce(m.marks[name], '{{' || name || '}}')) AS marked_names,
        array_to_string(list_transform(c.texts, lambda part, i: part
            || CASE WHEN i < len(c.texts) THEN marked_names[i] ELSE '' END), '') AS words,
        array_to_string(list_transform(c.negative_texts, lambda part, i: part
            || CASE WHEN i < len(c.negative_texts) THEN marked_names[len(c.texts) - 1 + i] ELSE '' END), '') AS negative
    FROM chunk c JOIN marks m USING (row) LEFT JOIN numbers n USING (row)
)
SELECT c.* REPLACE (
        coalesce(w.numbers, c.columns) AS columns, coalesce(w.in_prompt, c.prompt_columns) AS prompt_columns,
        w.words AS marked, w.negative AS negative_marked,
        coalesce(string_split_regex(w.words, '{_CONCEPT}'), c.texts) AS texts,
        coalesce(string_split_regex(w.negative, '{_CONCEPT}'), c.negative_texts) AS negative_texts,
        coalesce(regexp_extract_all(w.words, '{_CONCEPT}', 1) || regexp_extract_all(w.negative, '{_CONCEPT}', 1),
            c.names) AS names,
        c.alone AND w.row IS NULL AS alone
    )
FROM chunk c LEFT JOIN written w USING (row)
"""
