"""Finds prompts with more tokens than the base model reads, and prompts that need keys which no training learns.

Rendering tokenises the texts between placeholders separately, so a prompt's count is a sum: start and end, the tokens
of its texts, and one token per placeholder; a concept of recipe `offset` adds the tokens of its superclass. Under lock
'global' a second text is encoded, in which each placeholder is replaced by its concept's superclass; there, a
placeholder counts as the tokens of the superclass. Where several concepts are combined `regional`, each is encoded in
such a text; if its recipe is `offset`, its own token precedes each of its superclasses. Python counts each text and
each superclass once, and SQL adds the counts up for each render.

The text of a product's columns (`pipeline.plan.product_columns`) counts for each product. A token may cross the border
between it and the text around it, as in `pre{=1}ish`. So the smallest part of a text whose count does not depend on the
rest, a word of CLIP's tokenizers, is filled and counted as a whole, each distinct result once.

A prompt that is too long with every concept is a problem of its row (`LONG_TEXTS`). A prompt that is too long for some
concepts is a flaw of those renders (`FLAW`, `FLAWED`).
"""

from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from perfusion_ops.base.tokenizer import TokenCounter
from pipeline.contract.errors import Code

NO_LIMIT = 2**31 - 1
_ROWS_PER_READ = 10_000
_START_AND_END = 2
_LENGTHS = pa.schema([("row", pa.int64()), ("tokens", pa.int32()), ("negative_tokens", pa.int32())])
_MARK = "{="  # begins the mark of a column
_UNITS = pa.schema([("row", pa.int64()), ("negative", pa.bool_()), ("unit", pa.string())])
_UNIT_LENGTHS = pa.schema([("filled", pa.string()), ("tokens", pa.int32())])
_SUPERCLASSES = pa.schema([("superclass", pa.string()), ("tokens", pa.int32())])


def measure_concepts(connection: duckdb.DuckDBPyConnection, counter: TokenCounter | None, *, wanted: bool) -> None:
    """Fill the temporary table `keyed`: `concept_keys` with the tokens of the superclass and whether keys are trained.

    Args:
        connection: of a PlanDB with `concept_keys` filled.
        counter: of the base model; None leaves the tokens null.
        wanted: whether superclasses must be counted: a prompt has lock 'global' or a ControlNet, a concept has the
            recipe 'offset', concepts are combined 'regional', or the base model has a pooled vector.
    """
    connection.execute("CREATE OR REPLACE TEMP TABLE superclass_lengths (superclass VARCHAR, tokens INTEGER)")
    if counter and wanted:
        # The connection cannot insert while it reads a query, so all counts are collected first.
        reader = connection.sql(_DISTINCT_SUPERCLASSES).to_arrow_reader(_ROWS_PER_READ)
        counted = [
            pa.table(
                {"superclass": page[0], "tokens": [counter.count(text.as_py()) for text in page[0]]}, _SUPERCLASSES
            )
            for page in reader
        ]
        connection.register("counted", pa.concat_tables(counted) if counted else _SUPERCLASSES.empty_table())
        connection.execute("INSERT INTO superclass_lengths SELECT * FROM counted")
        connection.unregister("counted")
    connection.execute(_KEYED)


def measure_prompts(
    connection: duckdb.DuckDBPyConnection, counter: TokenCounter | None, *, start: int, stop: int
) -> None:
    """Fill the temporary table `lengths` with the tokens of the texts of `chunk`, start and end included.

    Args:
        connection: of a PlanDB with a `chunk` of prompts.
        counter: of the base model; None counts nothing.
        start: the chunk's first row.
        stop: the chunk's last row plus one.
    """
    connection.execute("CREATE OR REPLACE TEMP TABLE lengths (row BIGINT, tokens INTEGER, negative_tokens INTEGER)")
    connection.execute(_SHOWN)
    if counter is None:
        connection.execute("INSERT INTO lengths SELECT row, 0, 0 FROM chunk")
        return
    for first in range(start, stop, _ROWS_PER_READ):
        rows = connection.execute(
            "SELECT row, texts, negative_texts FROM chunk WHERE row >= ? AND row < ?", [first, first + _ROWS_PER_READ]
        ).fetchall()
        counts = {
            "row": [row for row, _, _ in rows],
            "tokens": [_START_AND_END + sum(_own_count(counter, text) for text in texts) for _, texts, _ in rows],
            "negative_tokens": [
                _START_AND_END + sum(_own_count(counter, text) for text in texts) for _, _, texts in rows
            ],
        }
        connection.register("counted", pa.table(counts, _LENGTHS))
        connection.execute("INSERT INTO lengths SELECT * FROM counted")
        connection.unregister("counted")


def measure_values(connection: duckdb.DuckDBPyConnection, counter: TokenCounter | None) -> None:
    """Fill the temporary table `value_lengths`: tokens that the texts of its columns add to a prompt, for each product.

    Args:
        connection: of a PlanDB with a `chunk` whose columns are marked, and their texts in `keyed`.
        counter: of the base model; None counts nothing.
    """
    connection.execute("DELETE FROM value_lengths")
    if counter is None:
        return
    connection.execute("CREATE OR REPLACE TEMP TABLE units (row BIGINT, negative BOOLEAN, unit VARCHAR)")
    for page in _pages(connection, "SELECT row, texts, negative_texts FROM chunk WHERE len(columns) > 0"):
        units = [
            {"row": row, "negative": negative, "unit": unit}
            for row, *both in page
            for negative, texts in zip((False, True), both, strict=True)
            for text in texts
            for unit in counter.units(text)
            if _MARK in unit
        ]
        connection.register("found", pa.Table.from_pylist(units, _UNITS))
        connection.execute("INSERT INTO units SELECT * FROM found")
        connection.unregister("found")
    connection.execute(_FILLED_UNITS)
    connection.execute("CREATE OR REPLACE TEMP TABLE unit_lengths (filled VARCHAR, tokens INTEGER)")
    for page in _pages(connection, "SELECT DISTINCT filled FROM filled_units"):
        filled = [text for (text,) in page]
        counted = pa.table({"filled": filled, "tokens": [counter.count(text) for text in filled]}, _UNIT_LENGTHS)
        connection.register("counted", counted)
        connection.execute("INSERT INTO unit_lengths SELECT * FROM counted")
        connection.unregister("counted")
    connection.execute(_VALUE_LENGTHS)
    for table in ("units", "filled_units", "unit_lengths"):
        connection.execute(f"DROP TABLE {table}")


def _own_count(counter: TokenCounter, text: str) -> int:
    """Tokens of a text without the units that have a column's text."""
    if _MARK not in text:
        return counter.count(text)
    return sum(counter.count(unit) for unit in counter.units(text) if _MARK not in unit)


def _pages(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a query by pages; between them, the connection is free for other work."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE paged AS {query}")
    [(rows,)] = connection.execute("SELECT count(*) FROM paged").fetchall()
    for first in range(0, rows, _ROWS_PER_READ):
        yield connection.execute(
            "SELECT * FROM paged WHERE rowid >= ? AND rowid < ?", [first, first + _ROWS_PER_READ]
        ).fetchall()
    connection.execute("DROP TABLE paged")


# Each unit of each prompt with each of its products. A product without the text of a column gets no render.
_FILLED_UNITS = """
CREATE OR REPLACE TEMP TABLE filled_units AS
WITH crossed AS (
    SELECT c.row, c.columns, k.row AS product_row, k.texts_of
    FROM chunk c CROSS JOIN keyed k WHERE len(c.columns) > 0 AND c.where_expr IS NULL
    UNION ALL
    SELECT c.row, c.columns, k.row, k.texts_of
    FROM chunk c JOIN matches m USING (where_expr) JOIN keyed k USING (concept_id) WHERE len(c.columns) > 0
)
SELECT c.row, c.product_row, u.negative, with_columns(u.unit, c.columns, c.texts_of) AS filled
FROM crossed c JOIN units u USING (row)
"""

_VALUE_LENGTHS = """
INSERT INTO value_lengths
SELECT row, product_row, sum(tokens) FILTER (NOT negative), sum(tokens) FILTER (negative)
FROM filled_units JOIN unit_lengths USING (filled) GROUP BY row, product_row
"""

_DISTINCT_SUPERCLASSES = """
SELECT DISTINCT normalise_superclass(superclass) AS superclass FROM concepts SEMI JOIN concept_keys USING (row)
"""

_KEYED = """
CREATE OR REPLACE TEMP TABLE keyed AS
SELECT k.row, k.concept_id, k.concept_key, s.tokens AS superclass_tokens,
    k.training ->> '$.recipe' IS NOT DISTINCT FROM 'offset' AS is_offset,
    1 + CASE WHEN is_offset THEN coalesce(s.tokens, 0) ELSE 0 END AS own_tokens,
    coalesce(k.training ->> '$.lock' = 'trained', false) AND NOT is_offset AS trained
FROM concept_keys k LEFT JOIN concepts c USING (row)
LEFT JOIN superclass_lengths s ON s.superclass = normalise_superclass(c.superclass)
"""

_SHOWN = """
CREATE OR REPLACE TEMP MACRO shown(written) AS
    '''' || CASE WHEN length(written) > 200 THEN left(written, 197) || '...' ELSE written END || ''''
"""

# Rows of `chunk` whose own words do not fit, the prompt ranked before the negative prompt. Parameters: limit,
# negative_prompt (the spec's).
LONG_TEXTS = f"""
SELECT row, CASE error_column WHEN 'prompt' THEN 899999 ELSE 900000 END AS rank,
    error_column, '{Code.PROMPT_TOO_LONG}' AS error_code,
    error_column || ' has ' || count || ' tokens with start and end, the base model reads ' || $limit || ': shorten '
        || shown(written) || source AS error_message
FROM (
    SELECT row, 'prompt' AS error_column, tokens + len(texts) - 1 AS count, prompt AS written, '' AS source
    FROM chunk JOIN lengths USING (row)
    UNION ALL
    SELECT row, 'negative_prompt', negative_tokens + len(negative_texts) - 1, negative_prompt,
        CASE negative_prompt WHEN $negative_prompt THEN ', which is render.negative_prompt of the spec' ELSE '' END
    FROM chunk JOIN lengths USING (row)
)
WHERE count > $limit
"""

# Positions that may stay empty where a prompt is divided into chunks, because a concept is not divided
# (`perfusion_ops.base.chunks`). Parameter: the tokens of the longest concept of the prompt.
SLACK = "($chunks - 1) * (greatest(coalesce({}, 1), 1) - 1)"

# What is wrong with a render, as a number. Columns: lock, untrained (the first concept without trained keys),
# prompt_count and negative_count (tokens with superclasses instead of placeholders), own_count and negative_own_count
# (tokens with what each concept's recipe writes in its placeholder's place), regional and apart_count (whether each
# concept is encoded in a text of its own, and the tokens of the longest of them), slack (see `SLACK`).
FLAW = """
CASE WHEN lock = 'trained' AND untrained IS NOT NULL THEN 1
    WHEN lock = 'global' AND prompt_count > $limit - slack THEN 2
    WHEN own_count > $limit - slack AND NOT regional THEN 3
    WHEN regional AND apart_count > $limit - slack THEN 6
    WHEN lock = 'global' AND negative_count > $limit - slack THEN 4
    WHEN negative_own_count > $limit - slack THEN 5
    WHEN ($pooled OR control IS NOT NULL) AND prompt_count > $limit - slack THEN 7
    WHEN ($pooled OR control IS NOT NULL) AND negative_count > $limit - slack THEN 8 END
"""


_GLOBAL = "lock ''global'' reads superclasses instead of placeholders", ", or use lock ''local''"
_SPELT = "the pooled vector or the ControlNet is given superclasses instead of placeholders", ""
_OWN = "recipe ''offset'' writes the superclass after each placeholder", ""
_REGIONAL = (
    "render.combine ''regional'' reads superclasses instead of placeholders",
    ", or set render.combine to ''paper''",
)


def _too_long(column: str, count: str, why: tuple[str, str]) -> str:
    reason, remedy = why
    return f"""'{column} has ' || {count} || ' tokens with start and end for '
        || CASE len(named) WHEN 1 THEN 'concept ' ELSE 'concepts ' END
        || array_to_string(list_transform(named, lambda id: '''' || id || ''''), ', ')
        || ': {reason}, and the base model reads ' || ($limit - slack)
        || ' tokens; shorten the superclass or ' || shown({column}) || '{remedy}'"""


# The verdict on a render by its `flaw`; `named` are the ids of its concepts.
FLAWED = f"""
CASE WHEN flaw = 1 THEN '{Code.OUT_OF_RANGE}' WHEN flaw > 1 THEN '{Code.PROMPT_TOO_LONG}' END AS error_code,
CASE WHEN flaw = 1 THEN 'lock' WHEN flaw IN (2, 3, 6, 7) THEN 'prompt' WHEN flaw IN (4, 5, 8) THEN 'negative_prompt' END
    AS error_column,
CASE flaw
    WHEN 1 THEN 'lock is ''trained'', but concept ''' || untrained || ''' learns no keys of its own: '
        || 'train it with train.lock ''trained'', or use lock ''local'''
    WHEN 2 THEN {_too_long("prompt", "prompt_count", _GLOBAL)}
    WHEN 3 THEN {_too_long("prompt", "own_count", _OWN)}
    WHEN 4 THEN {_too_long("negative_prompt", "negative_count", _GLOBAL)}
    WHEN 5 THEN {_too_long("negative_prompt", "negative_own_count", _OWN)}
    WHEN 6 THEN {_too_long("prompt", "apart_count", _REGIONAL)}
    WHEN 7 THEN {_too_long("prompt", "prompt_count", _SPELT)}
    WHEN 8 THEN {_too_long("negative_prompt", "negative_count", _SPELT)} END AS error_message
"""
