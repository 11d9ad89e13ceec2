"""A simulated executor and work source on a fake clock, with everything that can go wrong as data."""

import random
from collections import deque
from dataclasses import dataclass, field, replace

from perfusion_ops.config import TrainingConfig
from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.units import ConceptTask, Outcome, RenderShape, RenderTask, RenderUnit, TrainUnit
from pipeline.engine.executor import Completion, Failure

SHAPE = RenderShape(width=512, height=512, steps=20, guidance=6.0, scheduler="ddim")


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

    def unfinished(self):
        return len(self.open)


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
    small_slots: frozenset = frozenset()  # on machines of another kind, ...
    small_capacity: int = 1000  # ... on which this many tasks fit, ...
    too_big: frozenset = frozenset()  # ... and these not even alone
    moves: tuple = ()  # (seconds, slot): when the machine of a slot is about to leave
    bad_slots: frozenset = frozenset()  # die whatever they run
    outage: float = 0.0  # share of calls that end in an outage
    storm: tuple = (0.0, 0.0)  # seconds between which every call does
    unstartable: frozenset = frozenset()  # slots whose worker never comes up
    start_failure: Failure = field(default_factory=lambda: Failure("died", "no device"))
    store_s: float = 0.0  # seconds to write the objects of a unit, beside the next one; used by OverlappingPool


class Pool:
    """A simulated executor: one event at a time, on a fake clock."""

    def __init__(self, world, clock):
        self.world = world
        self.clock = clock
        self.random = random.Random(world.seed)
        self.calls = {slot: deque() for slot in range(world.slots)}
        self.live = set()
        self.ready_at = {slot: 5.0 * (slot > 0) for slot in range(world.slots)}
        self.moves = deque(sorted(world.moves))
        self.leaving = set()
        self.number = 0
        self.trace = []
        self.most = 0
        self.waits = 0

    def slots(self):
        return tuple(sorted(self.live))

    def starting(self):
        return tuple(sorted(self.ready_at))

    def machine(self, slot):
        return "small" if slot in self.world.small_slots else "large"

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
        small = slot in world.small_slots
        no_room = len(keys) > (world.small_capacity if small else world.capacity)
        if no_room or keys & world.huge or (small and keys & world.too_big):
            return 1.0, Failure("out_of_memory", "CUDA out of memory")
        if keys & world.bugs:
            return 1.0, Failure("raised", "ValueError: a bug")
        return lasts, tuple(ok(task) for task in unit.tasks)

    def wait(self, timeout_s):
        assert timeout_s >= 0
        self.waits += 1
        assert self.waits < 20_000, "it does not end"
        events = [(self._ends(slot), slot) for slot, calls in self.calls.items() if calls]
        events += [(at, slot) for slot, at in self.ready_at.items()]
        at, slot = min(events, default=(float("inf"), -1))
        if self.moves and self.moves[0][0] <= max(self.clock.now, min(at, self.clock.now + timeout_s)):
            at, slot = self.moves.popleft()
            self.clock.now = max(self.clock.now, at)
            if slot in self.live:
                self.live.remove(slot)
                self.leaving.add(slot)
                self._move(slot)
            return []
        if at > self.clock.now + timeout_s:
            self.clock.now += timeout_s
            return []
        self.clock.now = max(self.clock.now, at)
        if slot in self.ready_at:
            del self.ready_at[slot]
            if slot in self.world.unstartable:
                return [Completion(None, slot, failure=self.world.start_failure)]
            self.live.add(slot)
            return []
        number, result = self._complete(slot)
        if isinstance(result, Failure):
            if result.kind in ("died", "unavailable"):
                self.live.discard(slot)
                self.leaving.discard(slot)
                self.calls[slot].clear()
            self._begin(slot)
            self._move(slot)
            return [Completion(number, slot, failure=result)]
        self._begin(slot)
        self._move(slot)
        return [Completion(number, slot, outcomes=result)]

    def _ends(self, slot):
        """When the oldest call ends."""
        return self.calls[slot][0][2]

    def _complete(self, slot):
        number, _, _, result = self.calls[slot].popleft()
        return number, result

    def _move(self, slot):
        """Start a leaving slot elsewhere when it is idle."""
        if slot in self.leaving and not self.calls[slot]:
            self.replace(slot)

    def retire(self, slot):
        self.live.discard(slot)
        self.leaving.discard(slot)
        self.calls[slot].clear()
        self.ready_at.pop(slot, None)

    def replace(self, slot):
        self.retire(slot)
        self.ready_at[slot] = self.clock.now + 5.0

    def close(self):
        for slot in self.calls:
            self.retire(slot)


class OverlappingPool(Pool):
    """Writes the objects of a unit while it computes the next one; the third number of a call says when it is computed.

    A worker that is lost while it computes takes with it the unit whose objects it writes.
    """

    def _begin(self, slot):
        free = self.clock.now
        for call in self.calls[slot]:
            if call[2] is None:
                lasts, call[3] = self._fate(slot, call[1])
                call[2] = free + lasts
            free = max(free, call[2])

    def _stored(self, call):
        return call[2] + (0.0 if isinstance(call[3], Failure) else self.world.store_s)

    def _lost(self, call):
        lost = isinstance(call[3], Failure) and call[3].kind in ("died", "unavailable")
        return call[2] if lost else float("inf")

    def _ends(self, slot):
        first, *behind = self.calls[slot]
        return min(self._stored(first), *(self._lost(call) for call in behind[:1]), float("inf"))

    def _complete(self, slot):
        first, *behind = self.calls[slot]
        if self._stored(first) <= self._ends(slot):
            return super()._complete(slot)
        return first[0], replace(behind[0][3], overlapped=True)
