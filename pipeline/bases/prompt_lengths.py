"""Which prompts have more tokens than the base model reads, and which ask for keys that no training learns.

Rendering tokenises the texts between placeholders one by one, so a prompt's count is a sum: start and end, the tokens
of its texts, and one token for each placeholder. Under lock 'global' a second text is read, in which each placeholder
is replaced by its concept's superclass; it has the superclass's tokens in the placeholder's place. Each text and each
superclass is counted once; SQL adds the counts up for each picture.

A prompt that is too long with any concept is a problem of its row (`LONG_TEXTS`). One that is too
long for some concepts is a flaw of those pictures (`FLAW`, `FLAWED`).
"""

import duckdb
import pyarrow as pa

from perfusion_ops.base.tokenizer import TokenCounter
from pipeline.contract.errors import Code

NO_LIMIT = 2**31 - 1
_ROWS_PER_READ = 10_000
_START_AND_END = 2
_LENGTHS = pa.schema([("row", pa.int64()), ("tokens", pa.int32()), ("negative_tokens", pa.int32())])
_SUPERCLASSES = pa.schema([("superclass", pa.string()), ("tokens", pa.int32())])


def measure_concepts(connection: duckdb.DuckDBPyConnection, counter: TokenCounter | None, *, locked: bool) -> None:
    """Fill the temporary table `keyed`: `concept_keys`, each with its superclass's tokens and whether it trains keys.

    Args:
        connection: of a PlanDB with `concept_keys` filled.
        counter: of the base model; None leaves the tokens null.
        locked: whether any prompt has lock 'global'; superclasses are counted for no other.
    """
    connection.execute("CREATE OR REPLACE TEMP TABLE superclass_lengths (superclass VARCHAR, tokens INTEGER)")
    if counter and locked:
        # The rows of one query cannot be inserted while it is read, so the counts of all of them are kept.
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
        start: the first row of the chunk.
        stop: the row behind its last one.
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
            "tokens": [_START_AND_END + sum(map(counter.count, texts)) for _, texts, _ in rows],
            "negative_tokens": [_START_AND_END + sum(map(counter.count, texts)) for _, _, texts in rows],
        }
        connection.register("counted", pa.table(counts, _LENGTHS))
        connection.execute("INSERT INTO lengths SELECT * FROM counted")
        connection.unregister("counted")


_DISTINCT_SUPERCLASSES = """
SELECT DISTINCT normalise_superclass(superclass) AS superclass FROM concepts SEMI JOIN concept_keys USING (row)
"""

_KEYED = """
CREATE OR REPLACE TEMP TABLE keyed AS
SELECT k.row, k.concept_id, k.concept_key, s.tokens AS superclass_tokens,
    coalesce(k.training ->> '$.lock' = 'trained', false) AS trained
FROM concept_keys k LEFT JOIN concepts c USING (row)
LEFT JOIN superclass_lengths s ON s.superclass = normalise_superclass(c.superclass)
"""

_SHOWN = """
CREATE OR REPLACE TEMP MACRO shown(written) AS
    '''' || CASE WHEN length(written) > 200 THEN left(written, 197) || '...' ELSE written END || ''''
"""

# Rows of `chunk` whose own words do not fit. Parameters: limit, negative_prompt (the spec's).
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

# What is wrong with a picture, as a number. Columns: lock, untrained (the first concept without keys of its own),
# prompt_count and negative_count (tokens with the superclasses in the placeholders' place).
FLAW = """
CASE WHEN lock = 'trained' AND untrained IS NOT NULL THEN 1
    WHEN lock = 'global' AND prompt_count > $limit THEN 2
    WHEN lock = 'global' AND negative_count > $limit THEN 3 END
"""


def _too_long(column: str, count: str) -> str:
    return f"""'{column} has ' || {count} || ' tokens with start and end for '
        || CASE len(named) WHEN 1 THEN 'concept ' ELSE 'concepts ' END
        || array_to_string(list_transform(named, lambda id: '''' || id || ''''), ', ')
        || ': lock ''global'' reads the superclass in each placeholder''s place, and the base model reads ' || $limit
        || ' tokens; shorten the superclass or ' || shown({column}) || ', or use lock ''local'''"""


# The verdict on a picture by its `flaw`; `named` are the ids of its concepts.
FLAWED = f"""
CASE flaw WHEN 1 THEN '{Code.OUT_OF_RANGE}' WHEN 2 THEN '{Code.PROMPT_TOO_LONG}' WHEN 3 THEN '{Code.PROMPT_TOO_LONG}'
    END AS error_code,
CASE flaw WHEN 1 THEN 'lock' WHEN 2 THEN 'prompt' WHEN 3 THEN 'negative_prompt' END AS error_column,
CASE flaw
    WHEN 1 THEN 'lock is ''trained'', but concept ''' || untrained || ''' learns no keys of its own: '
        || 'train it with train.lock ''trained'', or use lock ''local'''
    WHEN 2 THEN {_too_long("prompt", "prompt_count")}
    WHEN 3 THEN {_too_long("negative_prompt", "negative_count")} END AS error_message
"""
