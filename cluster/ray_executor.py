"""Slots as Ray actors with one warm worker each. Ray restarts and retries nothing; that is left to the scheduler.

The first slot starts alone, because its worker may write what the others read (a metric, a cache of weights). The
others start when it is ready, or when its first unit has shown how many of them can share a GPU. A slot on a node that
is about to leave ends its units and starts on another node. What is sent is small: units to a worker, outcomes back.
Each failure of Ray becomes a `Failure`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
from ray import cloudpickle
from ray import exceptions as errors

from cluster.actor import FINISH, WATCH, SlotActor
from cluster.failures import failure_of_ray
from cluster.fitness import Needs
from cluster.fleet import SlotResources
from pipeline.contract.units import Activity, Machine, TrainUnit, Unit
from pipeline.engine.executor import Completion, Failure, Worker

_GRACE_S = 5.0  # for idle workers to close; a busy one is killed, and its checkpoints limit the loss
_ASK_EVERY_S = 1.0  # what workers are doing
_SHOW_EVERY_S = 0.25  # the answers: the scheduler wants them at each event
_LOOK_EVERY_S = 5.0  # for new nodes
_DRAIN_EVERY_S = 2.0  # which nodes are about to leave: a spot machine has two minutes, a Kubernetes pod 30 seconds
_MEASURE_S = 10.0  # for a worker to say what memory it has had


class Supply(Protocol):
    """What a cluster gives to one run; see `cluster.fleet.Fleet`."""

    def wanted(self) -> int:
        """How many workers there should be now. Their number never shrinks."""
        ...

    def draining(self) -> Collection[str]:
        """Ray's ids of the nodes that are about to leave."""
        ...

    def shared(self, machine: Machine) -> SlotResources:
        """What each worker but the first gets, once a unit has shown what memory it takes."""
        ...


@dataclass(frozen=True)
class _Call:
    number: int
    computed: Any  # the reference of its first half, which gives nothing
    reference: Any  # of its second half, which gives its outcomes
    is_training: bool


@dataclass
class _Slot:
    actor: Any
    starting: Any  # the reference of its set-up; None when it is ready
    calls: deque[_Call] = field(default_factory=deque)
    node: str = ""  # Ray's id of its node; empty until it is ready
    kind: str = ""  # of its machine, its share of a GPU included
    leaving: bool = False  # its node is about to leave
    asked: Any = None  # the reference of the question what it is doing; None when there is none
    activity: Activity | None = None  # the latest answer

    def oldest(self) -> Any:
        """The reference of the oldest call, which completes first because an actor ends its calls in order; or None."""
        return self.calls[0].reference if self.calls else None

    def is_overlapped(self) -> bool:
        """Whether the oldest call was computed when its worker was lost, so that the next one had begun."""
        return len(self.calls) > 1 and _is_over(self.calls[0].computed)

    def is_worth_asking(self) -> bool:
        """Whether it may estimate a metric or train."""
        return self.starting is not None or (bool(self.calls) and self.calls[0].is_training)


def _is_over(reference: Any) -> bool:
    """Whether a call came to its end, and not its actor."""
    if not ray.wait([reference], timeout=0)[0]:
        return False
    try:
        ray.get(reference)
    except errors.RayError:
        return False
    return True


def _answer(reference: Any) -> Activity | None:
    try:
        return ray.get(reference)
    except errors.RayError:  # the worker is gone, which its call reports
        return None


class RayExecutor:
    """`pipeline.engine.executor.Executor` on the Ray that this process is connected to."""

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        *,
        slots: int,
        resources: SlotResources,
        env_vars: Mapping[str, str] | None = None,
        needs: Needs | None = None,
        supply: Supply | None = None,
        measured: bool = False,
    ) -> None:
        """Start the first slot, without waiting for it.

        Args:
            make_worker: called in each actor; it is sent by value, so it must be small.
            slots: number of workers at first.
            resources: of each slot.
            env_vars: added to the environment of each process before the worker's modules are imported.
            needs: what a node must have; a worker on a node without it does not start.
            supply: a cluster whose nodes come and go; None on one machine.
            measured: whether the other slots wait until the first one's work has shown what memory a worker needs.

        Raises:
            ValueError: `slots` is less than 1.
        """
        if slots < 1:
            raise ValueError(f"slots is {slots}: use 1 or more")
        remote: Any = ray.remote
        self._actor_class = remote(concurrency_groups={WATCH: 1, FINISH: 1})(SlotActor)
        threads = str(resources.threads)
        self._arguments = (
            cloudpickle.dumps(make_worker),  # pyright: ignore[reportPrivateImportUsage]
            {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **(env_vars or {})},
            needs,
        )
        self._first = self._others = resources
        self._slots: dict[int, _Slot] = {}
        # The same tuples until a slot starts, is ready or is lost, so that the scheduler sees that nothing has changed.
        self._listed: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._oldest: dict[Any, int] = {}  # what each slot completes next, and the slot's number
        self._waiting = tuple(range(1, slots))  # until the first slot is ready
        self._count = slots
        self._supply = supply
        self._unmeasured = measured and supply is not None
        self._looked_at = self._drains_seen_at = time.monotonic()
        self._was_ready = False  # whether the first slot has been
        self._calls = 0
        self._asked_at = self._shown_at = -math.inf
        self._shown: tuple[Activity, ...] = ()
        self._start(0)

    def _start(self, number: int) -> None:
        resources = self._others if number else self._first
        actor = self._actor_class.options(
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
            resources=dict(resources.resources) or None,
            accelerator_type=resources.accelerator,
            label_selector=dict(resources.labels) or None,
            max_restarts=0,
            max_task_retries=0,
            enable_task_events=False,
        ).remote(*self._arguments)
        self._slots[number] = _Slot(actor, actor.setup.remote())
        self._oldest[self._slots[number].starting] = number
        self._listed = None

    def slots(self) -> tuple[int, ...]:
        """See `Executor`."""
        return self._lists()[0]

    def starting(self) -> tuple[int, ...]:
        """See `Executor`. Does not include slots that wait for the first one."""
        return self._lists()[1]

    def _lists(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self._listed is None:
            ready = tuple(sorted(n for n, slot in self._slots.items() if slot.starting is None and not slot.leaving))
            starting = tuple(sorted(n for n, slot in self._slots.items() if slot.starting is not None))
            self._listed = ready, starting
        return self._listed

    def machine(self, slot: int) -> str:
        """See `Executor`."""
        return self._slots[slot].kind

    def submit(self, slot: int, unit: Unit) -> int:
        """See `Executor`."""
        self._calls += 1
        actor = self._slots[slot].actor
        computed, reference = actor.compute.remote(unit), actor.finish.remote()
        if not self._slots[slot].calls:
            self._oldest[reference] = slot
        self._slots[slot].calls.append(_Call(self._calls, computed, reference, isinstance(unit, TrainUnit)))
        return self._calls

    def wait(self, timeout_s: float) -> Sequence[Completion]:
        """See `Executor`. Also learns which slots have become ready, and follows the nodes of the cluster."""
        self._grow()
        self._leave()
        if not self._oldest:
            time.sleep(timeout_s)
            return []
        references = list(self._oldest)
        ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s)
        if ready and len(references) > 1:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        completions = [self._collect(self._oldest.pop(reference), reference) for reference in ready]
        return [completion for completion in completions if completion is not None]

    def _grow(self) -> None:
        """Start the slots that new nodes have room for, once the first slot has been ready."""
        if self._supply is None or not self._was_ready or self._unmeasured:
            return
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        before, self._count = self._count, max(self._count, self._supply.wanted())
        for number in range(before, self._count):
            self._start(number)

    def _leave(self) -> None:
        """Give no more units to slots whose node is about to leave."""
        if self._supply is None or time.monotonic() - self._drains_seen_at < _DRAIN_EVERY_S:
            return
        self._drains_seen_at = time.monotonic()
        draining = self._supply.draining()
        for number, slot in list(self._slots.items()):
            if slot.node in draining and not slot.leaving:
                slot.leaving, self._listed = True, None
                self._move(number)

    def _move(self, number: int) -> None:
        """Start a leaving slot on another node if it is idle."""
        slot = self._slots.get(number)
        if slot is not None and slot.leaving and not slot.calls:
            self.replace(number)

    def _measure(self, slot: _Slot) -> None:
        """Decide how many workers share a GPU, and start the others."""
        assert self._supply is not None
        try:
            machine: Machine = ray.get(slot.actor.machine.remote(), timeout=_MEASURE_S)
        except (errors.RayError, errors.GetTimeoutError):  # the next unit will show it
            return
        self._unmeasured, self._others = False, self._supply.shared(machine)
        self._start_waiting()
        self._looked_at = -math.inf

    def _start_waiting(self) -> None:
        waiting, self._waiting = self._waiting, ()
        for number in waiting:
            self._start(number)

    def _collect(self, number: int, reference: Any) -> Completion | None:
        slot = self._slots[number]
        try:
            result: Any = ray.get(reference)
        except errors.RayError as error:
            result = replace(failure_of_ray(error), overlapped=slot.is_overlapped())
        if slot.starting is not None:
            if isinstance(result, Failure):
                self.retire(number)
                return Completion(None, number, failure=result)
            share = (self._others if number else self._first).num_gpus
            slot.kind = f"{result.machine.kind}, {share:.3g} of a GPU" if 0 < share < 1 else result.machine.kind
            slot.starting, slot.node, self._was_ready, self._listed = None, result.node, True, None
            self._shown_at = -math.inf
            if not self._unmeasured:
                self._start_waiting()
            return None
        call = slot.calls.popleft()
        if slot.calls:
            self._oldest[slot.oldest()] = number
        if call.is_training:
            self._shown_at = -math.inf
        if isinstance(result, Failure):
            if result.kind in ("died", "unavailable"):
                self.retire(number)
            self._move(number)
            return Completion(call.number, number, failure=result)
        if self._unmeasured and any(outcome.accelerator_s > 0 for outcome in result):
            self._measure(slot)
        self._move(number)
        return Completion(call.number, number, outcomes=result)

    def activities(self) -> tuple[Activity, ...]:
        """What workers were doing when last asked, about a second ago; see `pipeline.observer.Pulse`.

        Never waits: it asks, and reads the answers at a later call.
        """
        now = time.monotonic()
        if now - self._shown_at < _SHOW_EVERY_S:
            return self._shown
        self._shown_at = now
        asked = {slot.asked: slot for slot in self._slots.values() if slot.asked is not None}
        if asked:
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
            for reference in ready:
                asked[reference].asked, asked[reference].activity = None, _answer(reference)
        due = now - self._asked_at >= _ASK_EVERY_S
        if due:
            self._asked_at = now
        for slot in self._slots.values():
            if not slot.is_worth_asking():
                slot.activity = None
            elif due and slot.asked is None:
                slot.asked = slot.actor.activity.remote()
        self._shown = tuple(slot.activity for slot in self._slots.values() if slot.activity is not None)
        return self._shown

    def retire(self, slot: int) -> None:
        """See `Executor`."""
        gone = self._slots.pop(slot, None)
        if gone is not None:
            if gone.starting is None and self._unmeasured:  # the others must not depend on a worker that is lost
                self._unmeasured = False
                self._start_waiting()
            self._listed = None
            self._oldest.pop(gone.starting if gone.starting is not None else gone.oldest(), None)
            ray.kill(gone.actor, no_restart=True)

    def replace(self, slot: int) -> None:
        """See `Executor`."""
        self.retire(slot)
        self._start(slot)

    def close(self) -> None:
        """See `Executor`."""
        closing = [
            slot.actor.close.remote() for slot in self._slots.values() if slot.starting is None and not slot.calls
        ]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_GRACE_S)
        for number in list(self._slots):
            self.retire(number)
