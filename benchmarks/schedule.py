"""A large run on a simulated cluster: the real plan, work queue and scheduler, on a simulated clock.

500 accelerator slots, 20,000 concepts, 50 pictures of each. Trainings and renders last as long as on a data-centre GPU,
with their spread; some slots are slower than others, machines are taken away and come back, some rows kill or hang
their worker, some trainings diverge. The lower bound is the work itself, spread evenly over slots that never wait.
"""

import argparse
import logging
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence

from benchmarks.catalogue import fill, plan
from benchmarks.measure import finish, peak_memory_gb, show
from benchmarks.simulation import Clock, Cluster, Fate, World
from pipeline.contract.errors import Status
from pipeline.contract.units import Outcome
from pipeline.database.plandb import PlanDB
from pipeline.engine.policy import Policy
from pipeline.engine.scheduler import run as schedule
from pipeline.plan.workqueue import WorkQueue

# The bar: the share of the workers' lifetime that is work.
BAR = 0.97
_GROUP, _BATCH = 8, 16
_PICTURES = 50  # of each concept
_DIVERGING, _KILLING, _HANGING = 0.001, 20, 5  # a share of the concepts; renders
_SEED = 0


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bar is met."""
    slots, concepts = options.slots, options.rows or 20_000
    logging.getLogger("pipeline").setLevel(logging.CRITICAL)  # every misfortune would be told
    clock, world, seen = Clock(), World(), Counter[str]()

    def sink(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            seen[outcome.status] += 1
        if sum(seen.values()) // 50_000 != (sum(seen.values()) - len(outcomes)) // 50_000:
            show(f"{sum(seen.values()):,} outcomes after {clock.now / 60:.0f} simulated minutes")

    with PlanDB() as db:
        began = time.perf_counter()
        fill(db, concepts, _PICTURES)
        plan(db)
        queue = WorkQueue(db, group_size=_GROUP, render_batch=_BATCH)
        planned_s = time.perf_counter() - began
        cluster = Cluster(slots, world, clock, _fates(db), _SEED)
        began = time.perf_counter()
        summary = schedule(queue, cluster, sink, policy=Policy(), clock=clock, stop=lambda _: None)
        driver_s = time.perf_counter() - began
        cluster.close()
        assert not queue.unfinished()
    busy_s, units = sum(summary.busy_s.values()), sum(cluster.ended.values())
    ideal_s = cluster.useful_s / slots + statistics.mean(world.setup_s)
    figures = {
        "slots": slots,
        "concepts": concepts,
        "renders": concepts * _PICTURES,
        "made": seen[Status.OK],
        "failed": seen[Status.FAILED],
        "simulated_hours": clock.now / 3600,
        "ideal_hours": ideal_s / 3600,
        "ideal_over_simulated": ideal_s / clock.now,
        "busy_share": busy_s / cluster.up_s(),
        "idle_share": 1 - busy_s / cluster.up_s(),
        "wasted_share": summary.wasted_s / busy_s,
        "preemptions": cluster.ended["preempted"],
        "deaths": summary.deaths,
        "retries": summary.retries,
        "driver_ms_per_unit": 1000 * driver_s / units,
        "driver_share_of_simulated_time": driver_s / clock.now,
        "plan_s": planned_s,
        "peak_memory_gb": peak_memory_gb(),
    }
    show(f"idle {figures['idle_share']:.2%}, wasted {figures['wasted_share']:.2%}, {units:,} units")
    return finish("schedule", figures, {"busy_share": BAR})


def _fates(db: PlanDB) -> dict[str, Fate]:
    concepts = [key for (key,) in db.connection.execute("SELECT concept_key FROM concept_keys ORDER BY 1").fetchall()]
    rng = random.Random(_SEED)
    fates: dict[str, Fate] = dict.fromkeys(rng.sample(concepts, round(_DIVERGING * len(concepts))), "diverges")
    keys = db.connection.execute(
        f"SELECT render_key FROM requests ORDER BY md5(render_key) LIMIT {_KILLING + _HANGING}"
    ).fetchall()
    fates |= {key: "kills" if place < _KILLING else "hangs" for place, (key,) in enumerate(keys)}
    return fates
