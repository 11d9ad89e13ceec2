"""Publishing of ten million outcomes from parts, and then a query for one product.

100,000 products and 100 pictures of each, outcomes in parts of 50,000 rows. The lower bound of publishing is DuckDB
itself, which sorts the same rows and writes them as Parquet with the same memory limit. The lower bound of a query is
pyarrow with the file's own statistics, on the right file.

With `--shape`, `--origin` or `--memory` other rows are published, a million unless `--rows` says otherwise (rows here,
not concepts), and with `--all` those of every shape and origin: all of them must end in tables under the memory limit.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.catalogue import fill, plan
from benchmarks.measure import finish, peak_memory_gb, reset_peak_memory, show
from benchmarks.shapes import ORIGINS, SHAPES, fill_shape, make_outcomes
from pipeline.database.memory import MemoryFullError, ScratchFullError
from pipeline.database.plandb import PlanDB
from pipeline.settings import EngineSettings
from pipeline.storage.objects import Storage
from pipeline.tables.publish import Published, UnaccountedError, publish
from pipeline.tables.views import query

# The bars: ten million in five minutes, in under 2 GB; a query for one product in a second.
ROWS_PER_S, MEMORY_GB, QUERIES_PER_S = 10e6 / 300, 2.0, 1.0
_MEMORY_LIMIT = EngineSettings().plan_memory
_PROMPTS = 100
_QUERIES = 15


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bars are met."""
    if options.all or options.shape or options.origin or options.memory:
        return _run_cells(options)
    concepts = options.rows or 100_000
    with tempfile.TemporaryDirectory(prefix="perfusion-publish-") as name:
        storage = Storage(name)
        with PlanDB(memory_limit=_MEMORY_LIMIT) as db:
            fill(db, concepts, _PROMPTS)
            plan(db)
            parts = make_outcomes(db, storage, "parts")
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


def _run_cells(options: argparse.Namespace) -> bool:
    """Publish rows of one shape, origin and memory limit, or of all of them; what is not given is taken in turn."""
    shapes = [options.shape] if options.shape else SHAPES if options.all else ["plain"]
    origins = [options.origin] if options.origin else ORIGINS if options.all else ["both"]
    limits = [options.memory] if options.memory else ("512MB", "750MB") if options.all else [_MEMORY_LIMIT]
    cells = [
        _cell(shape, origin, limit, options.rows or 1_000_000)
        for shape in shapes
        for origin in origins
        for limit in limits
    ]
    figures = {
        "rows": options.rows or 1_000_000,
        "published": sum("error" not in cell for cell in cells),
        "seconds": max(cell["seconds"] for cell in cells),
        "peak_memory_gb": max(cell["peak_memory_gb"] for cell in cells),
        "cells": cells,
    }
    return finish("publish", figures, {"published": len(cells)})


def _cell(shape: str, origin: str, limit: str, rows: int) -> dict[str, Any]:
    """Figures of one publishing."""
    with tempfile.TemporaryDirectory(prefix="perfusion-publish-") as name:
        storage = Storage(name)
        with PlanDB(memory_limit=limit) as db:
            # The rows are made with more, so that publishing alone is measured.
            db.connection.execute("SET memory_limit = '2GB'")
            fill_shape(db, shape, rows)
            make_outcomes(db, storage, origin)
            db.connection.execute(f"SET memory_limit = '{limit}'")
            reset_peak_memory()
            before_gb, begin = peak_memory_gb(), time.perf_counter()
            figures: dict[str, Any] = {"shape": shape, "origin": origin, "memory": limit}
            try:
                published = publish(
                    db, storage, run_id="run", run_date="2026-01-01", base="base", base_digest="base", clock=lambda: 0.0
                )
            except (MemoryFullError, ScratchFullError, UnaccountedError) as error:
                figures["error"] = str(error)
            else:
                figures["rows"] = published.rows("renders")
            figures |= {
                "seconds": round(time.perf_counter() - begin, 1),
                "peak_memory_gb": round(peak_memory_gb(), 3),
                "of_it_before_gb": round(before_gb, 3),
                "threads": db.connection.execute("SELECT current_setting('threads')").fetchall()[0][0],
            }
    show(str(figures))
    return figures


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
