"""The slot table: each state, how a slot leaves it, and what the executor is told."""

import pytest

from pipeline.contract.units import RenderUnit
from pipeline.engine.backlog import WorkItem
from pipeline.engine.policy import Policy
from pipeline.engine.slots import SlotState, SlotTable
from tests.support.fake_clock import FakeClock
from tests.support.simulated_pool import Pool, World, render

POLICY = Policy(setup_deadline_s=100, backoff_first_s=10, backoff_max_s=15)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def pool(clock):
    return Pool(World(slots=3), clock)


@pytest.fixture
def table(pool):
    return SlotTable(pool, POLICY)


def states(table):
    return {slot.number: slot.state for slot in table}


def start(table, pool, clock):
    """Wait until all slots are ready; returns them."""
    while len(ready := table.refresh(clock.now)) < 3:
        pool.wait(10)
    return dict(ready)


def give(table, slot, number=1, now=0.0):
    table.give(slot, number, WorkItem(RenderUnit(f"u{number}", (render(f"r{number}"),))), now)


def restart_all(table, now):
    table.restart(list(table), now)


def test_a_slot_starts_until_its_deadline_and_becomes_ready(table, pool, clock):
    assert table.refresh(clock.now) == {}
    assert states(table) == dict.fromkeys(range(3), SlotState.STARTING)
    assert {slot.until for slot in table} == {100}
    assert table.is_changing()
    assert not table.was_ready
    clock.now = 3.0
    table.refresh(clock.now)
    assert {slot.until for slot in table} == {100}  # the deadline does not move
    start(table, pool, clock)
    assert states(table) == dict.fromkeys(range(3), SlotState.READY)
    assert table.was_ready
    assert not table.is_changing()


def test_a_lost_slot_backs_off_longer_each_time_and_restarts(table, pool, clock):
    slot = start(table, pool, clock)[0]
    slot.warm = True
    give(table, slot, 1)
    give(table, slot, 2)
    assert [item.unit.unit_id for item in table.back_off(slot, clock.now)] == ["u1", "u2"]
    assert (slot.state, slot.losses, slot.warm, len(slot.calls)) == (SlotState.BACKING_OFF, 1, False, 0)
    assert clock.now + 5 <= slot.until < clock.now + 10
    assert pool.slots() == (1, 2)
    restart_all(table, clock.now)
    assert slot.state is SlotState.BACKING_OFF
    clock.now = slot.until
    restart_all(table, clock.now)
    assert (slot.state, slot.until) == (SlotState.STARTING, clock.now + 100)
    assert pool.starting() == (0,)
    start(table, pool, clock)
    assert slot.state is SlotState.READY
    table.back_off(slot, clock.now)
    assert clock.now + 7.5 <= slot.until < clock.now + 15


def test_idle_slots_that_no_task_needs_are_given_back_cold_ones_first(table, pool, clock):
    ready = start(table, pool, clock)
    ready[1].warm = True
    give(table, ready[2])
    assert table.give_back(tasks=2) == 0  # two tasks may kill four slots
    assert table.give_back(tasks=1) == 1
    assert states(table) == {0: SlotState.GIVEN_BACK, 1: SlotState.READY, 2: SlotState.READY}
    assert pool.slots() == (1, 2)
    assert table.recall(clock.now)
    restart_all(table, clock.now)
    assert table.slot(0).state is SlotState.STARTING
    assert not table.recall(clock.now)


def test_trust_ends_with_deaths_in_a_row_and_with_quarantine(table, pool, clock):
    slot = start(table, pool, clock)[0]
    assert table.is_trusted(slot)
    slot.deaths = POLICY.probation_deaths
    assert not table.is_trusted(slot)
    slot.deaths, slot.state = 0, SlotState.QUARANTINED
    assert not table.is_trusted(slot)


def test_time_is_counted_for_the_call_that_runs(table, pool, clock):
    slot = start(table, pool, clock)[0]
    begin = clock.now
    give(table, slot, 1, begin)
    give(table, slot, 2, begin)
    clock.now += 4.0
    assert table.spent_s(clock.now) == 4.0
    item, seconds = table.end_call(slot, clock.now)
    assert (item.unit.unit_id, seconds) == ("u1", 4.0)
    clock.now += 3.0
    assert (slot.calls[0].since, table.spent_s(clock.now)) == (begin + 4.0, 7.0)
    assert table.is_running()
    table.end_call(slot, clock.now)
    assert (slot.busy_s, table.is_running()) == (7.0, False)
