"""Slots as Ray actors with one warm worker each. Ray restarts and retries nothing; that is left to the scheduler.

The first slot starts alone, because its worker may write what the others read (a metric, a cache of weights). The
others start when it is ready. What is sent is small: units to a worker, outcomes back. A worker's exception is sent as
text, so that the driver needs none of the worker's classes. Each failure of Ray becomes a `Failure`.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import cloudpickle
from ray import exceptions as errors

from cluster.failures import failure_of_ray, failure_of_worker, text_of
from cluster.fitness import Needs, problems
from cluster.fleet import SlotResources
from pipeline.contract.units import Activity, Outcome, TrainUnit, Unit
from pipeline.engine.executor import Completion, Failure, Worker

_GRACE_S = 5.0  # for idle workers to close; a busy one is killed, and its checkpoints limit the loss
_ASK_EVERY_S = 1.0  # what workers are doing
_SHOW_EVERY_S = 0.25  # the answers: the scheduler wants them at each event
_LOOK_EVERY_S = 5.0  # for new nodes
_WATCH = "watch"  # the concurrency group that answers while a unit runs


class _Actor:
    """The process of a slot. Its environment is set before the worker's modules are imported."""

    def __init__(self, make_worker: bytes, env_vars: dict[str, str], needs: Needs | None) -> None:
        os.environ.update(env_vars)
        self._make_worker = make_worker
        self._needs = needs
        self._worker: Worker | None = None

    def setup(self) -> Failure | None:
        """Make the worker if this node is fit for it; returns None when it is ready."""
        try:
            lacks = problems(self._needs) if self._needs else []
            if lacks:
                return Failure("raised", f"node {ray.util.get_node_ip_address()}: {'; '.join(lacks)}")
            worker: Worker = cloudpickle.loads(self._make_worker)()
            self._worker = worker
            worker.setup()
        except Exception as error:  # noqa: BLE001 (the boundary of the process: any exception becomes text)
            return Failure("raised", text_of(error))
        return None

    def run(self, unit: Unit) -> tuple[Outcome, ...] | Failure:
        """Run one unit."""
        assert self._worker is not None
        try:
            return tuple(self._worker.run(unit))
        except Exception as error:  # noqa: BLE001 (as above)
            return failure_of_worker(error)

    @ray.method(concurrency_group=_WATCH)
    def activity(self) -> Activity | None:
        """What the worker is doing; answered while `setup` or `run` is in progress."""
        return self._worker.activity() if self._worker is not None else None

    def close(self) -> None:
        """Close the worker."""
        if self._worker is not None:
            self._worker.close()


@dataclass(frozen=True)
class _Call:
    number: int
    reference: Any
    is_training: bool


@dataclass
class _Slot:
    actor: Any
    starting: Any  # the reference of its set-up; None when it is ready
    calls: deque[_Call] = field(default_factory=deque)
    asked: Any = None  # the reference of the question what it is doing; None when there is none
    activity: Activity | None = None  # the latest answer

    def oldest(self) -> Any:
        """The reference of the oldest call, which completes first because an actor runs its calls in order; or None."""
        return self.calls[0].reference if self.calls else None

    def is_worth_asking(self) -> bool:
        """Whether it may estimate a metric or train."""
        return self.starting is not None or (bool(self.calls) and self.calls[0].is_training)


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
        wanted: Callable[[], int] | None = None,
    ) -> None:
        """Start the first slot, without waiting for it.

        Args:
            make_worker: called in each actor; it is sent by value, so it must be small.
            slots: number of workers at first.
            resources: of each slot.
            env_vars: added to the environment of each process before the worker's modules are imported.
            needs: what a node must have; a worker on a node without it does not start.
            wanted: how many workers there should be now; asked every few seconds. Their number never shrinks.

        Raises:
            ValueError: `slots` is less than 1.
        """
        if slots < 1:
            raise ValueError(f"slots is {slots}: use 1 or more")
        threads = str(resources.threads)
        remote: Any = ray.remote
        actor_class = remote(concurrency_groups={_WATCH: 1})(_Actor)
        self._actor_class = actor_class.options(
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
            resources=dict(resources.resources) or None,
            accelerator_type=resources.accelerator,
            label_selector=dict(resources.labels) or None,
            max_restarts=0,
            max_task_retries=0,
            enable_task_events=False,
        )
        self._arguments = (
            cloudpickle.dumps(make_worker),  # pyright: ignore[reportPrivateImportUsage]
            {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **(env_vars or {})},
            needs,
        )
        self._slots: dict[int, _Slot] = {}
        # The same tuples until a slot starts, is ready or is lost, so that the scheduler sees that nothing has changed.
        self._listed: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._oldest: dict[Any, int] = {}  # what each slot completes next, and the slot's number
        self._waiting = tuple(range(1, slots))  # until the first slot is ready
        self._count = slots
        self._wanted = wanted
        self._looked_at = time.monotonic()
        self._was_ready = False  # whether the first slot has been
        self._calls = 0
        self._asked_at = self._shown_at = -math.inf
        self._shown: tuple[Activity, ...] = ()
        self._start(0)

    def _start(self, number: int) -> None:
        actor = self._actor_class.remote(*self._arguments)
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
            ready = tuple(sorted(number for number, slot in self._slots.items() if slot.starting is None))
            starting = tuple(sorted(number for number, slot in self._slots.items() if slot.starting is not None))
            self._listed = ready, starting
        return self._listed

    def submit(self, slot: int, unit: Unit) -> int:
        """See `Executor`."""
        self._calls += 1
        reference = self._slots[slot].actor.run.remote(unit)
        if not self._slots[slot].calls:
            self._oldest[reference] = slot
        self._slots[slot].calls.append(_Call(self._calls, reference, isinstance(unit, TrainUnit)))
        return self._calls

    def wait(self, timeout_s: float) -> Sequence[Completion]:
        """See `Executor`. Also learns which slots have become ready, and starts slots on new nodes."""
        self._grow()
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
        if self._wanted is None or not self._was_ready or time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        before, self._count = self._count, max(self._count, self._wanted())
        for number in range(before, self._count):
            self._start(number)

    def _collect(self, number: int, reference: Any) -> Completion | None:
        slot = self._slots[number]
        try:
            result: Any = ray.get(reference)
        except errors.RayError as error:
            result = failure_of_ray(error)
        if slot.starting is not None:
            if isinstance(result, Failure):
                self.retire(number)
                return Completion(None, number, failure=result)
            slot.starting, self._was_ready, self._listed = None, True, None
            self._shown_at = -math.inf
            waiting, self._waiting = self._waiting, ()
            for other in waiting:
                self._start(other)
            return None
        call = slot.calls.popleft()
        if slot.calls:
            self._oldest[slot.oldest()] = number
        if call.is_training:
            self._shown_at = -math.inf
        if isinstance(result, Failure):
            if result.kind in ("died", "unavailable"):
                self.retire(number)
            return Completion(call.number, number, failure=result)
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
