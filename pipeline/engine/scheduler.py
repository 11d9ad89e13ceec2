"""The bounded scheduler: units to slots, outcomes to the sink, and blame where it belongs. Knows nothing of Ray.

Invariants, whatever fails and in whatever order:

- Every task gets exactly one final outcome, and the sink has it before the source does.
- A slot holds at most `Policy.depth` calls, and the backlog no more than was once in flight: memory is bounded.
- An outage (`Failure.infrastructure`) is never charged to a row. What was queued behind a call is never blamed for it.
- A row is failed for killing workers only after it did so alone, as often as `Policy.strikes` says.
- A suspect is tried on another slot than before where there is one, and a slot that keeps dying on one fresh row at a
  time, which tells bad slots from bad rows: a slot that kills those too is quarantined and its strikes are pardoned.
- A slot that nothing can be left for is given back at once, so that the last rows do not keep the whole cluster.
- The run ends: finished, drained once `stop` gives a reason, or with `EngineError` when nothing can go on. Nothing is
  lost in the last two cases: what has no outcome yet is still the source's to give out in a later run.

The same source, executor, policy and clock give the same calls in the same order.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

from pipeline.clock import Clock
from pipeline.contract.errors import Code, Status
from pipeline.contract.units import Outcome, RenderUnit
from pipeline.engine.backlog import Backlog, Job, WorkSource
from pipeline.engine.executor import Completion, Executor, Failure
from pipeline.engine.policy import Policy
from pipeline.engine.watchdog import Watchdog

_log = logging.getLogger(__name__)

_RESUME = "What is done is kept: run the same command again once the cause is removed."


@dataclass(frozen=True)
class RunSummary:
    """What a run came to.

    Attributes:
        completed: tasks made.
        failed: tasks that ended otherwise, dependants that could not run included.
        retries: calls that ran and whose tasks had to run again.
        deaths: workers that died or were killed for hanging, also while they started; machines taken away not counted.
        outages: slots lost to infrastructure.
        given_back: slots ended early, because fewer tasks were left than slots.
        wasted_s: slot seconds in calls that gave no outcome.
        busy_s: slot seconds in calls, by slot.
        quarantined: slots that were given up.
        stopped: why it was stopped before everything had an outcome; empty when it was not.
    """

    completed: int = 0
    failed: int = 0
    retries: int = 0
    deaths: int = 0
    outages: int = 0
    given_back: int = 0
    wasted_s: float = 0.0
    busy_s: dict[int, float] = field(default_factory=dict)
    quarantined: tuple[int, ...] = ()
    stopped: str = ""


class EngineError(Exception):
    """Nothing can go on; the message names the last cause and the remedy, `summary` what was done until then."""

    def __init__(self, message: str, summary: RunSummary) -> None:
        super().__init__(message)
        self.summary = summary


def run(
    source: WorkSource,
    executor: Executor,
    sink: Callable[[Sequence[Outcome]], None],
    *,
    policy: Policy,
    clock: Clock,
    stop: Callable[[float], str | None],
) -> RunSummary:
    """Run everything the source has, or as much as is done when `stop` gives a reason.

    The executor is the caller's to close, also when this raises.

    Args:
        source: gives units and learns outcomes.
        executor: runs units.
        sink: takes final outcomes, once each; what it raises ends the run.
        policy: limits and deadlines.
        clock: for deadlines and for the time of failures.
        stop: told the slot seconds spent so far, says why to stop or None; asked at least every `policy.poll_s` seconds
            while nothing else happens.

    Raises:
        EngineError: every slot is quarantined, the workers cannot start, an outage does not end, or the source has
            neither work nor an end.
    """
    return _Run(source, executor, sink, policy, clock).run(stop)


@dataclass
class _Call:
    number: int
    job: Job
    since: float  # when it became the oldest call of its slot


@dataclass
class _Slot:
    number: int
    calls: deque[_Call] = field(default_factory=deque)
    deaths: int = 0  # in a row, with no success between them
    losses: int = 0  # likewise, outages included
    replace_at: float | None = None
    starting_since: float | None = None
    quarantined: bool = False
    given_back: bool = False
    warm: bool = False  # its worker has ended a call well
    busy_s: float = 0.0


class _Run:
    def __init__(
        self,
        source: WorkSource,
        executor: Executor,
        sink: Callable[[Sequence[Outcome]], None],
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._backlog = Backlog(source, policy, clock)
        self._watchdog = Watchdog(policy)
        self._executor = executor
        self._sink = sink
        self._policy = policy
        self._clock = clock
        self._random = random.Random(policy.seed)  # noqa: S311 (spreads retries, guards nothing)
        self._slots: dict[int, _Slot] = {}
        self._summary = RunSummary()
        self._outages = 0  # in a row, with no success anywhere
        self._was_ready = False
        self._last_cause = "no worker was ever there"

    def run(self, stop: Callable[[float], str | None]) -> RunSummary:
        drain_until: float | None = None
        while True:
            now = self._clock.monotonic()
            if drain_until is None and (reason := stop(self._spent_s(now))):
                self._add(stopped=reason)
                drain_until = now + self._policy.drain_s
            live = self._look(now)
            if drain_until is None:
                self._revive(now)
                self._fill(live, now)
                self._give_back(live)
            running = any(slot.calls for slot in self._slots.values())
            if not running and not self._backlog.unfinished():
                return replace(self._report(), stopped="")
            if drain_until is not None and (not running or now >= drain_until):
                for slot in self._slots.values():
                    if slot.calls:
                        self._end_call(slot, wasted=True)
                return self._report()
            if not running:
                self._check_hope(live)
            for completion in self._executor.wait(self._patience(now, drain_until)):
                self._settle(completion)
            self._watch()

    # Slots

    def _look(self, now: float) -> list[_Slot]:
        """Learn which slots there are; returns those that can be given work."""
        for number in self._executor.starting():
            slot = self._slots.setdefault(number, _Slot(number))
            if slot.starting_since is None:
                slot.starting_since = now
        live = [self._slots.setdefault(number, _Slot(number)) for number in self._executor.slots()]
        for slot in live:
            slot.starting_since = None
        self._was_ready = self._was_ready or bool(live)
        return live

    def _revive(self, now: float) -> None:
        for slot in self._slots.values():
            if slot.replace_at is not None and now >= slot.replace_at:
                slot.replace_at = None
                slot.starting_since = now
                self._executor.replace(slot.number)

    def _give_back(self, live: list[_Slot]) -> None:
        """Keep as many slots as the tasks without an outcome can still bring down."""
        left = self._backlog.unfinished()
        if not left or not self._backlog.exhausted():
            return
        surplus = len(live) - self._policy.strikes * left
        idle = [slot for slot in live if not slot.calls]
        for slot in sorted(idle, key=lambda each: (each.warm, -each.number))[: max(0, surplus)]:
            slot.given_back = True
            self._executor.retire(slot.number)
            self._add(given_back=self._summary.given_back + 1)

    def _sound(self, slot: _Slot) -> bool:
        return not slot.quarantined and slot.deaths < self._policy.probation_deaths

    def _check_hope(self, live: list[_Slot]) -> None:
        """Nothing runs: something must be about to, or the run would wait for ever."""
        if any(slot.replace_at is not None or slot.starting_since is not None for slot in self._slots.values()):
            return
        spare = [] if live else [slot for slot in self._slots.values() if slot.given_back]
        for slot in spare:
            slot.given_back = False
            slot.replace_at = self._clock.monotonic()
        if spare:
            return
        if live:
            raise EngineError(
                "the plan has unfinished tasks, but none of them is ready and none is running: this is a fault in the "
                "work queue, please report it",
                self._report(),
            )
        raise EngineError(
            f"no worker is left: {len(self._slots)} of {len(self._slots)} were given up after "
            f"{self._policy.slot_deaths} failures in a row. The last one: {self._last_cause}. {_RESUME}",
            self._report(),
        )

    # Work

    def _fill(self, live: list[_Slot], now: float) -> None:
        if self._backlog.exhausted():
            return
        hungry = [(len(slot.calls), slot.number) for slot in live if self._has_room(slot)]
        heapify(hungry)
        while hungry:
            slot = self._slots[heappop(hungry)[1]]
            job = self._pick(slot)
            if job is None:
                continue
            number = self._executor.submit(slot.number, job.unit)
            slot.calls.append(_Call(number, job, now))
            if self._has_room(slot):
                heappush(hungry, (len(slot.calls), slot.number))

    def _has_room(self, slot: _Slot) -> bool:
        """Only fresh renders queue up: a training is too long, a suspect takes what is queued down with it."""
        return not slot.calls or (
            self._sound(slot)
            and len(slot.calls) < self._policy.render_depth
            and all(isinstance(call.job.unit, RenderUnit) and not call.job.suspect for call in slot.calls)
        )

    def _pick(self, slot: _Slot) -> Job | None:
        if slot.calls:
            return self._backlog.take(lambda job: isinstance(job.unit, RenderUnit) and not job.suspect)
        if not self._sound(slot):
            canary = self._backlog.take(lambda job: not job.suspect, largest=1)
            if canary is not None:
                return canary
        return self._backlog.take(lambda job: not job.suspect or self._may_judge(slot, job))

    def _may_judge(self, slot: _Slot, job: Job) -> bool:
        """Whether no other slot would say more about a suspect: one it has not died on, and one that works.

        One that has worked already is better still: its watchdog knows how long a call may take.
        """

        def bias(each: _Slot) -> tuple[int, bool, bool]:
            return job.strikes.count(each.number), not self._sound(each), not each.warm

        others = (each for each in self._slots.values() if not each.quarantined and not each.given_back)
        return bias(slot) <= min(bias(each) for each in others)

    def _settle(self, completion: Completion) -> None:
        slot = self._slots.setdefault(completion.slot, _Slot(completion.slot))
        failure = completion.failure
        if completion.call is None:
            assert failure is not None
            self._not_started(slot, failure)
            return
        assert slot.calls, "the executor completed a call of a slot that holds none"
        assert slot.calls[0].number == completion.call, "the executor completed a call that is not its slot's oldest"
        job = slot.calls[0].job
        if failure is None:
            failure = _mismatch(job, completion.outcomes)
        if failure is None:
            self._watchdog.learn(job.unit, self._clock.monotonic() - slot.calls[0].since)
            self._end_call(slot, wasted=False)
            slot.deaths = slot.losses = self._outages = 0
            slot.warm = True
            self._finish([replace(outcome, attempts=job.attempts + 1) for outcome in completion.outcomes])
        elif failure.infrastructure:
            self._outage(slot, failure)
        elif failure.kind == "died":
            self._death(slot, Code.WORKER_DIED, f"the worker died while it ran this: {failure.message}")
        else:
            self._end_call(slot, wasted=True)
            blame = self._backlog.out_of_memory if failure.kind == "out_of_memory" else self._backlog.raised
            _log.warning("slot %d, %s: %s", slot.number, failure.kind, failure.message)
            self._conclude(blame(job, slot.number, failure.message))

    def _end_call(self, slot: _Slot, *, wasted: bool) -> Job:
        """Take the oldest call off its slot; the next one runs from now on."""
        now = self._clock.monotonic()
        call = slot.calls.popleft()
        slot.busy_s += now - call.since
        if wasted:
            self._add(wasted_s=self._summary.wasted_s + now - call.since)
        if slot.calls:
            slot.calls[0].since = now
        return call.job

    def _conclude(self, outcomes: list[Outcome]) -> None:
        """After a failure: either tasks ended, or all of them will run again."""
        if outcomes:
            self._finish(outcomes)
        else:
            self._add(retries=self._summary.retries + 1)

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        self._sink(outcomes)
        dependants = self._backlog.record(outcomes)
        if dependants:
            self._sink(dependants)
        for outcome in (*outcomes, *dependants):
            if outcome.status == Status.OK:
                self._add(completed=self._summary.completed + 1)
            else:
                self._add(failed=self._summary.failed + 1)

    # Losses

    def _lose(self, slot: _Slot) -> list[Job]:
        """Kill the slot; returns its jobs, the one that ran first. A new worker starts after a while."""
        jobs = [self._end_call(slot, wasted=True)] if slot.calls else []
        jobs += [call.job for call in slot.calls]
        slot.calls.clear()
        slot.warm = False
        slot.starting_since = None
        slot.losses += 1
        slot.replace_at = self._clock.monotonic() + self._policy.backoff_s(slot.losses, self._random.random())
        self._executor.retire(slot.number)
        return jobs

    def _outage(self, slot: _Slot, failure: Failure) -> None:
        self._last_cause = failure.message
        self._outages += 1
        jobs = self._lose(slot)
        self._backlog.put_back(jobs)
        self._add(outages=self._summary.outages + 1, retries=self._summary.retries + bool(jobs))
        _log.warning("slot %d lost to an outage: %s", slot.number, failure.message)
        if self._outages >= self._policy.infrastructure_failures * len(self._slots):
            raise EngineError(
                f"{self._outages} outages in a row with no success between them. The last one: {failure.message}. "
                f"{_RESUME}",
                self._report(),
            )

    def _death(self, slot: _Slot, code: Code, message: str) -> None:
        self._add(deaths=self._summary.deaths + 1)
        guilty, *queued = self._lose(slot)
        # Only a job nobody suspects is evidence against the slot: a suspect that dies may well deserve it.
        if self._count_death(slot, message, condemn=not guilty.suspect):
            self._backlog.put_back([guilty, *queued])
            self._add(retries=self._summary.retries + 1)
        else:
            self._backlog.put_back(queued)
            self._conclude(self._backlog.strike(guilty, slot.number, code, message))

    def _not_started(self, slot: _Slot, failure: Failure) -> None:
        if failure.infrastructure:
            self._outage(slot, failure)
            return
        if failure.kind == "raised" and not self._was_ready:
            raise EngineError(f"the worker cannot start: {failure.message}. {_RESUME}", self._report())
        self._lose(slot)
        if failure.kind == "died":
            self._add(deaths=self._summary.deaths + 1)
        self._count_death(slot, f"the worker could not start: {failure.message}", condemn=True)

    def _count_death(self, slot: _Slot, message: str, *, condemn: bool) -> bool:
        """Returns whether the slot is quarantined."""
        self._last_cause = message
        slot.deaths += 1
        _log.warning("slot %d, failure %d in a row: %s", slot.number, slot.deaths, message)
        if not condemn or slot.deaths < self._policy.slot_deaths:
            return False
        slot.quarantined = True
        slot.replace_at = None
        self._backlog.pardon_all(slot.number)
        for other in self._slots.values():
            for call in other.calls:
                call.job = self._backlog.pardon(call.job, slot.number)
        _log.error("slot %d gets no more work", slot.number)
        return True

    def _watch(self) -> None:
        """Kill what has been running, or starting, for too long."""
        now = self._clock.monotonic()
        for slot in self._slots.values():
            if slot.calls:
                deadline_s = self._watchdog.deadline_s(slot.calls[0].job.unit, warm=slot.warm)
                if now >= slot.calls[0].since + deadline_s:
                    self._death(slot, Code.TIMED_OUT, f"no result after {deadline_s:g} s, so the worker was killed")
            elif slot.starting_since is not None and now >= slot.starting_since + self._policy.setup_deadline_s:
                message = (
                    f"not ready after {self._policy.setup_deadline_s:g} s: no machine has the resources it asks for, "
                    "or loading the model hangs"
                )
                self._not_started(slot, Failure("died", message))

    def _patience(self, now: float, drain_until: float | None) -> float:
        """Seconds until something has to be looked at."""
        moments = [now + self._policy.poll_s]
        if drain_until is not None:
            moments.append(drain_until)
        for slot in self._slots.values():
            if slot.replace_at is not None and drain_until is None:
                moments.append(slot.replace_at)
            if slot.calls:
                deadline_s = self._watchdog.deadline_s(slot.calls[0].job.unit, warm=slot.warm)
                moments.append(slot.calls[0].since + deadline_s)
            elif slot.starting_since is not None:
                moments.append(slot.starting_since + self._policy.setup_deadline_s)
        return max(0.0, min(moments) - now)

    # Figures

    def _spent_s(self, now: float) -> float:
        running = sum(now - slot.calls[0].since for slot in self._slots.values() if slot.calls)
        return running + sum(slot.busy_s for slot in self._slots.values())

    def _add(self, **figures: float | str) -> None:
        self._summary = replace(self._summary, **figures)

    def _report(self) -> RunSummary:
        return replace(
            self._summary,
            busy_s={slot.number: slot.busy_s for slot in self._slots.values()},
            quarantined=tuple(sorted(slot.number for slot in self._slots.values() if slot.quarantined)),
        )


def _mismatch(job: Job, outcomes: Sequence[Outcome]) -> Failure | None:
    """A worker must answer for exactly the tasks it was given."""
    expected = sorted(task.key for task in job.unit.tasks)
    got = sorted(outcome.key for outcome in outcomes)
    if expected == got:
        return None
    return Failure(
        "raised", f"the worker was given {len(expected)} tasks and answered for {len(got)}, not the same ones"
    )
