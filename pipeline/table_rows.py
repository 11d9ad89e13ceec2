"""The rows of the published tables, from requests and outcomes, in their order.

Every row of a run has `finished_at`: when its work ended, or when it was published if no work was done for it.
`accelerator_s` is what this run spent: zero where an object was reused, also from an equal row of the same run.

Memory is bounded by construction. `pipeline.divide` puts the rows into ranges of their final order, each far smaller
than the memory limit, with the outcomes of their keys and their extra columns. Here one range after the other is joined
and sorted in memory.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa

from pipeline.divide import KEYS, divide
from pipeline.pieces import Pieces
from pipeline.plandb import PlanDB, extra_columns, quoted


def table_rows(
    db: PlanDB, table: str, values: dict[str, Any], rows_per_group: int
) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The rows of a table by concept and key, and the manifests' extra columns behind its own.

    Args:
        db: planned, with `outcomes`; nothing else may be asked of its connection until the rows have been taken.
        table: concepts or renders.
        values: `base`, `base_digest` and `now_us`, the same in every row.
        rows_per_group: rows of each piece but the last.

    Raises:
        ScratchFullError: the disk of the scratch folder is full.
    """
    pieces = divide(db, table)
    schema = _piece(db, table, pieces, -1, values).schema
    return schema, _regrouped(_pieces(db, table, pieces, values), rows_per_group)


def _pieces(db: PlanDB, table: str, pieces: Pieces, values: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """The rows of every range in their order."""
    with closing(pieces):
        for number in range(len(pieces)):
            yield from _piece(db, table, pieces, number, values).to_batches()


def _piece(db: PlanDB, table: str, pieces: Pieces, number: int, values: dict[str, Any]) -> pa.Table:
    """The rows of one range in their order."""
    for kind in pieces.kinds:
        db.connection.register(f"piece_{kind}", pieces.read(kind, number))
    try:
        query = db.connection.sql(_query(db, table), params={**values, "piece": number})
        return query.to_arrow_table()
    finally:
        for kind in pieces.kinds:
            db.connection.unregister(f"piece_{kind}")


def _query(db: PlanDB, table: str) -> str:
    """The rows of a range in their order, with the manifests' extra columns behind its own."""
    concepts, prompts = extra_columns(db.connection, "concepts"), extra_columns(db.connection, "prompts")
    columns, joins = "", ""
    if concepts:
        columns += _typed(db, "concepts", "ce", concepts)
        key = "ce.concept_id = t.concept_id" if table == "renders" else "ce.row = t.manifest_row"
        joins += f" LEFT JOIN piece_concepts_extra ce ON {key}"
    if prompts and table == "renders":
        columns += _typed(db, "prompts", "pe", prompts)
        joins += " LEFT JOIN piece_prompts_extra pe ON pe.row = t.manifest_row"
    select, order = (_CONCEPTS, "") if table == "concepts" else (_RENDERS, ", t.image_index")
    return (
        f"WITH results AS ({_RESULTS}), repeated AS (SELECT nth FROM repeats WHERE piece = $piece) "
        f"SELECT t.*{columns} FROM ({select}) t{joins} "
        f"ORDER BY t.concept_id NULLS LAST, t.{KEYS[table]} NULLS LAST, t.manifest_row{order}"
    )


def _typed(db: PlanDB, manifest: str, alias: str, names: list[str]) -> str:
    """Extra columns as the manifest's table has them, whatever their types became on scratch."""
    columns = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ?"
    types = dict(db.connection.execute(columns, [f"{manifest}_extra"]).fetchall())
    return "".join(
        f", CAST({alias}.{quoted(name)} AS {types[name]}) AS {quoted(name)}"
        if types[name].startswith("ENUM")
        else f", {alias}.{quoted(name)}"
        for name in names
    )


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


# One row per key: what this run made, else what was there before, else how it failed. A window would hold whole rows.
_RESULTS = """
SELECT * FROM piece_results
WHERE source_row IN (SELECT arg_max(source_row, preference) FROM piece_results GROUP BY key)
"""

# Of equal rows the first is the one that was worked for.
_RESULT_COLUMNS = """
    CASE WHEN q.code IS NOT NULL THEN 'invalid' ELSE r.status END AS status,
    coalesce(q.code, r.code) AS error_code, coalesce(q.column_name, r.column_name) AS error_column,
    coalesce(q.message, r.message) AS error_message,
    CASE WHEN p.nth IS NOT NULL AND r.status = 'ok' THEN 0 ELSE coalesce(r.attempts, 0) END AS attempts,
    CASE WHEN p.nth IS NOT NULL AND r.status = 'ok' THEN 'reused' ELSE r.origin END AS origin, r.uri, r.sha256, r.bytes,
    CASE WHEN p.nth IS NOT NULL THEN 0.0 ELSE coalesce(r.accelerator_s, 0.0) END AS accelerator_s
"""
_WORK_COLUMNS = """
    r.batch, r.worker,
    make_timestamp(coalesce(CAST(nullif(r.finished_at, 0.0) * 1e6 AS BIGINT), $now_us)) AS finished_at,
    $base AS base, $base_digest AS base_digest
"""

_CONCEPTS = f"""
SELECT q.manifest_row, q.concept_id, q.concept_key, q.superclass, q.images, {_RESULT_COLUMNS}, r.loss, {_WORK_COLUMNS}
FROM piece_rows q LEFT JOIN repeated p USING (nth) LEFT JOIN results r ON r.key = q.concept_key
"""

_RENDERS = f"""
SELECT q.manifest_row, q.image_index, q.concept_id,
    q.concept_ids, q.concept_keys, q.render_key, q.prompt, q.negative_prompt, q.seed, q.bias, q.temperature, q.lock,
    q.width, q.height, q.steps, q.guidance, q.scheduler, {_RESULT_COLUMNS}, {_WORK_COLUMNS}
FROM piece_rows q LEFT JOIN repeated p USING (nth) LEFT JOIN results r ON r.key = q.render_key
"""
