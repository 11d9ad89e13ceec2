"""The rows of the published tables, in their order, from requests and outcomes.

Each row has `finished_at`: when its work ended, or when it was published if it needed no work. `accelerator_s` is the
time that this run spent on the row: zero if its object was reused, also from an equal row of the same run.

Memory is bounded: `pipeline.tables.divide` splits the rows, the outcomes of their keys and their extra columns into
ranges of the sort order, each far smaller than the memory limit. This module joins and sorts one range at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa

from pipeline.contract.kinds import CONCEPTS, RENDERS, ResultTable
from pipeline.contract.schemas import INTERNAL
from pipeline.database.pieces import Pieces
from pipeline.database.plandb import EXTRA_ROW, PlanDB
from pipeline.database.query import quoted
from pipeline.tables.columns import Carried
from pipeline.tables.divide import divide

_GROUP_BYTES = 2**26  # a group of rows is in memory as a whole, and a second time while it is written
_LEAST_ROWS = 1024


def table_rows(
    db: PlanDB, table: ResultTable, values: dict[str, Any], rows_per_group: int, carried: Sequence[Carried]
) -> Iterator[pa.Table]:
    """The rows of a table, sorted by concept id and key, with the carried columns after the fixed ones.

    Args:
        db: with `requests`, `done` and `outcomes` filled; its connection must not be used until all rows are taken.
        table: which one.
        values: `base`, `base_digest` and `now_us` (microseconds since 1970), the same in each row.
        rows_per_group: rows of each group but the last; fewer if the rows are so wide that a group would be too large.
        carried: the carried columns of the root.

    Raises:
        ScratchFullError: the disk of the scratch folder is full.
    """
    pieces = divide(db, table)
    rows_per_group = min(rows_per_group, max(_LEAST_ROWS, _GROUP_BYTES // pieces.row_bytes))
    return _regrouped(_pieces(db, table, pieces, values, carried), rows_per_group)


def _pieces(
    db: PlanDB, table: ResultTable, pieces: Pieces, values: dict[str, Any], carried: Sequence[Carried]
) -> Iterator[pa.RecordBatch]:
    """The rows of all ranges in order."""
    query = _query(table, carried)
    with closing(pieces):
        for number in range(len(pieces)):
            for kind in pieces.kinds:
                db.connection.register(f"piece_{kind}", pieces.read(kind, number))
            try:
                rows = db.connection.sql(query, params={**values, "piece": number}).to_arrow_table()
            finally:
                for kind in pieces.kinds:
                    db.connection.unregister(f"piece_{kind}")
            yield from rows.to_batches()


def _query(table: ResultTable, carried: Sequence[Carried]) -> str:
    """SQL for the rows of a range in order."""
    columns = "".join(f", {_value(each)} AS {quoted(each.field.name)}" for each in carried)
    joins, manifests = "", {each.manifest for each in carried}
    if "concepts" in manifests:
        key = "{0}id = t.concept_id" if table is RENDERS else "{1} = t.manifest_row"
        joins += f" LEFT JOIN piece_concepts_extra ce ON ce.{key.format(INTERNAL, EXTRA_ROW)}"
    if "prompts" in manifests:
        joins += f" LEFT JOIN piece_prompts_extra pe ON pe.{EXTRA_ROW} = t.manifest_row"
    select, order = (_CONCEPTS, "") if table is CONCEPTS else (_RENDERS, ", t.image_index")
    return (
        f"WITH results AS ({_RESULTS}), repeated AS (SELECT nth FROM repeats WHERE piece = $piece) "
        f"SELECT t.*{columns} FROM ({select}) t{joins} "
        f"ORDER BY t.concept_id NULLS LAST, t.{table.key_column} NULLS LAST, t.manifest_row{order}"
    )


def _value(carried: Carried) -> str:
    """SQL for the value of a carried column, cast to the type that the root has."""
    if carried.column is None or carried.manifest is None:
        return f"CAST(NULL AS {carried.kind})"
    alias = {"concepts": "ce", "prompts": "pe"}[carried.manifest]
    return f"CAST({alias}.{quoted(carried.column)} AS {carried.kind})"


def _regrouped(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same rows in groups of `size`; the last group may have fewer."""
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


# One row per key: what this run made, else what existed before, else how it failed. A window would hold whole rows.
_RESULTS = """
SELECT * FROM piece_results
WHERE source_row IN (SELECT arg_max(source_row, preference) FROM piece_results GROUP BY key)
"""

# Of rows with equal keys, the first one has the cost of the work.
_RESULT_COLUMNS = """
    CASE WHEN q.error_code IS NOT NULL THEN 'invalid' ELSE r.status END AS status,
    coalesce(q.error_code, r.error_code) AS error_code, coalesce(q.error_column, r.error_column) AS error_column,
    coalesce(q.error_message, r.error_message) AS error_message,
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
    q.width, q.height, q.steps, q.guidance, q.scheduler, q.scene, q.scene_sha256, q.scene_mask, q.scene_box,
    q.scene_strength, q.keep, q.control, q.control_picture, q.control_sha256, q.control_strength, q.guidance_rescale,
    q.frames, q.fps, {_RESULT_COLUMNS}, {_WORK_COLUMNS}
FROM piece_rows q LEFT JOIN repeated p USING (nth) LEFT JOIN results r ON r.key = q.render_key
"""
