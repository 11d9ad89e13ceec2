"""What the scheduler keeps up to date from event to event equals what a look at every slot finds."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract.units import RenderUnit
from pipeline.engine.agenda import Agenda
from pipeline.engine.backlog import WorkItem
from pipeline.engine.policy import Policy
from pipeline.engine.slots import SlotState, SlotTable
from pipeline.engine.watchdog import Watchdog
from tests.support.fake_clock import FakeClock
from tests.support.simulated_pool import Pool, World, render

POLICY = Policy(hang_calls=2, hang_floor_s=5, cold_s=20, render_deadline_s=200, setup_deadline_s=50, backoff_first_s=4)


class Engine:
    """A slot table, its agenda, and random things that happen to them."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.pool = Pool(World(slots=5), self.clock)
        self.watchdog = Watchdog(POLICY)
        self.table = SlotTable(self.pool, POLICY)
        self.agenda = Agenda(self.table, self.watchdog)
        self.numbers = 0

    def step(self):
        """One thing that the scheduler may do."""
        slot = self.random.choice(list(self.table) or [None])
        act = self.random.choice(
            ("time", "ready", "give", "give", "end", "end", "lose", "quarantine", "back", "recall")
        )
        if act == "time":
            self.clock.now += self.random.choice((0.5, 3.0, 30.0))
        elif act == "ready":
            if self.pool.ready_at:
                self.pool.wait(100.0)
            self.table.refresh(self.clock.now)
        elif slot is None:
            return
        elif act == "give" and slot.state is SlotState.READY and len(slot.calls) < 2:
            self.numbers += 1
            tasks = tuple(render(f"r{self.numbers}-{index}") for index in range(self.random.randint(1, 4)))
            self.table.give(slot, self.numbers, WorkItem(RenderUnit(f"u{self.numbers}", tasks)), self.clock.now)
        elif act == "end" and slot.calls:
            self.watchdog.learn(slot.calls[0].item.unit, self.clock.now - slot.calls[0].since)
            self.table.end_call(slot, self.clock.now)
            slot.warm = True
        elif act == "lose" and slot.state in (SlotState.READY, SlotState.STARTING):
            self.table.back_off(slot, self.clock.now)
        elif act == "quarantine" and slot.state is SlotState.BACKING_OFF and self.random.random() < 0.2:
            self.table.quarantine(slot)
        elif act == "back":
            self.table.refresh(self.clock.now)
            self.table.give_back(tasks=self.random.randint(0, 2))
        elif act == "recall" and self.random.random() < 0.2:
            self.table.recall(self.clock.now)

    def naive(self):
        """The moment of each slot that has one."""
        found = ((slot, self.agenda.moment(slot)) for slot in self.table)
        return [(moment, slot) for slot, moment in found if moment is not None]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_no_moment_is_noted_too_late_and_all_that_are_due_are_found(seed):
    engine = Engine(seed)
    for _ in range(120):
        engine.step()
        moments, now = engine.naive(), engine.clock.now
        assert engine.agenda.first(draining=False) <= min((moment for moment, _ in moments), default=float("inf"))
        due = [slot for moment, slot in moments if moment <= now]
        assert engine.agenda.due(now) == sorted(due, key=lambda slot: slot.number)
        assert engine.agenda.due(now) == sorted(due, key=lambda slot: slot.number), "nobody acted on them"
        assert due or engine.agenda.first(draining=False) > now, "the run would wake up again and again"
        engine.table.restart(due, now)


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_totals_and_candidates_are_those_of_a_look_at_every_slot(seed):
    engine = Engine(seed)
    for _ in range(120):
        engine.step()
        slots, now = list(engine.table), engine.clock.now
        assert engine.table.is_running() == any(slot.calls for slot in slots)
        changing = (SlotState.STARTING, SlotState.BACKING_OFF)
        assert engine.table.is_changing() == any(slot.state in changing for slot in slots)
        running = sum(now - slot.calls[0].since for slot in slots if slot.calls)
        assert engine.table.spent_s(now) == pytest.approx(running + sum(slot.busy_s for slot in slots))
        idle = {slot.number for slot in slots if slot.state is SlotState.READY and not slot.calls}
        assert engine.table.candidates.first(idle.__contains__) == min(idle, default=None)


def test_a_slot_that_waits_to_start_again_is_no_reason_to_wake_a_run_that_drains():
    engine = Engine(0)
    while len(engine.table.refresh(engine.clock.now)) < 5:
        engine.pool.wait(10)
    first, second = list(engine.table)[:2]
    engine.table.back_off(first, engine.clock.now)
    tasks = (render("r"),)
    engine.table.give(second, 1, WorkItem(RenderUnit("u", tasks)), engine.clock.now)
    assert engine.agenda.first(draining=False) == first.until
    assert engine.agenda.first(draining=True) == engine.clock.now + POLICY.render_deadline_s


def test_a_limit_that_becomes_shorter_is_noted_for_the_units_that_run_already():
    engine = Engine(0)
    while len(engine.table.refresh(engine.clock.now)) < 5:
        engine.pool.wait(10)
    first, second, *_ = engine.table
    first.warm = second.warm = True
    began = engine.clock.now
    engine.table.give(first, 1, WorkItem(RenderUnit("u1", (render("r1"),))), began)
    assert engine.agenda.first(draining=False) == began + POLICY.render_deadline_s
    for number in range(POLICY.hang_calls):
        unit = RenderUnit(f"v{number}", (render(f"s{number}"),))
        engine.table.give(second, 2 + number, WorkItem(unit), engine.clock.now)
        engine.clock.now += 1.0
        engine.watchdog.learn(unit, 1.0)
        engine.table.end_call(second, engine.clock.now)
    assert engine.agenda.first(draining=False) == began + POLICY.hang_floor_s
