"""What the scheduler will run next: units put back after a failure, then fresh ones from the source.

Each unit travels as a `Job` that remembers what has gone wrong under it. The rules of blame live here:

- A unit under which as many slots died as `Policy.strikes` says, or one hung, is taken apart into single tasks; a
  single task under which as many died or hung on its own is failed. A hang costs a deadline, so one is enough.
- A unit whose worker raised is taken apart at once; a single task that raises is failed.
- Out of memory halves every later unit of that kind and size; a single task that does not fit is failed.

Every method that ends tasks returns their outcomes; no task is ever both returned and kept. Memory is bounded: a fresh
unit is fetched only when no fresh one is waiting, so what waits is what was in flight once.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.clock import Clock
from pipeline.contract.errors import Code, Status
from pipeline.contract.units import Kind, Outcome, TrainUnit, Unit
from pipeline.engine.policy import Policy

_CAUSE_CHARACTERS = 400  # an outcome stays under 1 KB

_REMEDY = {
    Code.WORKER_DIED: "It did so every time it ran alone: give the workers more memory, or leave this row out.",
    Code.TIMED_OUT: "Raise the deadline, or make the row cheaper: fewer steps or a smaller size.",
    Code.OUT_OF_MEMORY: "It does not fit even alone: ask for a smaller size, or use an accelerator with more memory.",
    Code.INTERNAL: "This is a fault of the program, not of the row: please report it with this message.",
}


class WorkSource(Protocol):
    """Where units come from; the driver's memory must not grow with what is behind it."""

    def next(self) -> Unit | None:
        """A unit that can run now, each task once; None when nothing is ready until more is recorded."""
        ...

    def record(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Take final outcomes; returns those of dependants that can no longer run, which are final as well."""
        ...

    def unfinished(self) -> int:
        """Number of tasks without a final outcome."""
        ...


@dataclass(frozen=True)
class Job:
    """A unit and its history.

    Attributes:
        unit: its tasks have not ended.
        attempts: tries that ended badly and are charged to the tasks.
        strikes: the slots that died or hung while they ran it.
        alone: taken out of a unit that failed.
    """

    unit: Unit
    attempts: int = 0
    strikes: tuple[int, ...] = ()
    alone: bool = False

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills workers: it then runs with nothing queued on its slot."""
        return self.alone or bool(self.strikes)

    @property
    def size(self) -> int:
        """Number of tasks."""
        return len(self.unit.tasks)


def kind_of(unit: Unit) -> Kind:
    """The kind of a unit's tasks."""
    return "concept" if isinstance(unit, TrainUnit) else "render"


def part_of(unit: Unit, start: int, stop: int) -> Unit:
    """Tasks start..stop-1 of a unit, as a unit of their own."""
    return replace(unit, unit_id=f"{unit.unit_id}+{start}", tasks=unit.tasks[start:stop])


def _memory_class(unit: Unit) -> tuple[object, ...]:
    """What decides, besides the number of tasks, how much memory a unit takes."""
    if isinstance(unit, TrainUnit):
        return ("concept", unit.tasks[0].training.batch)
    return ("render", unit.tasks[0].shape.width, unit.tasks[0].shape.height)


class Backlog:
    """Jobs that wait, in the order in which they should run."""

    def __init__(self, source: WorkSource, policy: Policy, clock: Clock) -> None:
        self._source = source
        self._policy = policy
        self._clock = clock
        self._waiting: deque[Job] = deque()
        self._limits: dict[tuple[object, ...], int] = {}
        self._dry = False

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, accepts: Callable[[Job], bool], *, largest: int | None = None) -> Job | None:
        """The first job that `accepts`, cut to `largest` tasks and to what fits in memory; None when there is none."""
        for index, job in enumerate(self._waiting):
            if accepts(job):
                del self._waiting[index]
                return self._cut(job, largest)
        if self._dry or any(not job.suspect for job in self._waiting):
            return None
        unit = self._source.next()
        if unit is None:
            self._dry = True
            return None
        job = Job(unit)
        if accepts(job):
            return self._cut(job, largest)
        self._waiting.append(job)
        return None

    def _cut(self, job: Job, largest: int | None) -> Job:
        limit = min(self._limits.get(_memory_class(job.unit), job.size), largest or job.size)
        if limit >= job.size:
            return job
        self._waiting.appendleft(replace(job, unit=part_of(job.unit, limit, job.size)))
        return replace(job, unit=part_of(job.unit, 0, limit))

    def record(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Tell the source how tasks ended; returns the outcomes of their dependants."""
        self._dry = False
        return self._source.record(outcomes)

    def exhausted(self) -> bool:
        """Whether `take` can give nothing to anyone until more is recorded or put back."""
        return self._dry and not self._waiting

    def unfinished(self) -> int:
        """Number of tasks without a final outcome."""
        return self._source.unfinished()

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Jobs that are not to blame for anything: they go first, in the order given."""
        self._waiting.extendleft(reversed(list(jobs)))

    def strike(self, job: Job, slot: int, code: Code, message: str) -> list[Outcome]:
        """The slot died (WORKER_DIED) or hung (TIMED_OUT) while it ran the job."""
        job = replace(job, attempts=job.attempts + 1, strikes=(*job.strikes, slot))
        if len(job.strikes) >= self._policy.strikes or (code == Code.TIMED_OUT and job.size > 1):
            return self._apart(job, slot, code, message)
        if job.size == 1:
            self._waiting.append(job)  # others first: their success shows that the slot is sound
        else:
            self._waiting.appendleft(job)
        return []

    def raised(self, job: Job, slot: int, message: str) -> list[Outcome]:
        """The worker raised on the job: a bug, unless a single task shows otherwise."""
        return self._apart(replace(job, attempts=job.attempts + 1), slot, Code.INTERNAL, message)

    def out_of_memory(self, job: Job, slot: int, message: str) -> list[Outcome]:
        """The job did not fit; from now on no unit of its kind and size is more than half as large."""
        job = replace(job, attempts=job.attempts + 1)
        if job.size == 1:
            return [self._failed(job, slot, Code.OUT_OF_MEMORY, message)]
        memory_class = _memory_class(job.unit)
        self._limits[memory_class] = min(self._limits.get(memory_class, job.size), job.size // 2)
        self._waiting.appendleft(job)
        return []

    def pardon(self, job: Job, slot: int) -> Job:
        """The job without the strikes of a slot that turned out to be bad itself."""
        return replace(job, strikes=tuple(number for number in job.strikes if number != slot))

    def pardon_all(self, slot: int) -> None:
        """`pardon` for every job that waits."""
        self._waiting = deque(self.pardon(job, slot) for job in self._waiting)

    def _apart(self, job: Job, slot: int, code: Code, message: str) -> list[Outcome]:
        if job.size == 1:
            return [self._failed(job, slot, code, message)]
        singles = [part_of(job.unit, index, index + 1) for index in range(job.size)]
        self.put_back(Job(unit, attempts=job.attempts, alone=True) for unit in singles)
        return []

    def _failed(self, job: Job, slot: int, code: Code, message: str) -> Outcome:
        return Outcome(
            kind=kind_of(job.unit),
            key=job.unit.tasks[0].key,
            status=Status.FAILED,
            error_code=code,
            error_message=f"{message[:_CAUSE_CHARACTERS].rstrip('. ')}. {_REMEDY[code]}",
            attempts=job.attempts,
            worker=f"slot-{slot}",
            finished_at=self._clock.wall(),
        )
