"""The scheduler: gives units to slots and outcomes to the sink until all work is done. It does not depend on Ray.

Invariants, whatever fails and in whatever order:

- Each task gets exactly one final outcome, and the sink has it before the source does.
- A slot holds at most `Policy.render_depth` renders or one training. The backlog holds at most what was once given to
  slots. So memory is bounded.
- An outage (`Failure.infrastructure`) is never charged to a row. What waits behind a call is never blamed for it.
- A row fails for killing workers only after it did so alone, as often as `Policy.strikes` says.
- A suspect is retried on another slot if there is one. A slot that keeps dying gets one fresh row at a time, which
  tells bad slots from bad rows; if those rows die too, the slot is quarantined and its strikes are pardoned.
- A slot for which no task can be left is given back at once, so that the last rows do not hold the whole cluster.
- The run ends: finished; drained after `stop` gave a reason; or with `EngineError` when no progress is possible. A task
  without an outcome then stays with the source, for a later run.

The same source, executor, policy and clock give the same calls in the same order.

`slots` holds the states of slots, `choice` decides what runs where, `settlement` what follows when a call ends,
`backlog` who is blamed, `watchdog` how long a unit may run, `agenda` when a slot must be looked at, `figures` counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.clock import Clock
from pipeline.contract.units import Outcome
from pipeline.engine.agenda import Agenda
from pipeline.engine.backlog import Backlog, WorkSource
from pipeline.engine.choice import Choice
from pipeline.engine.executor import Executor
from pipeline.engine.figures import RESUME, EngineError, RunSummary, Snapshot
from pipeline.engine.policy import Policy
from pipeline.engine.settlement import Settlement
from pipeline.engine.slots import SlotTable
from pipeline.engine.watchdog import Watchdog


def run(
    source: WorkSource,
    executor: Executor,
    sink: Callable[[Sequence[Outcome]], None],
    *,
    policy: Policy,
    clock: Clock,
    stop: Callable[[Snapshot], str | None],
) -> RunSummary:
    """Run all units of the source, or as many as end before `stop` gives a reason.

    The caller closes the executor, also when this raises.

    Args:
        source: gives units and takes outcomes.
        executor: runs units.
        sink: takes each final outcome once; an exception of the sink ends the run.
        policy: limits and deadlines.
        clock: for deadlines and for the time at which a task failed.
        stop: gets the state of the engine; returns why to stop, or None. Called at least every `policy.poll_s` seconds.

    Raises:
        EngineError: every slot is quarantined, the workers cannot start, an outage does not end, or the source has
            unfinished tasks but no unit to run.
    """
    return _Run(source, executor, sink, policy, clock).run(stop)


class _Run:
    def __init__(
        self,
        source: WorkSource,
        executor: Executor,
        sink: Callable[[Sequence[Outcome]], None],
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._executor = executor
        self._policy = policy
        self._clock = clock
        self._backlog = Backlog(source, policy, clock)
        self._watchdog = Watchdog(policy)
        self._slots = SlotTable(executor, policy)
        self._agenda = Agenda(self._slots, self._watchdog)
        self._choice = Choice(self._backlog, self._slots, executor, policy)
        self._settlement = Settlement(self._backlog, self._slots, self._watchdog, sink, policy, clock)

    def run(self, stop: Callable[[Snapshot], str | None]) -> RunSummary:
        drain_until: float | None = None
        while True:
            now = self._clock.monotonic()
            if drain_until is None and (reason := stop(self._settlement.snapshot(now))):
                self._settlement.tally.stopped = reason
                drain_until = now + self._policy.drain_s
            ready = self._slots.refresh(now)
            if drain_until is None:
                self._slots.restart(self._agenda.due(now), now)
                self._choice.fill(now)
                self._give_back()
            running = self._slots.is_running()
            if not running and not self._backlog.unfinished():
                return replace(self._settlement.summary(), stopped="")
            if drain_until is not None and (not running or now >= drain_until):
                self._settlement.abandon()
                return self._settlement.summary()
            if not running:
                self._assert_progress_possible(ready=bool(ready))
            for completion in self._executor.wait(self._timeout_s(now, drain_until)):
                self._settlement.settle(completion)
            self._settlement.kill_overdue(self._agenda.due(self._clock.monotonic()))

    def _give_back(self) -> None:
        left = self._backlog.unfinished()
        if left and self._backlog.exhausted():
            self._settlement.tally.given_back += self._slots.give_back(left)

    def _assert_progress_possible(self, *, ready: bool) -> None:
        """Nothing runs: something must be about to, or the run would wait forever."""
        if self._slots.is_changing():
            return
        # What waits may fit only on machines whose slots were given back, or are gone.
        if (not ready or self._backlog.is_waiting()) and self._slots.recall(self._clock.monotonic()):
            return
        if ready and self._backlog.retry_unfit():
            return
        if ready:
            raise EngineError(
                "the plan has unfinished tasks, but none of them is ready and none is running: this is a bug in the "
                "work queue, please report it",
                self._settlement.summary(),
            )
        raise EngineError(
            f"no worker is left: {len(self._slots)} of {len(self._slots)} were given up after "
            f"{self._policy.slot_deaths} failures in a row. The last one: {self._settlement.last_cause}. {RESUME}",
            self._settlement.summary(),
        )

    def _timeout_s(self, now: float, drain_until: float | None) -> float:
        """Seconds until a deadline passes or `stop` must be asked."""
        moments = [now + self._policy.poll_s]
        if drain_until is not None:
            moments.append(drain_until)
        moments.append(self._agenda.first(draining=drain_until is not None))
        return max(0.0, min(moments) - now)
