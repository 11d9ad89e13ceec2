"""The slots of a run: the state of each, what it runs, and the transitions between states.

A slot starts, becomes ready, and is lost (its worker died, hung or vanished) or given back (no task is left for it). A
lost slot backs off and starts again, until it has died too often in a row and is quarantined. A slot that was given
back starts again if the others are lost.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from pipeline.engine.backlog import WorkItem
from pipeline.engine.executor import Executor
from pipeline.engine.policy import Policy
from pipeline.engine.watchdog import Deadline, Watchdog


class SlotState(Enum):
    """What a slot can do now."""

    STARTING = auto()  # its worker loads; `until` is when it must be ready
    READY = auto()  # it takes units
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
        calls: what it was given, in order: the first one runs.
        deaths: in a row, without a success.
        losses: in a row, without a success: deaths and outages.
        warm: whether its worker has completed a call.
        busy_s: seconds spent on calls.
    """

    number: int
    state: SlotState = SlotState.STARTING
    until: float = float("inf")
    calls: deque[Call] = field(default_factory=deque)
    deaths: int = 0
    losses: int = 0
    warm: bool = False
    busy_s: float = 0.0

    def end_call(self, now: float) -> tuple[WorkItem, float]:
        """Remove the oldest call; returns its item and the seconds it ran. The next call runs from `now`."""
        call = self.calls.popleft()
        seconds = now - call.since
        self.busy_s += seconds
        if self.calls:
            self.calls[0].since = now
        return call.item, seconds

    def deadline(self, watchdog: Watchdog) -> Deadline:
        """The limit of the oldest call, in seconds from its `since`."""
        return watchdog.deadline(self.calls[0].item.unit, warm=self.warm)


class SlotTable:
    """Every slot that the executor has shown; starts and retires workers through the executor."""

    def __init__(self, executor: Executor, policy: Policy) -> None:
        self._executor = executor
        self._policy = policy
        self._slots: dict[int, Slot] = {}
        self._random = random.Random(policy.seed)  # noqa: S311 (spreads restarts, guards nothing)
        self.was_ready = False  # whether any slot ever was

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, number: int) -> Slot:
        """The slot of that number; a new one is STARTING."""
        return self._slots.setdefault(number, Slot(number))

    def refresh(self, now: float) -> list[Slot]:
        """Ask the executor which slots start and which are ready; returns the ready ones."""
        for number in self._executor.starting():
            slot = self._slots.get(number)
            if slot is None or slot.state is not SlotState.STARTING:
                self._begin_start(self.slot(number), now)
        ready = [self.slot(number) for number in self._executor.slots()]
        for slot in ready:
            slot.state = SlotState.READY
        self.was_ready = self.was_ready or bool(ready)
        return ready

    def restart_due(self, now: float) -> None:
        """Start a worker on each slot whose backoff is over."""
        for slot in self:
            if slot.state is SlotState.BACKING_OFF and now >= slot.until:
                self._begin_start(slot, now)
                self._executor.replace(slot.number)

    def _begin_start(self, slot: Slot, now: float) -> None:
        slot.state, slot.until = SlotState.STARTING, now + self._policy.setup_deadline_s

    def give_back(self, ready: Sequence[Slot], tasks: int) -> int:
        """Release idle slots; keep as many as `tasks` tasks can still kill. Returns how many were released."""
        surplus = len(ready) - self._policy.strikes * tasks
        idle = sorted((slot for slot in ready if not slot.calls), key=lambda slot: (slot.warm, -slot.number))
        released = idle[: max(0, surplus)]
        for slot in released:
            slot.state = SlotState.GIVEN_BACK
            self._executor.retire(slot.number)
        return len(released)

    def recall(self, now: float) -> bool:
        """Restart the slots that were given back; returns whether there are any."""
        released = [slot for slot in self if slot.state is SlotState.GIVEN_BACK]
        for slot in released:
            slot.state, slot.until = SlotState.BACKING_OFF, now
        return bool(released)

    def back_off(self, slot: Slot, now: float) -> list[WorkItem]:
        """Kill the worker of a lost slot and wait before the next one; returns what was queued on it."""
        queued = [call.item for call in slot.calls]
        slot.calls.clear()
        slot.warm = False
        slot.losses += 1
        slot.state = SlotState.BACKING_OFF
        slot.until = now + self._policy.backoff_s(slot.losses, self._random.random())
        self._executor.retire(slot.number)
        return queued

    def is_trusted(self, slot: Slot) -> bool:
        """Whether the slot is not on probation for deaths in a row."""
        return slot.state is not SlotState.QUARANTINED and slot.deaths < self._policy.probation_deaths

    def is_running(self) -> bool:
        """Whether any slot holds a call."""
        return any(slot.calls for slot in self)

    def is_changing(self) -> bool:
        """Whether any slot will become ready, or fail to."""
        return any(slot.state in (SlotState.STARTING, SlotState.BACKING_OFF) for slot in self)

    def spent_s(self, now: float) -> float:
        """Slot seconds spent on calls, running ones included."""
        running = sum(now - slot.calls[0].since for slot in self if slot.calls)
        return running + sum(slot.busy_s for slot in self)
