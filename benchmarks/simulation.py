"""A simulated cluster: slots, calls and failures are events on a simulated clock."""

import heapq
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.units import Outcome, TrainUnit, Unit
from pipeline.engine.executor import Completion, Failure

Fate = Literal["kills", "hangs", "diverges"]


@dataclass(frozen=True)
class World:
    """Durations in seconds, and rates of failures."""

    training_s: float = 60.0  # of one concept in a group
    render_s: float = 1.25  # of one picture in a batch
    spread: float = 0.25  # sigma of the logarithm
    slow_share: float = 0.05  # of the slots
    slow_factor: float = 1.5
    setup_s: tuple[float, float] = (60.0, 180.0)
    between_preemptions_s: float = 3 * 3600.0  # of one slot, in the mean


@dataclass
class Clock:
    """A clock that only the cluster advances."""

    now: float = 0.0

    def monotonic(self) -> float:
        """See `pipeline.clock.Clock`."""
        return self.now

    def wall(self) -> float:
        """See `pipeline.clock.Clock`."""
        return 1e9 + self.now


@dataclass
class _Slot:
    speed: float
    calls: deque[tuple[int, Unit]] = field(default_factory=deque)
    began: float = 0.0  # the oldest call
    up_since: float | None = None
    up_s: float = 0.0
    life: int = 0  # events of an earlier worker are stale


class Cluster:
    """An executor: a heap of events, one of which happens at each `wait`."""

    def __init__(self, slots: int, world: World, clock: Clock, fates: Mapping[str, Fate], seed: int) -> None:
        """`fates`: how tasks fail, by key."""
        self._world, self._clock, self._fates = world, clock, fates
        self._random = random.Random(seed)
        slow = [self._random.random() < world.slow_share for _ in range(slots)]
        self._slots = [_Slot(world.slow_factor if each else 1.0) for each in slow]
        self._events: list[tuple[float, int, int, int, str]] = []
        self._count = 0
        self._calls = 0
        self._live: set[int] = set()
        self._starting: set[int] = set()
        self._listed: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # until a slot starts, is ready or is lost
        self.useful_s = 0.0
        self.ended: Counter[str] = Counter()
        for number in range(slots):
            self._start(number)

    def machine(self, slot: int) -> str:  # noqa: ARG002 (as `Executor` says)
        """All machines are of one kind."""
        return ""

    def slots(self) -> tuple[int, ...]:
        """Slots that can take a unit; this and the methods below are those of `pipeline.engine.executor.Executor`."""
        return self._lists()[0]

    def starting(self) -> tuple[int, ...]:
        """Slots that are being set up."""
        return self._lists()[1]

    def _lists(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self._listed is None:
            self._listed = tuple(sorted(self._live)), tuple(sorted(self._starting))
        return self._listed

    def submit(self, slot: int, unit: Unit) -> int:
        """Give a unit to a slot."""
        self._calls += 1
        self._slots[slot].calls.append((self._calls, unit))
        if len(self._slots[slot].calls) == 1:
            self._begin(slot)
        return self._calls

    def wait(self, timeout_s: float) -> Sequence[Completion]:
        """Advance to the next event, at most by `timeout_s`."""
        until = self._clock.now + timeout_s
        while self._events and self._events[0][0] <= until:
            at, _, number, life, kind = heapq.heappop(self._events)
            if life != self._slots[number].life:
                continue
            self._clock.now = max(self._clock.now, at)
            return self._happen(number, kind)
        self._clock.now = until
        return []

    def retire(self, slot: int) -> None:
        """Kill the worker of a slot."""
        each = self._slots[slot]
        each.life += 1
        each.calls.clear()
        if each.up_since is not None:
            each.up_s += self._clock.now - each.up_since
            each.up_since = None
        self._live.discard(slot)
        self._starting.discard(slot)
        self._listed = None

    def replace(self, slot: int) -> None:
        """Start a new worker on a slot."""
        self.retire(slot)
        self._start(slot)

    def close(self) -> None:
        """End every worker."""
        for number in range(len(self._slots)):
            self.retire(number)

    def up_s(self) -> float:
        """Slot seconds of all workers, busy or idle."""
        return sum(each.up_s for each in self._slots)

    def _start(self, number: int) -> None:
        self._starting.add(number)
        self._listed = None
        self._later(self._random.uniform(*self._world.setup_s), number, "ready")

    def _later(self, seconds: float, number: int, kind: str) -> None:
        self._count += 1
        event = (self._clock.now + seconds, self._count, number, self._slots[number].life, kind)
        heapq.heappush(self._events, event)

    def _begin(self, number: int) -> None:
        slot, world = self._slots[number], self._world
        slot.began = self._clock.now
        _, unit = slot.calls[0]
        each = world.training_s if isinstance(unit, TrainUnit) else world.render_s
        lasts = each * len(unit.tasks) * slot.speed * self._random.lognormvariate(0.0, world.spread)
        fates = {self._fates.get(task.key) for task in unit.tasks}
        if "kills" in fates:
            self._later(lasts * self._random.random(), number, "kills")
        elif "hangs" not in fates:
            self._later(lasts, number, "ends")

    def _happen(self, number: int, kind: str) -> list[Completion]:
        slot = self._slots[number]
        if kind == "ready":
            self._starting.discard(number)
            self._live.add(number)
            self._listed = None
            slot.up_since = self._clock.now
            self._later(self._random.expovariate(1 / self._world.between_preemptions_s), number, "preempted")
            return []
        self.ended[kind] += 1
        if kind == "preempted" and not slot.calls:
            failure = Failure("died", "the machine was taken away", preempted=True)
            self.retire(number)
            return [Completion(None, number, failure=failure)]
        call, unit = slot.calls[0]
        if kind == "ends":
            slot.calls.popleft()
            self.useful_s += self._clock.now - slot.began
            if slot.calls:
                self._begin(number)
            outcomes = tuple(self._outcome(unit, task.key) for task in unit.tasks)
            return [Completion(call, number, outcomes=outcomes)]
        taken = kind == "preempted"
        message = "the machine was taken away" if taken else "killed by signal 11"
        self.retire(number)
        return [Completion(call, number, failure=Failure("died", message, preempted=taken))]

    def _outcome(self, unit: Unit, key: str) -> Outcome:
        kind = "concept" if isinstance(unit, TrainUnit) else "render"
        if self._fates.get(key) == "diverges":
            return Outcome(kind, key, Status.FAILED, Code.TRAINING_DIVERGED, "it diverged", finished_at=self._clock.now)
        origin = Origin.TRAINED if kind == "concept" else Origin.RENDERED
        return Outcome(kind, key, Status.OK, origin=origin, uri=f"memory://{key}", finished_at=self._clock.now)
