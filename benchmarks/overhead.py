"""The overhead of the engine per unit, on a real Ray with simulated accelerators.

The first measurement has units that take no time, through the plan's queue, the scheduler, Ray and the parts on disk.
Its lower bound is a loop that sends the same units to the same number of actors and receives the rows. The second has
units that occupy their slot, as on an accelerator, and measures how long slots wait between units.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, redirect_stdout
from functools import partial
from typing import Any

import ray

from benchmarks.catalogue import fill, plan
from benchmarks.fake_worker import FakeWorker, outcomes
from benchmarks.measure import finish, show
from cluster.fleet import SlotResources
from cluster.ray_executor import RayExecutor
from pipeline.clock import SystemClock
from pipeline.contract.units import Outcome
from pipeline.database.plandb import PlanDB
from pipeline.engine.policy import Policy
from pipeline.engine.scheduler import run as schedule
from pipeline.plan.workqueue import WorkQueue
from pipeline.runs.parts import PartWriter
from pipeline.storage.objects import Storage

# The bar: the share of the slots' time that is work, with units that take a tenth of their time on a GPU.
BUSY = 0.97
_UNIT_S = 0.5
_SLOTS, _GROUP, _BATCH, _PROMPTS = 8, 8, 16, 100
_CONCEPTS = 160
_ROUNDS = 5


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bar is met."""
    concepts = options.rows or _CONCEPTS
    ours, bare = [], []
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints to stdout, which is for the result
        ray.init(address="local", num_cpus=os.cpu_count(), num_gpus=3 * _SLOTS, include_dashboard=False)
        stack.callback(ray.shutdown)
        idle, busy = (stack.enter_context(closing(_executor(seconds))) for seconds in (0.0, _UNIT_S))
        actors = _actors()
        for number in range(_ROUNDS):
            units, seconds = _engine(concepts, idle)
            ours.append(seconds / units)
            bare.append(_bare(concepts, actors) / units)
            show(f"round {number + 1}: {1000 * ours[-1]:.2f} ms a unit, bare {1000 * bare[-1]:.2f} ms, {units:,} units")
        units, seconds = _engine(concepts, busy)
    figures = {
        "slots": _SLOTS,
        "units": units,
        "rows_per_unit": _BATCH,
        "ms_per_unit": 1000 * statistics.median(ours),
        "bare_ms_per_unit": 1000 * statistics.median(bare),
        "over_bare": statistics.median(mine / yours for mine, yours in zip(ours, bare, strict=True)),
        "unit_s": _UNIT_S,
        "busy_share": units * _UNIT_S / (_SLOTS * seconds),
        "idle_ms_per_unit": 1000 * (_SLOTS * seconds / units - _UNIT_S),
    }
    return finish("overhead", figures, {"busy_share": BUSY})


def _planned(db: PlanDB, concepts: int) -> WorkQueue:
    fill(db, concepts, _PROMPTS)
    plan(db)
    return WorkQueue(db, group_size=_GROUP, render_batch=_BATCH)


def _executor(unit_s: float) -> RayExecutor:
    """Slots that are ready."""
    executor = RayExecutor(
        partial(FakeWorker, unit_s), slots=_SLOTS, resources=SlotResources(num_cpus=0, num_gpus=1), env_vars={}
    )
    while len(executor.slots()) < _SLOTS:
        executor.wait(1.0)
    return executor


def _actors() -> list[Any]:
    actor_class: Any = ray.remote(num_cpus=0, num_gpus=1)(FakeWorker)
    actors = [actor_class.remote(0.0) for _ in range(_SLOTS)]
    ray.get([actor.setup.remote() for actor in actors])
    return actors


def _engine(concepts: int, executor: RayExecutor) -> tuple[int, float]:
    """Units, and seconds until all of them are recorded."""
    clock, count = SystemClock(), 0
    with tempfile.TemporaryDirectory(prefix="perfusion-overhead-") as root, PlanDB() as db:
        queue = _planned(db, concepts)
        writer = PartWriter(Storage(root), "run", 1, seconds_per_part=2.0, clock=clock.monotonic)

        def sink(rows: Sequence[Outcome]) -> None:
            nonlocal count
            count += 1
            writer.add(rows)

        begin = time.perf_counter()
        # Unlimited strikes: no slot is given up, because the next round needs it.
        summary = schedule(queue, executor, sink, policy=Policy(strikes=1000), clock=clock, stop=lambda _: None)
        writer.flush()
        seconds = time.perf_counter() - begin
        assert not queue.unfinished()
        assert not summary.retries
    return count, seconds


def _bare(concepts: int, actors: list[Any]) -> float:
    """Seconds for the same units in a plain loop that keeps two calls in flight per actor."""
    units = []
    with PlanDB() as db:
        queue = _planned(db, concepts)
        while (unit := queue.next()) is not None:
            units.append(unit)
            queue.record(outcomes(unit))
    begin = time.perf_counter()
    flying = {}
    for place, unit in enumerate(units):
        actor = actors[place % len(actors)]
        if place >= 2 * len(actors):
            [done], _ = ray.wait(list(flying), num_returns=1)
            ray.get(done)
            actor = flying.pop(done)
        flying[actor.run.remote(unit)] = actor
    ray.get(list(flying))
    return time.perf_counter() - begin
