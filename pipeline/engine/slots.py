"""The slots of a run: the state of each, what it runs, and the transitions between states.

A slot starts, becomes ready, and is lost (its worker died, hung or vanished) or given back (no task is left for it). A
lost slot backs off and starts again, until it has died too often in a row and is quarantined. A slot that was given
back starts again if the others are lost. A slot whose machine is about to leave ends its units and starts elsewhere.

The scheduler asks at each event, so nothing here but a change of many slots takes time that grows with their number:
totals are kept up to date, and `changed` and `candidates` say which slots are worth a look.
"""

import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from heapq import nsmallest

from pipeline.engine.backlog import WorkItem
from pipeline.engine.candidates import Candidates
from pipeline.engine.executor import Executor
from pipeline.engine.policy import Policy
from pipeline.engine.watchdog import Deadline, Watchdog


class SlotState(Enum):
    """What a slot can do now."""

    STARTING = auto()  # its worker loads; `until` is when it must be ready
    READY = auto()  # it takes units
    LEAVING = auto()  # it ends the units that it has and takes no more; then the executor starts it elsewhere
    BACKING_OFF = auto()  # it has no worker; `until` is when one is started
    QUARANTINED = auto()  # given up for the rest of the run
    GIVEN_BACK = auto()  # released: no task is left for it


@dataclass
class Call:
    """A unit that a slot was given.

    Attributes:
        number: of the executor.
        item: the unit with its history.
        since: monotonic seconds when it became the oldest call of its slot.
    """

    number: int
    item: WorkItem
    since: float


@dataclass
class Slot:
    """One slot.

    Attributes:
        number: of the executor, from 0.
        state: what it can do.
        until: monotonic seconds at which the state ends; meaningful while STARTING and BACKING_OFF.
        calls: what it was given, in order: the first one runs; the second one may be computed while the objects of the
            first one are written.
        deaths: in a row, without a success.
        losses: in a row, without a success: deaths and outages.
        warm: whether its worker has completed a call.
        busy_s: seconds spent on calls.
        machine: kind of the machine that its worker is or was on; empty if it is unknown.
    """

    number: int
    state: SlotState = SlotState.STARTING
    until: float = float("inf")
    calls: deque[Call] = field(default_factory=deque)
    deaths: int = 0
    losses: int = 0
    warm: bool = False
    busy_s: float = 0.0
    machine: str = ""

    def deadline(self, watchdog: Watchdog) -> Deadline:
        """The limit of the oldest call, in seconds from its `since`."""
        return watchdog.deadline(self.calls[0].item.unit, warm=self.warm)


class SlotTable:
    """Every slot that the executor has shown; starts and retires workers through the executor.

    Attributes:
        was_ready: whether any slot ever was.
        changed: numbers of the slots whose state or calls have changed; whoever has looked at them removes them.
        candidates: slots that may have room for a unit.
    """

    def __init__(self, executor: Executor, policy: Policy) -> None:
        self._executor = executor
        self._policy = policy
        self._slots: dict[int, Slot] = {}
        self._random = random.Random(policy.seed)  # noqa: S311 (spreads restarts, guards nothing)
        self.was_ready = False
        self.changed: set[int] = set()
        self.candidates = Candidates()
        self._states = Counter[SlotState]()
        self._seen: tuple[object, object] = (None, None)  # what the executor last gave
        self._ready: dict[int, Slot] = {}
        self._running = 0  # slots that hold a call
        self._since_s = 0.0  # the sum of `since` of their oldest calls
        self._busy_s = 0.0  # the sum of `busy_s`

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, number: int) -> Slot:
        """The slot of that number; a new one is STARTING."""
        if number not in self._slots:
            self._slots[number] = Slot(number)
            self._states[SlotState.STARTING] += 1
            self.changed.add(number)
        return self._slots[number]

    def refresh(self, now: float) -> Mapping[int, Slot]:
        """Ask the executor which slots start and which are ready; returns the ready ones by number."""
        starting, ready = self._executor.starting(), self._executor.slots()
        if starting is self._seen[0] and ready is self._seen[1]:
            return self._ready
        self._seen = starting, ready
        for number in starting:
            slot = self._slots.get(number)
            if slot is None or slot.state is not SlotState.STARTING:
                self._begin_start(self.slot(number), now)
        for number in [number for number in ready if number not in self._ready]:
            slot = self._ready[number] = self.slot(number)
            slot.machine = self._executor.machine(number)
            self._set(slot, SlotState.READY, slot.until)
        if len(self._ready) > len(ready):
            for number in self._ready.keys() - set(ready):
                self._set(self._slots[number], SlotState.LEAVING, float("inf"))
        self.was_ready = self.was_ready or bool(ready)
        return self._ready

    def give(self, slot: Slot, number: int, item: WorkItem, now: float) -> None:
        """Record that the slot was given a unit, as call `number` of the executor."""
        if not slot.calls:
            self._running += 1
            self._since_s += now
        slot.calls.append(Call(number, item, now))
        self.touch(slot)

    def end_call(self, slot: Slot, now: float) -> tuple[WorkItem, float]:
        """Remove the oldest call; returns its item and the seconds it ran. The next call runs from `now`."""
        call = slot.calls.popleft()
        seconds = now - call.since
        slot.busy_s += seconds
        self._busy_s += seconds
        self._since_s -= call.since
        if slot.calls:
            slot.calls[0].since = now
            self._since_s += now
        else:
            self._running -= 1
        self.touch(slot)
        return call.item, seconds

    def restart(self, slots: Sequence[Slot], now: float) -> None:
        """Start a worker on each of these slots whose backoff is over."""
        for slot in slots:
            if slot.state is SlotState.BACKING_OFF and now >= slot.until:
                self._begin_start(slot, now)
                self._executor.replace(slot.number)

    def _begin_start(self, slot: Slot, now: float) -> None:
        slot.warm = False
        self._set(slot, SlotState.STARTING, now + self._policy.setup_deadline_s)

    def _set(self, slot: Slot, state: SlotState, until: float) -> None:
        self._states[slot.state] -= 1
        self._states[state] += 1
        slot.state, slot.until = state, until
        if state is not SlotState.READY:
            self._ready.pop(slot.number, None)
        self.touch(slot)

    def touch(self, slot: Slot) -> None:
        """Record that a slot's state or calls have changed."""
        self.changed.add(slot.number)
        self.candidates.note(slot.number, len(slot.calls))

    def give_back(self, tasks: int) -> int:
        """Release idle slots; keep as many as `tasks` tasks can still kill. Returns how many were released."""
        surplus = len(self._ready) - self._policy.strikes * tasks
        if surplus <= 0:
            return 0
        idle = (slot for slot in self._ready.values() if not slot.calls)
        released = nsmallest(surplus, idle, key=lambda slot: (slot.warm, -slot.number))
        for slot in released:
            self._set(slot, SlotState.GIVEN_BACK, slot.until)
            self._executor.retire(slot.number)
        return len(released)

    def recall(self, now: float) -> bool:
        """Restart the slots that were given back; returns whether there are any."""
        released = [slot for slot in self if slot.state is SlotState.GIVEN_BACK]
        for slot in released:
            self._set(slot, SlotState.BACKING_OFF, now)
        return bool(released)

    def back_off(self, slot: Slot, now: float) -> list[WorkItem]:
        """Kill the worker of a lost slot and wait before the next one; returns what was queued on it."""
        queued = [call.item for call in slot.calls]
        if slot.calls:
            self._running -= 1
            self._since_s -= slot.calls[0].since
        slot.calls.clear()
        slot.warm = False
        slot.losses += 1
        until = now + self._policy.backoff_s(slot.losses, self._random.random())
        self._set(slot, SlotState.BACKING_OFF, until)
        self._executor.retire(slot.number)
        return queued

    def quarantine(self, slot: Slot) -> None:
        """Give the slot up for the rest of the run."""
        self._set(slot, SlotState.QUARANTINED, slot.until)

    def is_trusted(self, slot: Slot) -> bool:
        """Whether the slot is not on probation for deaths in a row."""
        return slot.state is not SlotState.QUARANTINED and slot.deaths < self._policy.probation_deaths

    def is_running(self) -> bool:
        """Whether any slot holds a call."""
        return self._running > 0

    def machines(self) -> set[str]:
        """The kinds of machines of all slots that are not quarantined; empty for one that was never ready."""
        return {slot.machine for slot in self if slot.state is not SlotState.QUARANTINED}

    def count(self, *states: SlotState) -> int:
        """How many slots are in one of these states."""
        return sum(self._states[state] for state in states)

    def running(self) -> int:
        """How many slots hold a call."""
        return self._running

    def is_changing(self) -> bool:
        """Whether any slot will become ready, or fail to."""
        return self.count(SlotState.STARTING, SlotState.BACKING_OFF) > 0

    def spent_s(self, now: float) -> float:
        """Slot seconds spent on calls, running ones included."""
        return self._busy_s + (self._running * now - self._since_s)
