"""What follows when a call ends: outcomes to the sink, blame for rows and slots, and retries.

The sink gets an outcome before the source does. A row is blamed only for what it did while it ran: what waited behind a
call goes back to the backlog, and an outage blames neither rows nor slots. Of two units that a lost worker had in
progress, neither is blamed, but both are doubted.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.clock import Clock
from pipeline.contract.errors import Code
from pipeline.contract.units import Outcome
from pipeline.engine.backlog import Backlog, WorkItem
from pipeline.engine.executor import Completion, Failure
from pipeline.engine.figures import RESUME, EngineError, RunSummary, Snapshot, Tally
from pipeline.engine.policy import Policy
from pipeline.engine.slots import Slot, SlotState, SlotTable
from pipeline.engine.watchdog import Watchdog

_log = logging.getLogger(__name__)


class Settlement:
    """Settles calls and lost slots; keeps the tally of the run."""

    def __init__(  # noqa: PLR0917 (the parts of one run, made together)
        self,
        backlog: Backlog,
        slots: SlotTable,
        watchdog: Watchdog,
        sink: Callable[[Sequence[Outcome]], None],
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._backlog = backlog
        self._slots = slots
        self._watchdog = watchdog
        self._sink = sink
        self._policy = policy
        self._clock = clock
        self._outages = 0  # in a row, without a success anywhere
        self.tally = Tally()
        self.last_cause = "no worker ever started"

    def summary(self) -> RunSummary:
        """The figures so far."""
        quarantined = [slot.number for slot in self._slots if slot.state is SlotState.QUARANTINED]
        return self.tally.freeze({slot.number: slot.busy_s for slot in self._slots}, quarantined)

    def snapshot(self, now: float) -> Snapshot:
        """The engine at this moment."""
        slots, tally = self._slots, self.tally
        leaving = slots.count(SlotState.LEAVING)
        return Snapshot(
            ready=slots.count(SlotState.READY),
            running=max(0, slots.running() - leaving),
            leaving=leaving,
            starting=slots.count(SlotState.STARTING, SlotState.BACKING_OFF),
            quarantined=slots.count(SlotState.QUARANTINED),
            spent_s=slots.spent_s(now),
            wasted_s=tally.wasted_s,
            retries=tally.retries,
            deaths=tally.deaths,
            outages=tally.outages,
        )

    def settle(self, completion: Completion) -> None:
        """Settle one completion of the executor.

        Raises:
            EngineError: the workers cannot start, or an outage does not end.
        """
        slot, failure = self._slots.slot(completion.slot), completion.failure
        if completion.call is None:
            assert failure is not None
            self._not_started(slot, failure)
            return
        assert slot.calls, "the executor completed a call of a slot that holds none"
        assert slot.calls[0].number == completion.call, "the executor completed a call that is not its slot's oldest"
        if failure is None:
            failure = _mismatch(slot.calls[0].item, completion.outcomes)
        if failure is None:
            self._success(slot, completion.outcomes)
        elif failure.infrastructure:
            self._outage(slot, failure)
        elif failure.kind == "died":
            message = f"the worker died while it ran this: {failure.message}"
            self._death(slot, Code.WORKER_DIED, message, overlapped=failure.overlapped)
        else:
            item = self._end_call(slot, wasted=True)
            _log.warning("slot %d, %s: %s", slot.number, failure.kind, failure.message, extra=_where(slot, item))
            if failure.kind == "raised":
                self._after_failure(self._backlog.raised(item, slot.number, failure.message))
            else:
                machine, others = slot.machine, self._slots.machines()
                self._after_failure(
                    self._backlog.out_of_memory(item, slot.number, failure.message, machine=machine, others=others)
                )

    def kill_overdue(self, slots: Sequence[Slot]) -> None:
        """Kill what has been running, or starting, for too long on these slots.

        Raises:
            EngineError: as in `settle`.
        """
        now = self._clock.monotonic()
        for slot in slots:
            if slot.calls:
                deadline = slot.deadline(self._watchdog)
                if now >= slot.calls[0].since + deadline.seconds:
                    message = f"no result after {deadline.seconds:g} s, the limit set by policy.{deadline.setting}"
                    self._death(slot, Code.TIMED_OUT, message)
            elif slot.state is SlotState.STARTING and now >= slot.until:
                message = (
                    f"not ready after {self._policy.setup_deadline_s:g} s (policy.setup_deadline_s): no machine has "
                    "the resources it asks for, or loading the model hangs"
                )
                self._not_started(slot, Failure("died", message))

    def abandon(self) -> None:
        """Count running calls as wasted: the run stops without their outcomes."""
        for slot in self._slots:
            if slot.calls:
                self._end_call(slot, wasted=True)

    def _success(self, slot: Slot, outcomes: Sequence[Outcome]) -> None:
        call = slot.calls[0]
        self._watchdog.learn(call.item.unit, self._clock.monotonic() - call.since)
        item = self._end_call(slot, wasted=False)
        self._backlog.fitted(item, slot.machine)
        slot.deaths = slot.losses = self._outages = 0
        slot.warm = True
        self._finish([replace(outcome, attempts=item.attempts + 1) for outcome in outcomes])

    def _end_call(self, slot: Slot, *, wasted: bool) -> WorkItem:
        item, seconds = self._slots.end_call(slot, self._clock.monotonic())
        if wasted:
            self.tally.wasted_s += seconds
        return item

    def _after_failure(self, outcomes: list[Outcome]) -> None:
        """Either some tasks ended, or all of them will run again."""
        if outcomes:
            self._finish(outcomes)
        else:
            self.tally.retries += 1

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        self._sink(outcomes)
        dependants = self._backlog.record(outcomes)
        if dependants:
            self._sink(dependants)
        self.tally.count((*outcomes, *dependants))

    # Lost slots

    def _lose(self, slot: Slot) -> list[WorkItem]:
        """Kill the slot's worker; returns what it held, the item that ran first."""
        running = [self._end_call(slot, wasted=True)] if slot.calls else []
        return running + self._slots.back_off(slot, self._clock.monotonic())

    def _outage(self, slot: Slot, failure: Failure) -> None:
        self.last_cause = failure.message
        self._outages += 1
        items = self._lose(slot)
        self._backlog.put_back(items)
        self.tally.outages += 1
        self.tally.retries += bool(items)
        _log.warning("slot %d lost to an outage: %s", slot.number, failure.message, extra=_where(slot))
        if self._outages >= self._policy.infrastructure_failures * len(self._slots):
            raise EngineError(
                f"{self._outages} outages in a row without a success between them. The last one: {failure.message}. "
                f"{RESUME}",
                self.summary(),
            )

    def _death(self, slot: Slot, code: Code, message: str, *, overlapped: bool = False) -> None:
        self.tally.deaths += 1
        ran, *queued = self._lose(slot)
        if queued and (overlapped or code == Code.TIMED_OUT):
            # The next unit was computed, or may have been: what stops a whole process makes the first one late.
            queued[0] = replace(queued[0], doubted=True)
        # Only an item that is not suspect is evidence against the slot: a suspect may be what killed the worker.
        if self._count_death(slot, message, ran, condemn=not ran.suspect):
            self._backlog.put_back([ran, *queued])
            self.tally.retries += 1
        elif queued and overlapped:
            self._backlog.put_back([replace(ran, doubted=True), *queued])
            self.tally.retries += 2
        else:
            self._backlog.put_back(queued)
            self._after_failure(self._backlog.strike(ran, slot.number, code, message))

    def _not_started(self, slot: Slot, failure: Failure) -> None:
        if failure.infrastructure:
            self._outage(slot, failure)
            return
        if failure.kind == "raised" and not self._slots.was_ready:
            raise EngineError(f"the worker cannot start: {failure.message}. {RESUME}", self.summary())
        self._lose(slot)
        if failure.kind == "died":
            self.tally.deaths += 1
        self._count_death(slot, f"the worker could not start: {failure.message}", None, condemn=True)

    def _count_death(self, slot: Slot, message: str, ran: WorkItem | None, *, condemn: bool) -> bool:
        """Count a death against a slot; returns whether it is quarantined, which `condemn` allows."""
        self.last_cause = message
        slot.deaths += 1
        _log.warning("slot %d, failure %d in a row: %s", slot.number, slot.deaths, message, extra=_where(slot, ran))
        if not condemn or slot.deaths < self._policy.slot_deaths:
            return False
        self._slots.quarantine(slot)
        self._backlog.pardon_all(slot.number)
        for other in self._slots:
            for call in other.calls:
                call.item = self._backlog.pardon(call.item, slot.number)
                self._slots.touch(other)
        _log.error("slot %d gets no more work", slot.number, extra=_where(slot))
        return True


def _where(slot: Slot, item: WorkItem | None = None) -> dict[str, object]:
    """What a warning is about, for logs that have fields: the slot, its unit, and the key of a single task."""
    if item is None:
        return {"slot": slot.number}
    key = {"key": item.unit.tasks[0].key} if item.size == 1 else {}
    return {"slot": slot.number, "unit": item.unit.unit_id, **key}


def _mismatch(item: WorkItem, outcomes: Sequence[Outcome]) -> Failure | None:
    """A failure unless the outcomes are of exactly the tasks that the worker was given."""
    expected = sorted(task.key for task in item.unit.tasks)
    got = sorted(outcome.key for outcome in outcomes)
    if expected == got:
        return None
    return Failure(
        "raised", f"the worker was given {len(expected)} tasks and answered for {len(got)}, not the same ones"
    )
