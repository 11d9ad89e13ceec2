"""Divides the parts of a published table into ranges of its sort order.

Rows go to the range of their sort key, outcomes to each range that has a row of their key, and extra columns to each
range that has a row of their manifest row. Everything is read in pages. Steps over all rows use only numbers, in parts
that fit into memory. The table `places` has the range of each key, as numbers.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.contract.kinds import CONCEPTS, RENDERS, ResultTable
from pipeline.contract.schemas import INTERNAL
from pipeline.database.memory import bytes_of
from pipeline.database.pieces import Pieces, bounds_of
from pipeline.database.plandb import EXTRA_ROW, PlanDB, extra_columns

_PIECE = 16  # a range takes one 16th of the memory limit before it is joined and sorted
_PAGE = 4  # a page takes one quarter of the memory limit
_LEAST_BYTES = 2_000_000  # of a range
_SAMPLE = 50_000  # rows in the sample for the bounds of the ranges
_ROW_BYTES = 800  # of a row without its texts: ids, keys and outcome
_RESULT_BYTES = 500  # of an outcome
_NUMBER_BYTES = 128  # of a key while it is joined or counted as a number


def divide(db: PlanDB, table: ResultTable) -> Pieces:
    """Read the parts of a table once, and divide them into ranges; fills the table `repeats` (piece, nth).

    Kinds of pieces: `rows`, with the id `nth`; `results`, of which the one with the highest `preference` counts; and
    `concepts_extra` and `prompts_extra` if the manifests have extra columns.

    Args:
        db: with `requests`, `outcomes` and `done` filled.
        table: which one.

    Raises:
        ScratchFullError: the disk of the scratch folder is full.
    """
    bounds, row_bytes = _bounds(db, table)
    pieces = Pieces(db.folder, bounds, row_bytes)
    db.connection.execute(
        "CREATE OR REPLACE TABLE places (number UHUGEINT, piece INTEGER, nth BIGINT, manifest_row BIGINT, "
        "image_index INTEGER)"
    )
    _divide_rows(db, table, pieces, _page_bytes(db) // row_bytes + 1)
    _find_repeats(db)
    for source, columns in _RESULTS.items():
        _divide_results(db, table, pieces, source, columns)
    if extra_columns(db.connection, "concepts"):
        if table is CONCEPTS:
            _divide_extras(db, pieces, "concepts_extra")
        else:
            _divide_concept_extras(db, pieces)
    if extra_columns(db.connection, "prompts") and table is RENDERS:
        _divide_extras(db, pieces, "prompts_extra")
    db.connection.execute("DROP TABLE places")
    return pieces


def _page_bytes(db: PlanDB) -> int:
    return bytes_of(db.memory_limit) // _PAGE


def _bounds(db: PlanDB, table: ResultTable) -> tuple[list[bytes], int]:
    """Bounds of the ranges, and bytes of an average row."""
    more = _ROW_BYTES + sum(_bytes_per_extra(db, f"{name}_extra") for name in table.manifests)
    [(rows,)] = db.connection.execute(f"SELECT count(*) FROM {table.planned}").fetchall()
    source = _ROWS[table.name].format(where=f"hash({table.planned_id}) % {max(1, rows // _SAMPLE)} = 0")
    sample = db.connection.execute(f"SELECT sort_key, {_TEXT_BYTES[table.name]} + {more} FROM ({source})").fetchall()
    bounds = bounds_of(sample, rows, max(_LEAST_BYTES, bytes_of(db.memory_limit) // _PIECE))
    return bounds, sum(size for _, size in sample) // max(1, len(sample)) + 1


def _bytes_per_extra(db: PlanDB, table: str) -> int:
    """Bytes of the extra columns of a row, estimated from a sample."""
    rows = db.connection.sql(f"SELECT * FROM {table} USING SAMPLE 500 ROWS (reservoir, 0)").to_arrow_table()
    return rows.nbytes // max(1, len(rows))


def _ranges(db: PlanDB, table: str, column: str, size: int) -> Iterator[str]:
    """SQL conditions that cover the values of an integer column, `size` values each."""
    [(first, last)] = db.connection.execute(f"SELECT min({column}), max({column}) FROM {table}").fetchall()
    for start in range(first, last + 1, size) if first is not None else ():
        yield f"{column} >= {start} AND {column} < {start + size}"


def _divide_rows(db: PlanDB, table: ResultTable, pieces: Pieces, size: int) -> None:
    connection = db.connection
    for where in ("false", *_ranges(db, table.planned, table.planned_id, size)):
        page = connection.sql(_ROWS[table.name].format(where=where)).to_arrow_table()
        numbers = pieces.numbers(page["sort_key"].to_pylist())
        page = page.drop_columns(["sort_key"])
        pieces.add("rows", page, numbers)
        placed = page.select([table.key_column, "nth", "manifest_row", "image_index"])
        connection.register("page", placed.append_column("piece", pa.array(numbers)))
        connection.execute(
            f"INSERT INTO places SELECT md5_number({table.key_column}), piece, nth, manifest_row, image_index FROM page"
        )
        connection.unregister("page")


def _find_repeats(db: PlanDB) -> None:
    """Fill `repeats` with rows whose key an earlier row of the manifest has too."""
    db.connection.execute("CREATE OR REPLACE TABLE repeats (piece INTEGER, nth BIGINT)")
    [(rows,)] = db.connection.execute("SELECT count(*) FROM places").fetchall()
    parts = rows * _NUMBER_BYTES // _page_bytes(db) + 1
    for part in range(parts):
        some = f"(SELECT * FROM places WHERE number IS NOT NULL AND hash(number) % {parts} = {part})"
        db.connection.execute(f"""
            INSERT INTO repeats SELECT piece, nth FROM (
                SELECT piece, nth, row_number() OVER (
                    PARTITION BY number ORDER BY manifest_row, image_index, nth) AS place
                FROM {some} WHERE number IN (SELECT number FROM {some} GROUP BY number HAVING count(*) > 1)
            ) WHERE place > 1
        """)


def _divide_results(db: PlanDB, table: ResultTable, pieces: Pieces, source: str, columns: str) -> None:
    connection = db.connection
    whole = (
        f"SELECT h.piece, {columns} FROM hits h JOIN (SELECT *, rowid AS nth FROM {source} WHERE {{0}}) o USING (nth)"
    )
    block = _page_bytes(db) // _NUMBER_BYTES + 1
    connection.execute("CREATE OR REPLACE TEMP TABLE hits (piece INTEGER, nth BIGINT)")
    _add_with_piece(pieces, "results", connection.sql(whole.format("false")).to_arrow_table())
    for where in _ranges(db, source, "rowid", block):
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE numbers AS SELECT md5_number(key) AS number, rowid AS nth "
            f"FROM {source} WHERE kind = '{table.kind}' AND {where}"
        )
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE hits AS "
            "SELECT DISTINCT p.piece, n.nth FROM places p JOIN numbers n USING (number)"
        )
        for some in _ranges(db, "hits", "nth", _page_bytes(db) // _RESULT_BYTES + 1):
            page = whole.format(some.replace("nth", "rowid"))
            _add_with_piece(pieces, "results", connection.sql(page).to_arrow_table())
    connection.execute("DROP TABLE IF EXISTS numbers; DROP TABLE hits")


def _add_with_piece(pieces: Pieces, kind: str, rows: pa.Table) -> None:
    pieces.add(kind, rows.drop_columns(["piece"]), rows["piece"].to_numpy())


def _divide_extras(db: PlanDB, pieces: Pieces, table: str) -> None:
    """Add the extra columns of each manifest row to each range that has a row of it."""
    size = _page_bytes(db) // (_bytes_per_extra(db, table) + 1) + 1
    for where in ("false", *_ranges(db, table, EXTRA_ROW, size)):
        page = db.connection.sql(f"SELECT * FROM {table} WHERE {where} ORDER BY {EXTRA_ROW}").to_arrow_table()
        hits = db.connection.sql(
            f"SELECT DISTINCT manifest_row, piece FROM places WHERE {where.replace(EXTRA_ROW, 'manifest_row')}"
        ).to_arrow_table()
        rows, numbers = hits["manifest_row"].to_numpy(), hits["piece"].to_numpy()
        _add_some(pieces, table, page, np.searchsorted(page[EXTRA_ROW].to_numpy(), rows), numbers, size)


def _divide_concept_extras(db: PlanDB, pieces: Pieces) -> None:
    """Add the id and the extra columns of each good concept to each range that may have a render of it."""
    table, sort_key = "concepts_extra", f"{INTERNAL}sort_key"
    size = _page_bytes(db) // (_bytes_per_extra(db, table) + 1) + 1
    for where in ("false", *_ranges(db, table, EXTRA_ROW, size)):
        page = db.connection.sql(
            f"SELECT create_sort_key(k.concept_id, 'ASC NULLS LAST') AS {sort_key}, k.concept_id AS {INTERNAL}id, e.* "
            f"FROM (FROM {table} WHERE {where}) e "
            f"JOIN (FROM concept_keys WHERE {where.replace(EXTRA_ROW, 'row')}) k ON k.row = e.{EXTRA_ROW}",
        ).to_arrow_table()
        spans = [pieces.span(prefix) for prefix in page[sort_key].to_pylist()]
        places = np.repeat(np.arange(len(page)), [len(span) for span in spans])
        numbers = np.fromiter((number for span in spans for number in span), dtype=np.int32)
        _add_some(pieces, table, page.drop_columns([sort_key]), places, numbers, size)


def _add_some(  # noqa: PLR0917 - rows, their places and their ranges
    pieces: Pieces, kind: str, page: pa.Table, places: np.ndarray, numbers: np.ndarray, size: int
) -> None:
    """Add rows of a page, each as often as `places` has it, in batches of `size`."""
    pieces.add(kind, page[:0], np.empty(0, dtype=np.int32))
    for start in range(0, len(places), size):
        pieces.add(kind, page.take(places[start : start + size]), numbers[start : start + size])


_TEXT_BYTES = {
    "concepts": "coalesce(strlen(superclass), 0) + coalesce(strlen(error_message), 0)",
    "renders": (
        "coalesce(strlen(prompt), 0) + coalesce(strlen(negative_prompt), 0) + coalesce(strlen(error_message), 0)"
        " + coalesce(strlen(scene), 0) + coalesce(strlen(scene_mask), 0)"
        " + coalesce(strlen(control_picture), 0)"
    ),
}
_ROWS = {
    "concepts": """
SELECT c.row AS nth, c.row AS manifest_row, 0 AS image_index, c.concept_id, k.concept_key, c.superclass,
    CAST(len(c.images) AS INTEGER) AS images, c.error_code, c.error_column, c.error_message, create_sort_key(
        c.concept_id, 'ASC NULLS LAST', k.concept_key, 'ASC NULLS LAST', c.row, 'ASC NULLS LAST') AS sort_key
FROM (FROM concepts WHERE {where}) c LEFT JOIN (FROM concept_keys WHERE {where}) k ON k.row = c.row
""",
    "renders": """
SELECT rowid AS nth, prompt_row AS manifest_row, image_index, concept_ids[1] AS concept_id, concept_ids, concept_keys,
    render_key, prompt, negative_prompt, seed, bias, temperature, lock, width, height, steps, guidance, scheduler,
    shown_uri(scene.uri) AS scene, scene.sha256 AS scene_sha256, shown_uri(scene_mask.uri) AS scene_mask, scene_box,
    scene_strength, keep, control, shown_uri(control_picture.uri) AS control_picture,
    control_picture.sha256 AS control_sha256, control_strength, guidance_rescale, frames, fps,
    error_code, error_column, error_message, create_sort_key(
        concept_ids[1], 'ASC NULLS LAST', render_key, 'ASC NULLS LAST', prompt_row, 'ASC NULLS LAST',
        image_index, 'ASC NULLS LAST') AS sort_key
FROM requests WHERE {where}
""",
}
# What this run made is preferred to what existed before, and that to a failure of this run.
_RESULTS = {
    "outcomes": """
o.key, o.status, o.error_code, o.error_message, o.attempts, o.origin, o.uri, o.sha256, o.bytes, o.accelerator_s,
o.batch, o.worker, o.finished_at, o.loss, o.error_column,
CASE o.status WHEN 'ok' THEN 2 ELSE 0 END AS preference, 2 * nth AS source_row
""",
    "done": """
o.key, 'ok' AS status, NULL::VARCHAR AS error_code, NULL::VARCHAR AS error_message, 0 AS attempts, 'reused' AS origin,
o.uri, o.sha256, o.bytes, 0.0::DOUBLE AS accelerator_s, NULL::INTEGER AS batch, NULL::VARCHAR AS worker,
NULL::DOUBLE AS finished_at, o.loss, NULL::VARCHAR AS error_column, 1 AS preference, 2 * nth + 1 AS source_row
""",
}
