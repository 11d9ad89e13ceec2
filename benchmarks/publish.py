"""Ten million outcomes, as workers left them in parts, become published tables; then one product is asked for.

100,000 products and 100 pictures of each, outcomes in parts of 50,000 rows. What publishing cannot beat is DuckDB
itself: the same rows sorted and written as Parquet, under the same memory limit. What a query cannot beat is pyarrow
with the file's own statistics, told which file it is.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.catalogue import fill, plan
from benchmarks.measure import finish, peak_memory_gb, reset_peak_memory, show
from pipeline.layout import part_path
from pipeline.plandb import PlanDB
from pipeline.publish import Published, publish
from pipeline.schemas import PART, conform
from pipeline.settings import EngineSettings
from pipeline.storage import Storage
from pipeline.views import query

# What must be reached: ten million in five minutes, in under 2 GB; an answer about one product in a second.
ROWS_PER_S, MEMORY_GB, QUERIES_PER_S = 10e6 / 300, 2.0, 1.0
_MEMORY_LIMIT = EngineSettings().plan_memory
_PROMPTS = 100
_ROWS_PER_PART = 50_000
_QUERIES = 15


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bars are met."""
    concepts = options.rows or 100_000
    memory = options.memory or _MEMORY_LIMIT
    with tempfile.TemporaryDirectory(prefix="perfusion-publish-") as name:
        storage = Storage(name)
        with PlanDB(memory_limit=memory) as db:
            fill(db, concepts, _PROMPTS)
            plan(db)
            parts = _write_parts(db, storage) if options.origin in {"parts", "both"} else 0
            if options.origin in {"done", "both"}:
                db.connection.execute(_DONE)
            show(f"{parts} parts of outcomes are there")
            reset_peak_memory()
            begin = time.perf_counter()
            published = publish(
                db, storage, run_id="run", run_date="2026-01-01", base="base", base_digest="base", clock=lambda: 0.0
            )
            took_s = time.perf_counter() - begin
        rows = published.rows("renders")
        assert published.statuses == {"concepts": {"ok": concepts}, "renders": {"ok": concepts * _PROMPTS}}
        peak_gb = peak_memory_gb()
        show(f"published {rows:,} rows in {took_s:.1f} s")
        bare_s = _sorted_and_written(Path(name))
        query_s, bare_query_s = _asked(storage, published, concepts)
    figures = {
        "rows": rows,
        "origin": options.origin,
        "memory": memory,
        "seconds": took_s,
        "rows_per_s": rows / took_s,
        "bare_s": bare_s,
        "over_bare": took_s / bare_s,
        "peak_memory_gb": peak_gb,
        "memory_left_gb": MEMORY_GB - peak_gb,
        "bytes_per_row": sum(file.bytes for file in published.files if file.table == "renders") / rows,
        "files": len(published.files),
        "query_s": query_s,
        "queries_per_s": 1 / query_s,
        "bare_query_s": bare_query_s,
        "query_over_bare": query_s / bare_query_s,
    }
    bars = {"rows_per_s": ROWS_PER_S, "memory_left_gb": 0.0, "queries_per_s": QUERIES_PER_S}
    return finish("publish", figures, bars)


# As a run that was interrupted finds its own rows when it is resumed.
_DONE = """
INSERT INTO done SELECT kind, key, 'memory://' || key, sha256(key), 100000, 0.1, 0.5 FROM (
    SELECT 'concept' AS kind, concept_key AS key FROM concept_keys UNION ALL SELECT 'render', render_key FROM requests
)
"""


def _write_parts(db: PlanDB, storage: Storage) -> int:
    """An ok outcome for every key, as a run's parts hold them."""
    outcomes = db.connection.sql("""
        SELECT kind, key, 'ok' AS status, 1 AS attempts, origin, 'memory://' || key AS uri, sha256(key) AS sha256,
            100000 + hash(key) % 10000 AS bytes, 0.1 + hash(key) % 100 / 1000 AS accelerator_s, 16 AS batch,
            'worker-' || hash(key) % 500 AS worker, 1.0e9 + hash(key) % 100000 AS finished_at
        FROM (
            SELECT 'concept' AS kind, concept_key AS key, 'trained' AS origin FROM concept_keys
            UNION ALL
            SELECT 'render', render_key, 'rendered' FROM requests
        )
    """)
    count = 0
    for batch in outcomes.to_arrow_reader(_ROWS_PER_PART):
        sink = io.BytesIO()
        pq.write_table(conform(pa.Table.from_batches([batch]), PART), sink, compression="zstd")
        storage.write(part_path("run", 1, count), sink.getvalue())
        count += 1
    return count


def _sorted_and_written(root: Path) -> float:
    """Seconds for DuckDB to read the published renders, sort them and write them."""
    with PlanDB(memory_limit=_MEMORY_LIMIT) as db:
        begin = time.perf_counter()
        db.connection.execute(f"""
            COPY (SELECT * FROM '{root}/tables/renders/**/*.parquet' ORDER BY concept_id, render_key)
            TO '{root}/copy' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 65536, FILE_SIZE_BYTES '256MB')
        """)
        return time.perf_counter() - begin


def _asked(storage: Storage, published: Published, concepts: int) -> tuple[float, float]:
    """Median seconds to read one concept's rows: by `views.query` from all files, and by pyarrow from the right one."""
    ids = [f"product-{number * concepts // _QUERIES}" for number in range(_QUERIES)]
    paths = [storage.full(file.path) for file in published.files if file.table == "renders"]
    ours, bare = [], []
    for concept_id in ids:
        begin = time.perf_counter()
        found = query(storage, "SELECT * FROM renders WHERE concept_id = ?", [concept_id])
        ours.append(time.perf_counter() - begin)
        assert found.num_rows == _PROMPTS
        holding = [path for path in paths if pq.read_table(path, filters=[("concept_id", "=", concept_id)]).num_rows]
        begin = time.perf_counter()
        pq.read_table(holding, filters=[("concept_id", "=", concept_id)])
        bare.append(time.perf_counter() - begin)
    return statistics.median(ours), statistics.median(bare)
