"""Machines of several kinds in one run, and machines that announce that they leave."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract.errors import Code
from pipeline.contract.units import RenderUnit
from pipeline.engine.backlog import Backlog, WorkItem
from pipeline.engine.choice import Choice
from pipeline.engine.slots import SlotTable
from tests.pipeline.engine.test_scheduler import POLICY, codes, renders, replace_policy, simulate
from tests.support.fake_clock import FakeClock
from tests.support.simulated_pool import Pool, Source, World, concept, render

MIXED = World(slots=4, small_slots=frozenset({1, 2}), small_capacity=2)


def sizes(result, slots):
    return [len(keys) for _, slot, keys in result.pool.trace if slot in slots]


def test_a_small_machine_gets_smaller_units_and_a_large_one_keeps_its_own():
    result = simulate(MIXED, (), renders(200), batch=8)
    assert codes(result) == {}
    assert set(sizes(result, {0, 3})) <= {8, 6, 4, 2}
    assert max(sizes(result, {0, 3})[4:]) == 8
    assert sizes(result, {1, 2}).count(8) <= 2 * 2  # what the two held when the first of them ran out of memory
    assert max(sizes(result, {1, 2})[-5:]) == 2


def test_rows_that_fit_on_large_machines_alone_do_not_fail():
    big, shape = renders(60, "big"), replace(renders(1)[0].shape, width=64)
    world = replace(MIXED, too_big=frozenset(task.key for task in big))
    result = simulate(world, (), [*big, *renders(100, shape=shape)], batch=4)
    assert codes(result) == {}
    # A small machine finds out at each size, then three times with a single row, and then leaves that size alone.
    tried = [keys for _, slot, keys in result.pool.trace if slot in world.small_slots and keys[0].startswith("big")]
    assert len(tried) <= 2 * 2 * (2 + 3)  # two slots, two units each
    assert sum(len(keys) for _, slot, keys in result.pool.trace if slot in world.small_slots) > 20


def test_a_row_that_fits_nowhere_fails_after_each_kind_of_machine_has_tried_it():
    world = replace(MIXED, huge=frozenset({"r3"}))
    result = simulate(world, (), renders(40), batch=4)
    assert codes(result) == {"r3": Code.OUT_OF_MEMORY}
    assert {slot in world.small_slots for _, slot, keys in result.pool.trace if keys == ("r3",)} == {True, False}


def test_rows_for_machines_that_are_gone_fail_and_the_run_ends():
    world = World(
        slots=2, small_slots=frozenset({0}), small_capacity=4, too_big=frozenset({"r0"}), bad_slots=frozenset({1})
    )
    result = simulate(world, (), renders(200), batch=4)
    assert result.summary.quarantined == (1,)
    assert codes(result) == {"r0": Code.OUT_OF_MEMORY}


def test_a_large_machine_that_was_given_back_returns_for_the_row_that_needs_it():
    # The last row is alone for long enough that idle slots are given back before it turns out to be too big.
    world = World(slots=6, small_slots=frozenset({0, 1}), too_big=frozenset({"c0"}))
    result = simulate(world, [concept("c0")], ())
    assert codes(result) == {}
    assert result.summary.given_back > 0


def test_a_slot_that_leaves_ends_its_units_gets_no_more_and_starts_elsewhere():
    result = simulate(World(slots=2, moves=((20.0, 0),)), (), renders(200), batch=4)
    assert codes(result) == {}
    assert {row.attempts for row in result.outcomes.values()} == {1}
    assert (result.summary.deaths, result.summary.outages, result.summary.wasted_s) == (0, 0, 0)
    given_at = [at for at, slot, _ in result.pool.trace if slot == 0]
    gap, after = max((later - sooner, sooner) for sooner, later in pairwise(given_at))
    assert gap >= 5.0  # the start
    assert after <= 20.0


def test_a_run_whose_only_slot_leaves_waits_for_it():
    result = simulate(World(slots=1, moves=((7.0, 0), (60.0, 0))), (), renders(40), batch=4)
    assert codes(result) == {}
    assert len(result.outcomes) == 40


def test_a_slot_that_hangs_while_it_leaves_is_killed():
    world = World(slots=2, hangs=frozenset({"r5"}), moves=((5.5, 0), (5.5, 1)))
    result = simulate(world, (), renders(40), batch=4)
    assert codes(result) == {"r5": Code.TIMED_OUT}


def test_a_suspect_row_that_fits_on_one_machine_alone_is_judged_there_even_if_that_slot_is_on_probation():
    clock = FakeClock()
    pool = Pool(World(slots=2, small_slots=frozenset({0})), clock)
    table, backlog = SlotTable(pool, POLICY), Backlog(Source([], []), POLICY, clock)
    while len(table.refresh(clock.now)) < 2:
        pool.wait(10)
    table.slot(1).deaths = POLICY.probation_deaths
    suspect = RenderUnit("u", (render("r0"),))
    backlog.put_back([WorkItem(suspect, strikes=(1,), unfit=frozenset({"small"}))])
    Choice(backlog, table, pool, POLICY).fill(clock.now)
    assert [slot for slot, calls in pool.calls.items() if calls] == [1]


@pytest.mark.hypothesis
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 6),
    small=st.frozensets(st.integers(0, 5)),
    small_capacity=st.integers(1, 6),
    too_big=st.frozensets(st.integers(0, 59), max_size=12),
    bad=st.none() | st.integers(0, 5),
    outage=st.sampled_from([0.0, 0.05]),
    moves=st.lists(st.tuples(st.floats(0, 500), st.integers(0, 5)), max_size=6),
    poison=st.frozensets(st.integers(0, 59), max_size=2),
    batch=st.integers(1, 10),
)
def test_any_mix_of_machines_gives_each_row_one_outcome_and_fails_only_what_fits_nowhere(
    seed, slots, small, small_capacity, too_big, bad, outage, moves, poison, batch
):
    world = World(
        slots,
        seed,
        poison=frozenset(f"r{number}" for number in poison),
        small_slots=small,
        small_capacity=small_capacity,
        too_big=frozenset(f"r{number}" for number in too_big),
        bad_slots=frozenset({bad} if bad is not None else ()),
        outage=outage,
        moves=tuple(move for move in moves if move[1] < slots),
    )
    tasks = [*(render(f"r{index}", [f"c{index % 6}"]) for index in range(60)), *renders(60, "z")]
    concepts = [concept(f"c{index}") for index in range(6)]
    first, second = (simulate(world, concepts, tasks, policy=replace_policy(poll_s=5.0), batch=batch) for _ in range(2))
    assert first.pool.trace == second.pool.trace
    if first.error is not None:
        assert "given up" in str(first.error)
        return
    assert len(first.outcomes) == 126
    large = set(range(slots)) - small - world.bad_slots
    guilty = world.poison | (frozenset() if large else world.too_big)
    allowed = guilty | (world.too_big if large & set(first.summary.quarantined) else frozenset())
    assert world.poison <= set(codes(first)) <= allowed | world.poison
    if not large and small & set(range(slots)) - world.bad_slots:
        assert world.too_big <= set(codes(first))
