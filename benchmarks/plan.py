"""Planning of ten million pictures of which nearly all exist: the nightly check for new work.

100,000 products and 100 prompts; `done` has every key except those of one product in a thousand. The lower bound is
DuckDB itself with the same machine and memory limit: as many SHA-256 digests of texts of the same length, and one
anti-join of two tables of these digests.
"""

import argparse
import time

from benchmarks.catalogue import fill, plan
from benchmarks.measure import finish, peak_memory_gb, show
from pipeline.database.plandb import PlanDB
from pipeline.plan.expand import count_plan
from pipeline.plan.workqueue import WorkQueue
from pipeline.settings import EngineSettings

# The bars: 10 million in under a minute, in under 2 GB.
ROWS_PER_S, MEMORY_GB = 10e6 / 60, 2.0
_MEMORY_LIMIT = EngineSettings().plan_memory
_PROMPTS = 100
_NEW = 1000  # one of this number of products is new


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bars are met."""
    concepts = options.rows or 100_000
    rows = concepts * _PROMPTS
    with PlanDB(memory_limit=_MEMORY_LIMIT) as db:
        fill(db, concepts, _PROMPTS)
        plan(db)
        _make_all_but_some(db)
        begin = time.perf_counter()
        plan(db)
        planned_s = time.perf_counter() - begin
        show(f"planned {rows:,} pictures in {planned_s:.1f} s")
        work = count_plan(db)
        queue = WorkQueue(db, group_size=8, render_batch=16)
        took_s = time.perf_counter() - begin
        expected = concepts // _NEW * _PROMPTS
        assert work.renders.to_do == queue.remaining().renders == expected, (work, queue.remaining())
        peak_gb = peak_memory_gb()
    with PlanDB(memory_limit=_MEMORY_LIMIT) as db:
        bare_s = _bare(db, rows)
    figures = {
        "rows": rows,
        "to_do": work.renders.to_do,
        "seconds": took_s,
        "of_it_planning_s": planned_s,
        "rows_per_s": rows / took_s,
        "bare_s": bare_s,
        "over_bare": took_s / bare_s,
        "peak_memory_gb": peak_gb,
        "memory_left_gb": MEMORY_GB - peak_gb,
    }
    return finish("plan", figures, {"rows_per_s": ROWS_PER_S, "memory_left_gb": 0.0})


def _make_all_but_some(db: PlanDB) -> None:
    new = f"concept_keys[1] IN (SELECT concept_key FROM concept_keys WHERE row % {_NEW} = 0)"
    db.connection.execute(f"""
        INSERT INTO done (kind, key, uri, bytes)
        SELECT 'concept', concept_key, 'memory://' || concept_key, 1 FROM concept_keys WHERE row % {_NEW} <> 0
        UNION ALL
        SELECT 'render', render_key, 'memory://' || render_key, 1 FROM requests WHERE NOT ({new})
    """)


def _bare(db: PlanDB, rows: int) -> float:
    """Seconds for the digests and the join that every plan needs."""
    text = "repeat('x', 400) || range"
    db.connection.execute(f"CREATE TABLE there AS SELECT sha256({text}) AS key FROM range({rows})")
    begin = time.perf_counter()
    db.connection.execute(f"CREATE TABLE wanted AS SELECT sha256({text}) AS key FROM range({rows})")
    [(left,)] = db.connection.execute("SELECT count(*) FROM wanted ANTI JOIN there USING (key)").fetchall()
    assert left == 0
    return time.perf_counter() - begin
