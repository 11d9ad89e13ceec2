"""The scheduler against a simulated pool: thousands of schedules with deaths, hangs, outages and bad rows."""

import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.config import TrainingConfig
from pipeline.errors import Code, Origin, Status
from pipeline.executor import Completion, Failure
from pipeline.policy import Policy
from pipeline.scheduler import EngineError, run
from pipeline.units import ConceptTask, Outcome, RenderShape, RenderTask, RenderUnit, TrainUnit

POLICY = Policy(poll_s=1e6)  # the simulation has no signals to notice, except where a test sets its own
SHAPE = RenderShape(width=512, height=512, steps=20, guidance=6.0, scheduler="ddim")


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def wall(self):
        return 1e9 + self.now


def concept(key):
    return ConceptTask(key, key, "mug", (), (), TrainingConfig())


def render(key, concepts=(), shape=SHAPE):
    return RenderTask(key, "a {0}", "", tuple(concepts), 0, 0.6, 0.15, "local", shape)


class Source:
    """Trainings first; a render is ready when its concept is there; checks what a source may rely on."""

    def __init__(self, concepts, renders, group=4, batch=8):
        self.trainings = deque(
            TrainUnit(f"t{i}", tuple(concepts[i : i + group])) for i in range(0, len(concepts), group)
        )
        self.blocked = {}
        self.ready = deque()
        for task in renders:
            if task.concepts:
                self.blocked.setdefault(task.concepts[0], []).append(task)
            else:
                self.ready.append(task)
        self.batch = batch
        self.open = {task.key for task in [*concepts, *renders]}
        self.given = 0

    def next(self):
        if self.trainings:
            return self.trainings.popleft()
        if not self.ready:
            return None
        tasks = [self.ready.popleft() for _ in range(min(self.batch, len(self.ready)))]
        self.given += 1
        return RenderUnit(f"r{self.given}", tuple(tasks))

    def record(self, outcomes):
        orphans = []
        for outcome in outcomes:
            self.open.remove(outcome.key)  # KeyError: a second outcome
            dependants = self.blocked.pop(outcome.key, [])
            if outcome.status is Status.OK:
                self.ready.extend(dependants)
            else:
                orphans += [
                    Outcome("render", task.key, Status.FAILED, Code.CONCEPT_FAILED, "no concept") for task in dependants
                ]
        self.open -= {orphan.key for orphan in orphans}
        return orphans

    def finished(self):
        return not self.open


def ok(task):
    kind = "concept" if isinstance(task, ConceptTask) else "render"
    return Outcome(kind, task.key, Status.OK, origin=Origin.RENDERED, uri=f"memory://{task.key}")


@dataclass
class World:
    """What goes wrong in a simulation."""

    slots: int = 3
    seed: int = 0
    poison: frozenset = frozenset()  # kill the worker
    hangs: frozenset = frozenset()  # never end
    bugs: frozenset = frozenset()  # raise
    huge: frozenset = frozenset()  # do not fit in memory alone
    capacity: int = 1000  # tasks that fit in memory
    bad_slots: frozenset = frozenset()  # die whatever they run
    outage: float = 0.0  # share of calls that end in an outage
    storm: tuple = (0.0, 0.0)  # seconds between which every call does
    unstartable: frozenset = frozenset()  # slots whose worker never comes up
    start_failure: Failure = field(default_factory=lambda: Failure("died", "no device"))


class Pool:
    """A simulated executor: one event at a time, on a fake clock."""

    def __init__(self, world, clock):
        self.world = world
        self.clock = clock
        self.random = random.Random(world.seed)
        self.calls = {slot: deque() for slot in range(world.slots)}
        self.live = set()
        self.ready_at = {slot: 5.0 * (slot > 0) for slot in range(world.slots)}
        self.number = 0
        self.trace = []
        self.most = 0
        self.waits = 0

    def slots(self):
        return tuple(sorted(self.live))

    def starting(self):
        return tuple(sorted(self.ready_at))

    def submit(self, slot, unit):
        assert slot in self.live
        self.number += 1
        self.trace.append((round(self.clock.now, 6), slot, tuple(task.key for task in unit.tasks)))
        if self.calls[slot]:
            assert all(isinstance(queued[1], RenderUnit) for queued in [*self.calls[slot], (0, unit)])
        self.calls[slot].append([self.number, unit, None, None])
        self.most = max(self.most, *(len(calls) for calls in self.calls.values()))
        self._begin(slot)
        return self.number

    def _begin(self, slot):
        if self.calls[slot] and self.calls[slot][0][2] is None:
            call = self.calls[slot][0]
            lasts, call[3] = self._fate(slot, call[1])
            call[2] = self.clock.now + lasts

    def _fate(self, slot, unit):
        world, keys = self.world, {task.key for task in unit.tasks}
        lasts = self.random.uniform(1, 10) * (30 if isinstance(unit, TrainUnit) else 1)
        if world.storm[0] <= self.clock.now < world.storm[1] or self.random.random() < world.outage:
            failure = self.random.choice(
                [Failure("unavailable", "the node is away"), Failure("died", "the spot node is gone", preempted=True)]
            )
            return lasts * self.random.random(), failure
        if slot in world.bad_slots or keys & world.poison:
            return lasts * self.random.random(), Failure("died", "killed by signal 11")
        if keys & world.hangs:
            return float("inf"), None
        if len(keys) > world.capacity or keys & world.huge:
            return 1.0, Failure("out_of_memory", "CUDA out of memory")
        if keys & world.bugs:
            return 1.0, Failure("raised", "ValueError: a bug")
        return lasts, tuple(ok(task) for task in unit.tasks)

    def wait(self, timeout_s):
        assert timeout_s >= 0
        self.waits += 1
        assert self.waits < 20_000, "it does not end"
        events = [(calls[0][2], slot) for slot, calls in self.calls.items() if calls]
        events += [(at, slot) for slot, at in self.ready_at.items()]
        at, slot = min(events, default=(float("inf"), -1))
        if at > self.clock.now + timeout_s:
            self.clock.now += timeout_s
            return []
        self.clock.now = max(self.clock.now, at)
        if slot in self.ready_at:
            del self.ready_at[slot]
            if slot in self.world.unstartable:
                return [Completion(None, slot, None, failure=self.world.start_failure)]
            self.live.add(slot)
            return []
        number, unit, _, result = self.calls[slot].popleft()
        if isinstance(result, Failure):
            if result.kind in ("died", "unavailable"):
                self.live.discard(slot)
                self.calls[slot].clear()
            self._begin(slot)
            return [Completion(number, slot, unit, failure=result)]
        self._begin(slot)
        return [Completion(number, slot, unit, outcomes=result)]

    def retire(self, slot):
        self.live.discard(slot)
        self.calls[slot].clear()
        self.ready_at.pop(slot, None)

    def replace(self, slot):
        self.retire(slot)
        self.ready_at[slot] = self.clock.now + 5.0

    def close(self):
        for slot in self.calls:
            self.retire(slot)


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
        summary, error = run(work, pool, sink, policy=policy, clock=clock, stop=lambda: stop(clock)), None
    except EngineError as caught:
        summary, error = caught.summary, caught
    assert summary.completed + summary.failed == len(outcomes)
    assert summary.completed == sum(row.status is Status.OK for row in outcomes.values())
    assert pool.most <= policy.render_depth
    return Result(outcomes, summary, pool, work, clock, error)


def renders(count, prefix="r", **fields):
    return [render(f"{prefix}{index}", **fields) for index in range(count)]


def codes(result):
    return {key: row.code for key, row in result.outcomes.items() if row.status is not Status.OK}


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


def test_poison_row_alone_is_blamed():
    result = simulate(World(slots=1, poison=frozenset({"r5"})), (), renders(24))
    assert result.error is None
    assert codes(result) == {"r5": Code.WORKER_DIED}
    assert result.outcomes["r5"].attempts == 4  # twice in its unit, twice alone
    assert "killed by signal 11" in result.outcomes["r5"].message
    assert result.outcomes["r20"].attempts == 1
    assert result.summary.deaths == 4


def test_what_was_queued_behind_a_poison_row_gets_no_strike():
    result = simulate(World(slots=1, poison=frozenset({"r0"})), (), renders(16))
    assert {result.outcomes[f"r{index}"].attempts for index in range(8, 16)} == {1}


def test_hanging_row_times_out():
    result = simulate(World(slots=2, hangs=frozenset({"r3"})), (), renders(16))
    assert codes(result) == {"r3": Code.TIMED_OUT}
    assert f"{POLICY.render_deadline_s:g} s" in result.outcomes["r3"].message
    assert result.summary.wasted_s == pytest.approx(4 * POLICY.render_deadline_s)


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
    assert "ValueError: a bug" in result.outcomes["r9"].message
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
        stop=lambda: False,
    )
    assert sorted(row.key for row in outcomes) == sorted(f"r{index}" for index in range(8))
    assert [row.key for row in outcomes if row.code is Code.INTERNAL] == ["r1"]


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


def test_storm_is_ridden_out_with_backoff():
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


def test_bad_slot_is_quarantined_and_nobody_is_blamed():
    result = simulate(World(slots=3, bad_slots=frozenset({1})), (), renders(200))
    assert result.error is None
    assert codes(result) == {}
    assert result.summary.quarantined == (1,)
    assert result.summary.deaths == POLICY.slot_deaths


def test_all_slots_bad_stops_and_blames_nobody():
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


def test_slot_that_cannot_start_is_given_up_and_the_others_go_on():
    result = simulate(World(unstartable=frozenset({2})), (), renders(800))
    assert codes(result) == {}
    assert result.summary.quarantined == (2,)


def test_slot_that_never_becomes_ready_is_a_failure_and_not_a_hang():
    world = World(slots=1)
    clock = FakeClock()
    pool = Pool(world, clock)
    pool.ready_at = {0: float("inf")}
    pool.replace = lambda slot: pool.ready_at.update({slot: float("inf")})
    with pytest.raises(EngineError, match="not ready after 1800 s"):
        run(Source([], renders(4)), pool, lambda rows: None, policy=POLICY, clock=clock, stop=lambda: False)


def test_source_with_neither_work_nor_an_end_is_an_error():
    class Stuck(Source):
        def finished(self):
            return False

    clock = FakeClock()
    with pytest.raises(EngineError, match="fault in the work queue"):
        run(Stuck([], []), Pool(World(), clock), lambda rows: None, policy=POLICY, clock=clock, stop=lambda: False)


def test_stop_drains_what_runs_and_leaves_the_rest():
    policy = replace_policy(poll_s=0.5, drain_s=30.0)
    result = simulate(World(slots=2), (), renders(200), policy=policy, stop=lambda clock: clock.now > 12)
    assert result.summary.drained
    assert result.error is None
    assert 0 < len(result.outcomes) < 200
    assert codes(result) == {}
    assert max(at for at, _, _ in result.pool.trace) <= 12.5
    assert not any(result.pool.calls.values())


def test_drain_has_an_end():
    policy = replace_policy(poll_s=0.5, drain_s=3.0)
    result = simulate(World(slots=1), [concept("c")], (), policy=policy, stop=lambda clock: clock.now > 1)
    assert result.summary.drained
    assert result.clock.now <= 6
    assert result.source.open == {"c"}


def test_slot_lost_while_draining_is_neither_replaced_nor_waited_for_in_a_spin():
    policy = replace_policy(poll_s=2.0, drain_s=400.0)
    world = World(slots=2, bad_slots=frozenset({1}))
    result = simulate(
        world, [concept("c0"), concept("c1")], (), policy=policy, group=1, stop=lambda clock: clock.now > 6
    )
    assert result.summary.drained
    assert result.summary.deaths == 1
    assert result.pool.waits < 250
    assert set(result.outcomes) == {"c0"}


def test_error_in_the_sink_ends_the_run():
    def sink(rows):
        raise RuntimeError("the lease is lost")

    clock = FakeClock()
    with pytest.raises(RuntimeError, match="the lease is lost"):
        run(Source([], renders(4)), Pool(World(), clock), sink, policy=POLICY, clock=clock, stop=lambda: False)


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
    run(source, Pool(world, clock), lambda rows: None, policy=POLICY, clock=clock, stop=lambda: False)
    assert source.most <= 4 * 2 * 8 * 2  # twice what is in flight


def replace_policy(**fields):
    return Policy(**{**POLICY.model_dump(), **fields})


keys = st.frozensets(st.integers(0, 59), max_size=3)


@settings(deadline=None, max_examples=400)
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


@settings(deadline=None, max_examples=200)
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
