"""Slots that write the objects of a unit while they compute the next one: who is blamed when their worker is lost."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract.errors import Code, Status
from pipeline.engine.executor import Completion, Failure
from pipeline.engine.policy import Policy
from pipeline.engine.scheduler import run
from tests.support.fake_clock import FakeClock
from tests.support.simulated_pool import OverlappingPool, Pool, Source, World, concept, ok, render

POLICY = Policy(poll_s=1e6)


def simulate(world, tasks, *, concepts=(), policy=POLICY, batch=8, make=OverlappingPool):
    clock = FakeClock()
    pool, outcomes = make(world, clock), {}

    def sink(rows):
        for row in rows:
            assert row.key not in outcomes
            outcomes[row.key] = row

    work = Source(list(concepts), list(tasks), batch=batch)
    summary = run(work, pool, sink, policy=policy, clock=clock, stop=lambda _: None)
    return outcomes, summary, pool


def renders(count):
    return [render(f"r{index}") for index in range(count)]


def codes(outcomes):
    return {key: row.error_code for key, row in outcomes.items() if row.status is not Status.OK}


def times(pool, key):
    """How often a task was given to a slot, and with how many others."""
    return [len(keys) for _, _, keys in pool.trace if key in keys]


def test_writing_beside_the_next_unit_costs_no_time():
    slow = World(slots=1, store_s=0.9)  # a unit is computed in 1 to 10 s
    outcomes, summary, pool = simulate(slow, renders(400))
    alone, nothing_to_write, fast = simulate(replace(slow, store_s=1e-9), renders(400))
    assert outcomes.keys() == alone.keys()
    assert summary.retries == 0
    assert pool.clock.now == pytest.approx(fast.clock.now + 0.9, abs=0.01)  # the last unit has nothing beside it
    assert sum(summary.busy_s.values()) == pytest.approx(sum(nothing_to_write.busy_s.values()) + 0.9, abs=0.01)


def test_a_killer_is_found_although_another_unit_was_being_stored():
    # r8 is in the second unit, and dies while the first one is written.
    world = World(slots=1, store_s=60.0, poison=frozenset({"r8"}))
    outcomes, summary, pool = simulate(world, renders(24))
    assert codes(outcomes) == {"r8": Code.WORKER_DIED}
    assert summary.deaths == 5  # once in doubt, twice in its unit, twice alone
    assert {outcomes[f"r{index}"].attempts for index in (*range(8), *range(16, 24))} == {1}
    assert times(pool, "r0") == [8, 8]
    assert times(pool, "r8") == [8, 8, 8, 1, 1]


def test_two_single_rows_are_not_charged_for_a_death_that_either_may_have_caused():
    world = World(slots=1, store_s=60.0, poison=frozenset({"r1"}))
    outcomes, summary, _ = simulate(world, renders(4), batch=1)
    assert codes(outcomes) == {"r1": Code.WORKER_DIED}
    assert outcomes["r0"].attempts == 1
    assert outcomes["r1"].attempts == POLICY.strikes
    assert summary.deaths == 1 + POLICY.strikes


def test_a_unit_that_waited_behind_a_lost_one_is_neither_blamed_nor_doubted():
    world = World(slots=1, store_s=0.5, poison=frozenset({"r0"}))
    outcomes, _, pool = simulate(world, renders(24))
    assert codes(outcomes) == {"r0": Code.WORKER_DIED}
    _, _, plain = simulate(world, renders(24), make=Pool)
    assert [keys for _, _, keys in pool.trace] == [keys for _, _, keys in plain.trace]
    assert {outcomes[f"r{index}"].attempts for index in range(8, 24)} == {1}


class Frozen(OverlappingPool):
    """Its first worker stops as a whole while it writes one unit and computes the next one."""

    def _stored(self, call):
        return float("inf") if call[0] == 1 else super()._stored(call)


def test_a_process_that_stops_makes_the_unit_behind_the_late_one_run_alone():
    clock, outcomes = FakeClock(), {}
    pool = Frozen(World(slots=1), clock)
    summary = run(
        Source([], renders(24)),
        pool,
        lambda rows: outcomes.update({row.key: row for row in rows}),
        policy=POLICY,
        clock=clock,
        stop=lambda _: None,
    )
    assert codes(outcomes) == {}
    assert summary.deaths == 1
    assert {outcomes[f"r{index}"].attempts for index in range(8)} == {2}
    assert {outcomes[f"r{index}"].attempts for index in range(8, 24)} == {1}
    # Nothing is given to the slot while it has the doubted unit: the third one comes later than the second one.
    again = [at for at, _, keys in pool.trace if "r8" in keys][1]
    assert again not in [at for at, _, keys in pool.trace if "r16" in keys]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    slots=st.integers(1, 3),
    depth=st.integers(1, 4),
    store_s=st.sampled_from([0.1, 3.0, 60.0]),
    poison=st.sets(st.integers(0, 39), max_size=2),
    outage=st.sampled_from([0.0, 0.1]),
    batch=st.sampled_from([1, 4, 8]),
)
def test_only_the_guilty_fail_whatever_overlaps(seed, slots, depth, store_s, poison, outage, batch):
    bad = frozenset(f"r{index}" for index in poison)
    world = World(slots=slots, seed=seed, store_s=store_s, poison=bad, outage=outage)
    policy = POLICY.model_copy(update={"render_depth": depth, "slot_deaths": 8})
    tasks = [*renders(40), *(render(f"d{index}", [f"c{index}"]) for index in range(4))]
    concepts = [concept(f"c{index}") for index in range(4)]
    outcomes, _, pool = simulate(world, tasks, concepts=concepts, policy=policy, batch=batch)
    assert len(outcomes) == 48
    assert codes(outcomes) == dict.fromkeys(bad, Code.WORKER_DIED)
    assert all(outcomes[key].attempts >= policy.strikes for key in bad)
    assert pool.most <= depth


def test_the_simulated_pool_completes_in_order():
    pool = OverlappingPool(World(slots=1, store_s=60.0), FakeClock())
    source, found = Source([], renders(16)), []
    while not pool.slots():
        pool.wait(10.0)
    numbers = [pool.submit(0, source.next()) for _ in range(2)]
    while len(found) < 2:
        found += pool.wait(1e3)
    assert [completion.call for completion in found] == numbers
    assert found[0] == Completion(numbers[0], 0, tuple(ok(task) for task in renders(8)))
    assert not isinstance(found[1], Failure)
