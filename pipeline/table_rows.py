"""The rows of the published tables, from requests and outcomes, in their order.

Every row of a run has `finished_at`: when its work ended, or when it was published if no work was done for it.
`accelerator_s` is what this run spent: zero where an object was reused, also from an equal row of the same run.

Ten million wide rows are joined, sorted and handed on as they come: none of that is ever written to a table in between.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.plandb import EXTRA_ROW, PlanDB, quoted
from pipeline.table_columns import Carried

KEYS = {"concepts": "concept_key", "renders": "render_key"}


def gather_results(db: PlanDB) -> None:
    """Make the view `results`, one row per key, of `outcomes` and `done`."""
    db.connection.execute(_RESULTS)


def table_rows(
    db: PlanDB, table: str, values: dict[str, Any], rows_per_group: int, carried: Sequence[Carried]
) -> Iterator[pa.Table]:
    """The rows of a table by concept and key, and the manifests' extra columns behind its own.

    Args:
        db: planned, with `results`; nothing else may be asked of its connection until the rows have been taken.
        table: concepts or renders.
        values: `base`, `base_digest` and `now_us`, the same in every row.
        rows_per_group: rows of each piece but the last.
        carried: the columns that follow the table's own, as the root has them.
    """
    db.connection.execute(_REPEATS.format(keyed=_KEYED[table]))
    reader = db.connection.sql(_query(table, carried), params=values).to_arrow_reader(rows_per_group)
    return _regrouped(reader, rows_per_group)


def _query(table: str, carried: Sequence[Carried]) -> str:
    """The rows of a table in their order, with the manifests' extra columns behind its own."""
    columns = "".join(f", {_value(each)} AS {quoted(each.field.name)}" for each in carried)
    joins, manifests = "", {each.manifest for each in carried}
    if "concepts" in manifests:
        joins += f" LEFT JOIN concepts_extra ON concepts_extra.{EXTRA_ROW} = t.extras_row"
    if "prompts" in manifests:
        joins += f" LEFT JOIN prompts_extra ON prompts_extra.{EXTRA_ROW} = t.manifest_row"
    select, order = (_CONCEPTS, "") if table == "concepts" else (_RENDERS, ", t.image_index")
    return (
        f"SELECT t.* EXCLUDE (extras_row){columns} FROM ({select}) t{joins} "
        f"ORDER BY t.concept_id NULLS LAST, t.{KEYS[table]} NULLS LAST, t.manifest_row{order}"
    )


def _value(carried: Carried) -> str:
    if carried.column is None:
        return f"CAST(NULL AS {carried.kind})"
    return f"CAST({carried.manifest}_extra.{quoted(carried.column)} AS {carried.kind})"


def _regrouped(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same rows, `size` at a time, the last ones fewer."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch)
        while rows >= size:
            table = pa.Table.from_batches(waiting)
            yield table[:size]
            waiting, rows = table[size:].to_batches(), rows - size
    if rows:
        yield pa.Table.from_batches(waiting)


# One row per key: what this run made, else what was there before, else how it failed.
_RESULTS = """
CREATE OR REPLACE VIEW results AS
SELECT * FROM outcomes WHERE status = 'ok'
UNION ALL BY NAME
SELECT kind, key, 'ok' AS status, 0 AS attempts, 'reused' AS origin, uri, sha256, bytes, 0.0 AS accelerator_s, loss
FROM done ANTI JOIN (SELECT kind, key FROM outcomes WHERE status = 'ok') USING (kind, key)
UNION ALL BY NAME
SELECT * FROM outcomes ANTI JOIN done USING (kind, key) WHERE status <> 'ok'
"""

# Rows that an equal one comes before in the manifest: few, and only they are compared by their whole keys.
_REPEATS = """
CREATE OR REPLACE TABLE repeats AS
SELECT id FROM (
    SELECT id, row_number() OVER (PARTITION BY key ORDER BY row, image_index) AS nth FROM ({keyed})
    WHERE md5_number(key) IN (SELECT md5_number(key) FROM ({keyed}) GROUP BY 1 HAVING count(*) > 1)
) WHERE nth > 1
"""
_KEYED = {
    "concepts": "SELECT row AS id, concept_key AS key, row, 0 AS image_index FROM concept_keys",
    "renders": "SELECT rowid AS id, render_key AS key, prompt_row AS row, image_index FROM requests",
}

# Of equal rows the first is the one that was worked for.
_RESULT_COLUMNS = """
    CASE WHEN {bad}.code IS NOT NULL THEN 'invalid' ELSE r.status END AS status,
    coalesce({bad}.code, r.code) AS error_code, coalesce({bad}.column_name, r.column_name) AS error_column,
    coalesce({bad}.message, r.message) AS error_message,
    CASE WHEN p.id IS NOT NULL AND r.status = 'ok' THEN 0 ELSE coalesce(r.attempts, 0) END AS attempts,
    CASE WHEN p.id IS NOT NULL AND r.status = 'ok' THEN 'reused' ELSE r.origin END AS origin, r.uri, r.sha256, r.bytes,
    CASE WHEN p.id IS NOT NULL THEN 0.0 ELSE coalesce(r.accelerator_s, 0.0) END AS accelerator_s
"""
_WORK_COLUMNS = """
    r.batch, r.worker,
    make_timestamp(coalesce(CAST(nullif(r.finished_at, 0.0) * 1e6 AS BIGINT), $now_us)) AS finished_at,
    $base AS base, $base_digest AS base_digest
"""

_CONCEPTS = f"""
SELECT c.row AS manifest_row, c.concept_id, k.concept_key, c.superclass,
    CAST(len(c.images) AS INTEGER) AS images, {_RESULT_COLUMNS.format(bad="c")}, r.loss, {_WORK_COLUMNS},
    c.row AS extras_row
FROM concepts c LEFT JOIN repeats p ON p.id = c.row
LEFT JOIN concept_keys k ON k.row = c.row
LEFT JOIN results r ON r.kind = 'concept' AND r.key = k.concept_key
"""

_RENDERS = f"""
SELECT q.prompt_row AS manifest_row, q.image_index, q.concept_ids[1] AS concept_id,
    q.concept_ids, q.concept_keys, q.render_key, q.prompt, q.negative_prompt, q.seed, q.bias, q.temperature, q.lock,
    q.width, q.height, q.steps, q.guidance, q.scheduler, {_RESULT_COLUMNS.format(bad="q")}, {_WORK_COLUMNS},
    k.row AS extras_row
FROM requests q LEFT JOIN repeats p ON p.id = q.rowid
LEFT JOIN concept_keys k ON k.concept_id = q.concept_ids[1]
LEFT JOIN results r ON r.kind = 'render' AND r.key = q.render_key
"""
