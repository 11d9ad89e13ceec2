"""The scheduler on a simulated pool: thousands of schedules with deaths, hangs, outages and bad rows."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract.errors import Code, Status
from pipeline.contract.units import RenderShape
from pipeline.engine.executor import Failure
from pipeline.engine.figures import EngineError
from pipeline.engine.policy import Policy
from pipeline.engine.scheduler import run
from tests.support.fake_clock import FakeClock
from tests.support.simulated_pool import Pool, Source, World, concept, ok, render

POLICY = Policy(poll_s=1e6)  # the simulation has no signals to notice, except where a test sets its own


@dataclass
class Result:
    outcomes: dict
    summary: object
    pool: Pool
    source: Source
    clock: FakeClock
    error: EngineError | None = None


def simulate(world, concepts=(), renders=(), *, policy=POLICY, stop=lambda clock: False, **source):
    clock = FakeClock()
    pool = Pool(world, clock)
    work = Source(list(concepts), list(renders), **source)
    outcomes = {}

    def sink(rows):
        for row in rows:
            assert row.key not in outcomes
            outcomes[row.key] = row

    try:
        summary, error = (
            run(work, pool, sink, policy=policy, clock=clock, stop=lambda _: "asked" if stop(clock) else None),
            None,
        )
    except EngineError as caught:
        summary, error = caught.summary, caught
    assert summary.completed + summary.failed == len(outcomes)
    assert summary.completed == sum(row.status is Status.OK for row in outcomes.values())
    assert pool.most <= policy.render_depth
    return Result(outcomes, summary, pool, work, clock, error)


def renders(count, prefix="r", **fields):
    return [render(f"{prefix}{index}", **fields) for index in range(count)]


def codes(result):
    return {key: row.error_code for key, row in result.outcomes.items() if row.status is not Status.OK}


def test_everything_runs_once_when_nothing_fails():
    concepts = [concept(f"c{index}") for index in range(6)]
    tasks = [render(f"r{index}", [f"c{index % 6}"]) for index in range(40)]
    result = simulate(World(), concepts, tasks)
    assert len(result.outcomes) == 46
    assert {row.attempts for row in result.outcomes.values()} == {1}
    assert result.summary.retries == result.summary.deaths == result.summary.wasted_s == 0
    assert sum(result.summary.busy_s.values()) > 0
    assert Counter(key for _, _, keys in result.pool.trace for key in keys).most_common(1)[0][1] == 1


def test_a_render_waits_behind_a_render_but_never_behind_a_training():
    result = simulate(World(slots=1), [concept("c0")], renders(32))
    depths = Counter(at for at, _, _ in result.pool.trace)
    assert depths[result.pool.trace[0][0]] == 1  # the training, alone
    assert result.pool.most == 2


def test_only_the_poison_row_is_blamed():
    result = simulate(World(slots=1, poison=frozenset({"r5"})), (), renders(24))
    assert result.error is None
    assert codes(result) == {"r5": Code.WORKER_DIED}
    assert result.outcomes["r5"].attempts == 4  # twice in its unit, twice alone
    assert "killed by signal 11" in result.outcomes["r5"].error_message
    assert result.outcomes["r20"].attempts == 1
    assert result.summary.deaths == 4


def test_a_unit_queued_behind_a_poison_row_gets_no_strike():
    result = simulate(World(slots=1, poison=frozenset({"r0"})), (), renders(16))
    assert {result.outcomes[f"r{index}"].attempts for index in range(8, 16)} == {1}


def test_hanging_row_times_out():
    result = simulate(World(slots=2, hangs=frozenset({"r3"})), (), renders(16))
    assert codes(result) == {"r3": Code.TIMED_OUT}
    assert (
        f"{POLICY.render_deadline_s:g} s, the limit set by policy.render_deadline_s"
        in result.outcomes["r3"].error_message
    )
    assert result.outcomes["r3"].attempts == 3  # once in its unit, twice alone
    assert result.summary.wasted_s == pytest.approx(3 * POLICY.render_deadline_s)


def test_once_units_have_been_timed_a_hanging_row_costs_minutes():
    policy = replace_policy(hang_floor_s=120.0)
    result = simulate(World(slots=2, hangs=frozenset({"r350"})), (), renders(400), policy=policy)
    assert codes(result) == {"r350": Code.TIMED_OUT}
    assert "after 120 s, the limit set by policy.hang_floor_s" in result.outcomes["r350"].error_message
    assert result.summary.wasted_s == pytest.approx(3 * 120, abs=1)
    # The first call of a worker may load and compile: it has ten minutes more, however much is known.
    hanging = frozenset({"r350", "r351"})
    late = simulate(World(slots=1, hangs=hanging), (), renders(400), policy=policy)
    assert codes(late) == dict.fromkeys(sorted(hanging), Code.TIMED_OUT)
    # Both hang in their batch and alone with a warm worker, and finally with the worker that was restarted.
    assert late.summary.wasted_s == pytest.approx(120 * 3 + 2 * (120 + POLICY.cold_s), abs=1)


def test_deadline_of_a_queued_call_starts_when_it_runs():
    slow = World(slots=1)
    policy = replace_policy(render_deadline_s=10.5)  # a call lasts up to 10 s, so two of them last longer
    result = simulate(slow, (), renders(80), policy=policy)
    assert result.summary.deaths == 0


def test_out_of_memory_halves_and_is_remembered_per_size():
    small = RenderShape(width=64, height=64, steps=20, guidance=6.0, scheduler="ddim")
    world = World(slots=1, capacity=3)
    result = simulate(world, (), renders(32), batch=8)
    sizes = [len(keys) for _, _, keys in result.pool.trace]
    assert codes(result) == {}
    assert max(sizes[4:]) <= 2  # 8, (8 queued), 4, then never above what fits
    assert result.summary.retries <= 4
    other = simulate(World(slots=1, huge=frozenset({"r0"})), (), [*renders(8), *renders(16, "s", shape=small)], batch=8)
    assert codes(other) == {"r0": Code.OUT_OF_MEMORY}
    assert max(len(keys) for _, _, keys in other.pool.trace if keys[0].startswith("s")) == 8


def test_bug_fails_its_row_with_the_message():
    result = simulate(World(bugs=frozenset({"r9"})), (), renders(24))
    assert codes(result) == {"r9": Code.INTERNAL}
    assert "ValueError: a bug" in result.outcomes["r9"].error_message
    assert result.outcomes["r9"].attempts == 2


@pytest.mark.parametrize("answer", ["short", "double", "foreign"])
def test_worker_that_answers_for_other_tasks_loses_none(answer):
    class Sloppy(Pool):
        def _fate(self, slot, unit):
            lasts, rows = super()._fate(slot, unit)
            if "r1" in {task.key for task in unit.tasks}:
                rows = {"short": rows[:-1], "double": rows + rows[:1], "foreign": (*rows[:-1], ok(render("zz")))}[
                    answer
                ]
            return lasts, rows

    clock = FakeClock()
    outcomes = []
    run(
        Source([], renders(8)),
        Sloppy(World(), clock),
        outcomes.extend,
        policy=POLICY,
        clock=clock,
        stop=lambda _: None,
    )
    assert sorted(row.key for row in outcomes) == sorted(f"r{index}" for index in range(8))
    assert [row.key for row in outcomes if row.error_code is Code.INTERNAL] == ["r1"]


def test_failed_concept_fails_its_renders_through_the_sink():
    result = simulate(
        World(poison=frozenset({"c0"})), [concept("c0"), concept("c1")], [render("r0", ["c0"]), render("r1", ["c1"])]
    )
    assert codes(result) == {"c0": Code.WORKER_DIED, "r0": Code.CONCEPT_FAILED}


def test_outages_are_never_charged():
    result = simulate(World(outage=0.3, seed=4), [concept(f"c{i}") for i in range(8)], renders(200))
    assert codes(result) == {}
    assert {row.attempts for row in result.outcomes.values()} == {1}
    assert result.summary.outages > 5
    assert result.summary.deaths == 0


def test_a_burst_of_outages_is_survived_with_backoff():
    result = simulate(World(storm=(20.0, 320.0)), (), renders(400))
    assert codes(result) == {}
    assert result.summary.outages < 45  # three slots, a few tries each: it backs off


def test_endless_outage_stops_with_the_cause():
    result = simulate(World(storm=(20.0, 1e9)), (), renders(400))
    assert result.error is not None
    assert "outages in a row" in str(result.error)
    assert "node is" in str(result.error)
    assert "same command again" in str(result.error)
    assert result.source.open  # unfinished, not failed
    assert codes(result) == {}


def test_a_bad_slot_is_quarantined_and_no_row_is_blamed():
    result = simulate(World(slots=3, bad_slots=frozenset({1})), (), renders(200))
    assert result.error is None
    assert codes(result) == {}
    assert result.summary.quarantined == (1,)
    assert result.summary.deaths == POLICY.slot_deaths


def test_a_run_whose_slots_are_all_bad_stops_and_blames_no_row():
    result = simulate(World(slots=2, bad_slots=frozenset({0, 1})), (), renders(200))
    assert result.error is not None
    assert "2 of 2 were given up" in str(result.error)
    assert "signal 11" in str(result.error)
    assert result.outcomes == {}


def test_worker_that_cannot_start_stops_the_run_at_once():
    world = World(unstartable=frozenset({0}), start_failure=Failure("raised", "no model at file:///nowhere"))
    result = simulate(world, (), renders(8))
    assert "the worker cannot start: no model at file:///nowhere" in str(result.error)
    assert result.outcomes == {}


def test_a_slot_that_cannot_start_is_given_up_and_the_others_continue():
    result = simulate(World(unstartable=frozenset({2})), (), renders(800))
    assert codes(result) == {}
    assert result.summary.quarantined == (2,)
    assert result.summary.deaths == POLICY.slot_deaths


def test_the_last_rows_do_not_hold_the_whole_cluster():
    hanging = frozenset({"r395"})
    result = simulate(World(slots=40, hangs=hanging), (), renders(400), policy=replace_policy(hang_calls=5))
    assert codes(result) == {"r395": Code.TIMED_OUT}
    assert result.summary.given_back in (38, 39)  # one row is left, and may bring two workers down
    everything = simulate(World(slots=40), (), renders(400))
    assert everything.summary.given_back < 40
    assert codes(everything) == {}


def test_slots_wait_while_a_training_may_still_unlock_renders():
    tasks = [concept("slow"), concept("quick")]
    waiting = renders(60, concepts=["slow"])
    result = simulate(World(slots=8), tasks, waiting, group=1, batch=4)
    assert codes(result) == {}
    assert len({slot for at, slot, keys in result.pool.trace if keys[0].startswith("r")}) == 8


def test_slots_that_were_given_back_restart_when_the_others_are_lost():
    class Flooded(Pool):
        """The machines under the last row are taken away, and nothing starts there any more."""

        def _fate(self, slot, unit):
            if unit.tasks[0].key == "r39" and len(self.world.unstartable) < 2:
                self.world.unstartable |= {slot}
                return 50.0, Failure("died", "the machine is gone", preempted=True)
            return super()._fate(slot, unit)

    clock, outcomes = FakeClock(), []
    pool = Flooded(World(slots=6), clock)
    summary = run(
        Source([], renders(40), batch=1), pool, outcomes.extend, policy=POLICY, clock=clock, stop=lambda _: None
    )
    assert [row.status for row in outcomes] == [Status.OK] * 40
    assert len(pool.world.unstartable) == len(summary.quarantined) == 2
    assert summary.given_back >= 4


def test_slot_that_never_becomes_ready_is_a_failure_and_not_a_hang():
    world = World(slots=1)
    clock = FakeClock()
    pool = Pool(world, clock)
    pool.ready_at = {0: float("inf")}
    pool.replace = lambda slot: pool.ready_at.update({slot: float("inf")})
    with pytest.raises(EngineError, match="not ready after 1800 s"):
        run(Source([], renders(4)), pool, lambda rows: None, policy=POLICY, clock=clock, stop=lambda _: None)


def test_source_with_neither_work_nor_an_end_is_an_error():
    class Stuck(Source):
        def unfinished(self):
            return 1

    clock = FakeClock()
    with pytest.raises(EngineError, match="bug in the work queue"):
        run(Stuck([], []), Pool(World(), clock), lambda rows: None, policy=POLICY, clock=clock, stop=lambda _: None)


def test_stop_lets_running_units_end_and_leaves_the_rest():
    policy = replace_policy(poll_s=0.5, drain_s=30.0)
    result = simulate(World(slots=2), (), renders(200), policy=policy, stop=lambda clock: clock.now > 12)
    assert result.summary.stopped == "asked"
    assert result.error is None
    assert 0 < len(result.outcomes) < 200
    assert codes(result) == {}
    assert max(at for at, _, _ in result.pool.trace) <= 12.5
    assert not any(result.pool.calls.values())


def test_stop_is_told_what_has_been_spent():
    clock, spent = FakeClock(), []

    def stop(now):
        spent.append(now.spent_s)
        return "enough" if now.spent_s >= 100 else None

    policy = replace_policy(poll_s=0.5, drain_s=0.0)
    summary = run(Source([], renders(400)), Pool(World(), clock), lambda _: None, policy=policy, clock=clock, stop=stop)
    assert summary.stopped == "enough"
    assert spent == sorted(spent)
    assert 100 <= sum(summary.busy_s.values()) <= 100 + 3 * 0.5  # three slots, half a second between looks
    assert spent[-1] == pytest.approx(sum(summary.busy_s.values()))


def test_a_run_that_finishes_while_draining_was_not_stopped():
    policy = replace_policy(poll_s=0.5, drain_s=100.0)
    result = simulate(World(slots=2), (), renders(8), policy=policy, stop=lambda clock: clock.now > 1)
    assert len(result.outcomes) == 8
    assert result.summary.stopped == ""


def test_draining_ends_after_drain_s():
    policy = replace_policy(poll_s=0.5, drain_s=3.0)
    result = simulate(World(slots=1), [concept("c")], (), policy=policy, stop=lambda clock: clock.now > 1)
    assert result.summary.stopped == "asked"
    assert result.clock.now <= 6
    assert result.source.open == {"c"}


def test_a_slot_lost_while_draining_is_not_restarted_and_causes_no_busy_waiting():
    policy = replace_policy(poll_s=2.0, drain_s=400.0)
    world = World(slots=2, bad_slots=frozenset({1}))
    result = simulate(
        world, [concept("c0"), concept("c1")], (), policy=policy, group=1, stop=lambda clock: clock.now > 6
    )
    assert result.summary.stopped == "asked"
    assert result.summary.deaths == 1
    assert result.pool.waits < 250
    assert set(result.outcomes) == {"c0"}


def test_error_in_the_sink_ends_the_run():
    def sink(rows):
        raise RuntimeError("the lease is lost")

    clock = FakeClock()
    with pytest.raises(RuntimeError, match="the lease is lost"):
        run(Source([], renders(4)), Pool(World(), clock), sink, policy=POLICY, clock=clock, stop=lambda _: None)


def test_backlog_stays_bounded():
    class Counting(Source):
        held = most = 0

        def next(self):
            unit = super().next()
            self.held += len(unit.tasks) if unit else 0
            self.most = max(self.most, self.held)
            return unit

        def record(self, outcomes):
            self.held -= len(outcomes)
            return super().record(outcomes)

    tasks = renders(3000)
    source = Counting([], tasks)
    clock = FakeClock()
    world = World(slots=4, outage=0.05, poison=frozenset({"r7", "r900"}), hangs=frozenset({"r400"}))
    run(source, Pool(world, clock), lambda rows: None, policy=POLICY, clock=clock, stop=lambda _: None)
    assert source.most <= 4 * 2 * 8 * 2  # twice what is in flight


def replace_policy(**fields):
    return Policy(**{**POLICY.model_dump(), **fields})


keys = st.frozensets(st.integers(0, 59), max_size=3)


@settings(max_examples=400)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 5),
    bad=keys,
    hangs=keys,
    bugs=keys,
    huge=keys,
    capacity=st.integers(1, 10),
    outage=st.sampled_from([0.0, 0.0, 0.1, 0.4]),
    storm=st.floats(0, 300),
    batch=st.integers(1, 12),
)
def test_any_schedule_ends_with_one_outcome_per_task_and_blames_only_the_guilty(
    seed, slots, bad, hangs, bugs, huge, capacity, outage, storm, batch
):
    def named(numbers):
        return frozenset(f"r{number}" if number < 45 else f"c{number - 45}" for number in numbers)

    concepts = [concept(f"c{index}") for index in range(15)]
    # Sound work to tell a bad row from a bad slot by; a plan of nothing but bad rows is ambiguous.
    tasks = [*(render(f"r{index}", [f"c{index % 15}"]) for index in range(45)), *renders(100, "z")]
    world = World(
        slots, seed, named(bad), named(hangs), named(bugs), named(huge), capacity, outage=outage, storm=(50, 50 + storm)
    )
    results = [simulate(world, concepts, tasks, batch=batch) for _ in range(2)]
    first, second = results
    assert first.pool.trace == second.pool.trace
    assert first.summary == second.summary
    guilty = world.poison | world.hangs | world.bugs | world.huge
    failures = codes(first)
    for key, code in failures.items():
        if code is Code.CONCEPT_FAILED:
            assert f"c{int(key[1:]) % 15}" in guilty
        else:
            assert key in guilty
    if first.error is None:
        assert len(first.outcomes) == 160
        orphans = {key for key, code in failures.items() if code is Code.CONCEPT_FAILED}
        assert {key for key in failures if key not in orphans} == guilty - orphans
    else:
        assert len(world.poison | world.hangs) >= 3  # three bad rows in a row, the canaries among them
        assert "given up" in str(first.error)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), slots=st.integers(2, 6), bad=st.integers(0, 5), stop=st.floats(0, 400), poison=keys)
def test_a_bad_slot_never_costs_a_row_and_a_stopped_run_can_be_resumed(seed, slots, bad, stop, poison):
    poison = frozenset(f"r{number}" for number in poison)
    world = World(slots, seed, poison, bad_slots=frozenset({bad % slots}), outage=0.05)
    tasks = renders(60)
    policy = replace_policy(poll_s=5.0)
    first = simulate(world, (), tasks, policy=policy, stop=lambda clock: clock.now > stop)
    left = [task for task in tasks if task.key not in first.outcomes]
    assert {task.key for task in left} == first.source.open
    sound = replace(world, bad_slots=frozenset(), poison=frozenset())
    second = simulate(sound, (), left, policy=policy)
    assert len(first.outcomes) + len(second.outcomes) == 60
    assert set(codes(first)) <= poison
    assert codes(second) == {}
