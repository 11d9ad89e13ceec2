"""Runs of every shape and origin, planned: how rows spread over concepts and prompts, and where their outcomes are."""

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from perfusion_ops.config import SamplingConfig, TrainingConfig
from pipeline.contract.layout import part_path
from pipeline.contract.schemas import PART, conform
from pipeline.database.plandb import EXTRA_ROW, PlanDB
from pipeline.plan.expand import plan_concepts, plan_requests
from pipeline.storage.objects import Storage

_LONG = 2_000  # characters
_WIDE = 20  # columns
_ROWS_PER_PART = 50_000

# Prompts for each shape: the number for a number of rows; concepts are what is left.
SHAPES = ("many-concepts", "many-prompts", "one-concept", "long", "wide", "equal")
ORIGINS = ("parts", "done", "both", "mixed", "failed")


def fill_shape(db: PlanDB, shape: str, rows: int) -> None:
    """Fill both manifests' tables with about `rows` pictures of a shape, and plan them.

    - many-concepts: ten prompts; many-prompts: ten concepts; one-concept: one.
    - long: a hundred prompts of 2,000 characters.
    - wide: a hundred prompts; twenty columns of text in each manifest.
    - equal: one concept, and one prompt again and again.
    """
    prompts = {"many-concepts": 10, "many-prompts": rows // 10, "one-concept": rows, "equal": rows}.get(shape, 100)
    concepts = max(1, rows // prompts)
    db.connection.execute(
        """
        INSERT INTO concepts BY NAME
        SELECT range + 1 AS row, 'product-' || range AS concept_id, 'mug' AS superclass,
            [{'uri': 'memory://' || range, 'sha256': sha256('photo ' || range)}] AS images
        FROM range(?)
        """,
        [concepts],
    )
    text = {
        "long": f"left(repeat(sha256('prompt ' || range), 32), {_LONG - 50}) || ' of a {{product}} in place ' || range",
        "equal": "'a {product} in the same place'",
    }.get(shape, "'a {product} in place ' || range")
    db.connection.execute(
        f"INSERT INTO prompts BY NAME SELECT range + 1 AS row, {text} AS prompt FROM range(?)", [prompts]
    )
    for manifest in ("concepts", "prompts"):
        wide = "".join(
            f", repeat(sha256('{number} ' || row), 2) AS {manifest}_{number}" for number in range(_WIDE)
        ) if shape == "wide" else ""  # fmt: skip
        db.connection.execute(f"CREATE TABLE {manifest}_extra AS SELECT row AS {EXTRA_ROW}{wide} FROM {manifest}")
    # Without a tokenizer: a prompt of 2,000 characters does not fit the embedded model.
    plan_concepts(db, base_digest="base", metric_key="metric", training=TrainingConfig())
    plan_requests(db, base_digest="base", sampling=SamplingConfig(), seed=0)


def make_outcomes(db: PlanDB, storage: Storage, origin: str, run_id: str = "run") -> int:
    """Outcomes for every key of a plan; returns the number of parts.

    - parts: made by this run; done: by earlier ones; both: by this run, which is resumed.
    - mixed: 97 of 100 by earlier ones.
    - failed: as both, but one of ten failed in this run, half of which were there before, and was tried twice.
    """
    if origin != "parts":
        there = {"mixed": "hash(key) % 100 >= 3", "failed": "hash(key) % 20 <> 0"}.get(origin, "true")
        db.connection.execute(f"""
            INSERT INTO done
            SELECT kind, key, 'memory://' || key, sha256(key), 100000 + hash(key) % 10000, 0.1, 0.5
            FROM ({_KEYS}) WHERE {there}
        """)
    made = {"done": "false", "mixed": "hash(key) % 100 < 3"}.get(origin, "true")
    failed = "hash(key) % 10 = 0" if origin == "failed" else "false"
    count = 0
    attempts = (1, 2) if origin == "failed" else (1,)
    for lease in attempts:
        for batch in _parts(db, made, failed, lease):
            sink = io.BytesIO()
            pq.write_table(conform(pa.Table.from_batches([batch]), PART), sink, compression="zstd")
            storage.write(part_path(run_id, lease, count), sink.getvalue())
            count += 1
    return count


def _parts(db: PlanDB, made: str, failed: str, lease: int) -> Iterator[pa.RecordBatch]:
    query = f"""
        SELECT * EXCLUDE (failed) REPLACE (
            CASE WHEN failed THEN NULL ELSE origin END AS origin, CASE WHEN failed THEN NULL ELSE uri END AS uri
        )
        FROM (
            SELECT kind, key, {failed} AS failed, CASE WHEN {failed} THEN 'failed' ELSE 'ok' END AS status,
                CASE WHEN {failed} THEN 'timed_out' END AS code,
                CASE WHEN {failed} THEN 'attempt {lease} took too long' END AS message, 1 AS attempts, origin,
                'memory://' || key AS uri, sha256(key) AS sha256, 100000 + hash(key) % 10000 AS bytes,
                0.1 + hash(key) % 100 / 1000 AS accelerator_s, 16 AS batch,
                'worker-' || hash(key) % 500 AS worker, 1.0e9 + hash(key) % 100000 AS finished_at
            FROM ({_KEYS}) WHERE {made}{" AND " + failed if lease == 2 else ""}
        )
    """
    yield from db.connection.sql(query).to_arrow_reader(_ROWS_PER_PART)


_KEYS = """
SELECT 'concept' AS kind, concept_key AS key, 'trained' AS origin FROM concept_keys
UNION ALL
SELECT 'render', render_key, 'rendered' FROM requests
WHERE rowid IN (SELECT min(rowid) FROM requests WHERE code IS NULL GROUP BY md5_number(render_key))
"""
