"""What runs next: units put back after a failure, then fresh units from the source; and who is blamed for a failure.

A unit is a `WorkItem`, which records the failures of its attempts. The rules of blame:

- A unit that killed as many slots as `Policy.strikes` says is split into single tasks; so is a unit that hung once,
  because a hang costs a whole deadline. A single task that kills or hangs that many slots alone fails.
- If a worker dies while it writes the objects of one unit and computes the next one, either may be the cause. Neither
  is charged, and each of them runs once more with nothing before or behind it, so that a second death has one cause.
- A unit whose worker raised an exception is split at once; a single task that raises fails.
- Out of memory halves all later units of that kind and size on machines of that kind. A single task that does not fit
  waits for a machine of another kind, and fails if there is none. After a few of them in a row, all units of that kind
  and size are left to other machines.

A method that ends tasks returns their outcomes; no task is both returned and kept. Memory is bounded: a fresh unit is
fetched only when no fresh unit waits and few units wait for other machines, so at most as many units wait as were in
flight at once, and those few.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.clock import Clock
from pipeline.contract.errors import Code, Status
from pipeline.contract.messages import clip
from pipeline.contract.units import MESSAGE_BYTES, Kind, Outcome, TrainUnit, Unit
from pipeline.engine.policy import Policy


class WorkSource(Protocol):
    """Where units come from. Its memory must not grow with the number of tasks."""

    def next(self) -> Unit | None:
        """A unit that can run now; None if there is none until more outcomes are recorded. Gives each task once."""
        ...

    def record(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Take final outcomes; returns the outcomes, also final, of dependants that can no longer run."""
        ...

    def unfinished(self) -> int:
        """Number of tasks without a final outcome."""
        ...


@dataclass(frozen=True)
class WorkItem:
    """A unit and its history.

    Attributes:
        unit: tasks without an outcome.
        attempts: failed attempts that are charged to the tasks.
        strikes: numbers of the slots that died or hung while they ran it.
        alone: whether it is a single task split off from a unit that failed.
        unfit: kinds of machines on which it did not fit in memory alone.
        doubted: whether it was one of two units of which one lost a worker.
    """

    unit: Unit
    attempts: int = 0
    strikes: tuple[int, ...] = ()
    alone: bool = False
    unfit: frozenset[str] = frozenset()
    doubted: bool = False

    @property
    def suspect(self) -> bool:
        """Whether it may kill workers; nothing is queued behind a suspect."""
        return self.alone or self.doubted or bool(self.strikes)

    @property
    def size(self) -> int:
        """Number of tasks."""
        return len(self.unit.tasks)


_MISSES = 3  # single tasks in a row
_MOST_UNFIT = 64  # units that wait for a machine of another kind before no more are fetched


def kind_of(unit: Unit) -> Kind:
    """The kind of a unit's tasks."""
    return "concept" if isinstance(unit, TrainUnit) else "render"


def part_of(unit: Unit, start: int, stop: int) -> Unit:
    """Tasks start..stop-1 of a unit, as a unit with its own id."""
    return replace(unit, unit_id=f"{unit.unit_id}+{start}", tasks=unit.tasks[start:stop])


def _memory_class(unit: Unit) -> tuple[object, ...]:
    """What decides, besides the number of tasks, how much memory a unit needs."""
    if isinstance(unit, TrainUnit):
        return ("concept", unit.tasks[0].training.batch)
    return ("render", unit.tasks[0].shape.width, unit.tasks[0].shape.height)


def _remedy(code: Code, kind: Kind) -> str:
    """What a user can do about a task that failed on its own."""
    match code, kind:
        case Code.WORKER_DIED, _:
            return "It did so each time it ran alone: give each worker more memory (fewer cluster.slots), or remove it."
        case Code.TIMED_OUT, "concept":
            return "Raise that setting, or lower train.steps."
        case Code.TIMED_OUT, _:
            return "Raise that setting, or ask for fewer steps or a smaller size."
        case Code.OUT_OF_MEMORY, "concept":
            return "It does not fit even alone: use a machine with more memory."
        case Code.OUT_OF_MEMORY, _:
            return "It does not fit even alone: ask for a smaller size, or use a machine with more memory."
        case _:
            return "This is a bug in perfusion, not in the row: report it with this message."


class Backlog:
    """Work items in the order in which they should run."""

    def __init__(self, source: WorkSource, policy: Policy, clock: Clock) -> None:
        self._source = source
        self._policy = policy
        self._clock = clock
        self._waiting: deque[WorkItem] = deque()
        # By kind of machine and memory class: how many tasks fit, and single tasks in a row that did not.
        self._limits: dict[tuple[str, tuple[object, ...]], int] = {}
        self._misses = Counter[tuple[str, tuple[object, ...]]]()
        self._dry = False

    def take(
        self, accepts: Callable[[WorkItem], bool], *, machine: str = "", largest: int | None = None
    ) -> WorkItem | None:
        """The first item for which `accepts` is true and that fits on this kind of machine; None if there is none.

        It is cut to `largest` tasks, and to what fits.
        """
        for index, item in enumerate(self._waiting):
            if self.fits(item, machine) and accepts(item):
                del self._waiting[index]
                return self._cut(item, machine, largest)
        if self._dry or any(not item.suspect and self.fits(item, machine) for item in self._waiting):
            return None
        if sum(not self.fits(item, machine) for item in self._waiting) >= _MOST_UNFIT:
            return None
        unit = self._source.next()
        if unit is None:
            self._dry = True
            return None
        item = WorkItem(unit)
        if self.fits(item, machine) and accepts(item):
            return self._cut(item, machine, largest)
        self._waiting.append(item)
        return None

    def _cut(self, item: WorkItem, machine: str, largest: int | None) -> WorkItem:
        limit = min(self._limits.get((machine, _memory_class(item.unit)), item.size), largest or item.size)
        if limit >= item.size:
            return item
        self._waiting.appendleft(replace(item, unit=part_of(item.unit, limit, item.size)))
        return replace(item, unit=part_of(item.unit, 0, limit))

    def record(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Tell the source how tasks ended; returns the outcomes of their dependants."""
        self._dry = False
        return self._source.record(outcomes)

    def exhausted(self) -> bool:
        """Whether `take` returns None for any slot until something is recorded or put back."""
        return self._dry and not self._waiting

    def is_waiting(self) -> bool:
        """Whether an item waits that was fetched already."""
        return bool(self._waiting)

    def has_work(self) -> bool:
        """Whether an item waits; asks the source for a unit if none does. Call it when a slot has room."""
        if not self._waiting and not self._dry:
            unit = self._source.next()
            if unit is None:
                self._dry = True
            else:
                self._waiting.append(WorkItem(unit))
        return bool(self._waiting)

    def unfinished(self) -> int:
        """Number of tasks without a final outcome."""
        return self._source.unfinished()

    def put_back(self, items: Iterable[WorkItem]) -> None:
        """Jobs that are not to blame for anything: they go first, in the order given."""
        self._waiting.extendleft(reversed(list(items)))

    def strike(self, item: WorkItem, slot: int, code: Code, message: str) -> list[Outcome]:
        """Blame the item for a slot that died (WORKER_DIED) or hung (TIMED_OUT) while it ran it."""
        item = replace(item, attempts=item.attempts + 1, strikes=(*item.strikes, slot))
        if len(item.strikes) >= self._policy.strikes or (code == Code.TIMED_OUT and item.size > 1):
            return self._split(item, slot, code, message)
        if item.size == 1:
            self._waiting.append(item)  # behind the others: their success shows that the slot is sound
        else:
            self._waiting.appendleft(item)
        return []

    def raised(self, item: WorkItem, slot: int, message: str) -> list[Outcome]:
        """Blame the item for an exception of its worker, whose message is `message`."""
        return self._split(replace(item, attempts=item.attempts + 1), slot, Code.INTERNAL, message)

    def out_of_memory(
        self, item: WorkItem, slot: int, message: str, *, machine: str = "", others: Iterable[str] = ()
    ) -> list[Outcome]:
        """The item did not fit in memory; later units of its kind and size are smaller on this kind of machine.

        Args:
            item: a unit, or a single task.
            slot: number of the slot that ran it.
            message: what the worker said.
            machine: the slot's kind of machine.
            others: kinds of machines of all slots that are in use.
        """
        item = replace(item, attempts=item.attempts + 1)
        if item.size > 1:
            memory_class = machine, _memory_class(item.unit)
            self._limits[memory_class] = min(self._limits.get(memory_class, item.size), item.size // 2)
        else:
            item = replace(item, unfit=item.unfit | {machine})
            self._misses[machine, _memory_class(item.unit)] += 1
            if not any(other not in item.unfit for other in others):
                return [self._failed(item, slot, Code.OUT_OF_MEMORY, message)]
        self._waiting.appendleft(item)
        return []

    def fits(self, item: WorkItem, machine: str) -> bool:
        """Whether an item may fit in memory on a kind of machine."""
        return machine not in item.unfit and self._misses[machine, _memory_class(item.unit)] < _MISSES

    def fitted(self, item: WorkItem, machine: str) -> None:
        """An item fitted in memory on a kind of machine."""
        if self._misses:
            self._misses.pop((machine, _memory_class(item.unit)), None)

    def retry_unfit(self) -> bool:
        """Let every machine try again what did not fit on it: no other can. Returns whether anything waits for that."""
        found = any(item.unfit for item in self._waiting) or (bool(self._waiting) and bool(self._misses))
        self._misses.clear()
        self._waiting = deque(replace(item, unfit=frozenset()) for item in self._waiting)
        return found

    def pardon(self, item: WorkItem, slot: int) -> WorkItem:
        """The item without the strikes of a slot that was quarantined."""
        return replace(item, strikes=tuple(number for number in item.strikes if number != slot))

    def pardon_all(self, slot: int) -> None:
        """`pardon` for all waiting items."""
        self._waiting = deque(self.pardon(item, slot) for item in self._waiting)

    def _split(self, item: WorkItem, slot: int, code: Code, message: str) -> list[Outcome]:
        if item.size == 1:
            return [self._failed(item, slot, code, message)]
        singles = [part_of(item.unit, index, index + 1) for index in range(item.size)]
        self.put_back(WorkItem(unit, attempts=item.attempts, alone=True) for unit in singles)
        return []

    def _failed(self, item: WorkItem, slot: int, code: Code, message: str) -> Outcome:
        kind = kind_of(item.unit)
        remedy = f". {_remedy(code, kind)}"
        return Outcome(
            kind=kind,
            key=item.unit.tasks[0].key,
            status=Status.FAILED,
            error_code=code,
            error_message=clip(message.rstrip(". "), MESSAGE_BYTES - len(remedy.encode())) + remedy,
            attempts=item.attempts,
            worker=f"slot-{slot}",
            finished_at=self._clock.wall(),
        )
