"""Slots as Ray actors: one warm worker each, started again only by the scheduler.

The first slot is set up alone, because its set-up may write what the others read (a metric, a cache of weights);
the others start when it is ready, without anyone waiting for them. Ray itself restarts and retries nothing. Values that
cross the wire are small: a unit goes out, rows come back; an exception of a worker travels as text, so that the driver
needs none of the worker's classes. Every failure of Ray ends as a `Failure`.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import cloudpickle
from ray import exceptions as errors

from pipeline.contract.messages import plain
from pipeline.contract.units import Outcome, Unit
from pipeline.engine.executor import Completion, Failure, Worker

_GRACE_S = 5.0  # for idle workers to close; a busy one is killed, and its checkpoints bound the loss
# PyTorch reports an unusable device with these words; the process cannot recover, every later call would fail too.
_DEVICE_LOST = ("AcceleratorError", "CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "NCCL error")
_NO_MEMORY = re.compile(r"CUDA error: out of memory|_STATUS_ALLOC_FAILED|can't allocate memory")
_TEXT_CHARACTERS = 600


@dataclass(frozen=True)
class SlotResources:
    """What Ray reserves for one slot, and how many threads its process computes with."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    threads: int = 1


class _Actor:
    """The process of a slot. Its environment is set before anything of the worker is imported."""

    def __init__(self, make_worker: bytes, env_vars: dict[str, str]) -> None:
        os.environ.update(env_vars)
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def setup(self) -> int | Failure:
        """Make the worker; returns the process id."""
        try:
            worker: Worker = cloudpickle.loads(self._make_worker)()
            worker.setup()
        except Exception as error:  # noqa: BLE001 (the boundary of the process: whatever it is becomes text)
            return Failure("raised", text_of(error))
        self._worker = worker
        return os.getpid()

    def run(self, unit: Unit) -> tuple[Outcome, ...] | Failure:
        """Run one unit."""
        assert self._worker is not None
        try:
            return tuple(self._worker.run(unit))
        except Exception as error:  # noqa: BLE001 (as above)
            return failure_of_worker(error)

    def close(self) -> None:
        """Let the worker go."""
        if self._worker is not None:
            self._worker.close()


def text_of(error: BaseException) -> str:
    """An exception's type, message and origin in one line."""
    origin = ""
    trace = error.__traceback__
    while trace is not None:
        origin = f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"  # noqa: PTH119
        trace = trace.tb_next
    return f"{type(error).__name__}: {_line(str(error))}{origin}"


def failure_of_worker(error: Exception) -> Failure:
    """What an exception inside `Worker.run` says about the unit and about the process."""
    # torch.OutOfMemoryError by name, without importing torch; its other allocators raise a plain error with a text.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(str(error)):
        return Failure("out_of_memory", text_of(error))
    if type(error).__name__ in _DEVICE_LOST or any(words in str(error) for words in _DEVICE_LOST):
        return Failure("died", f"its device is unusable: {text_of(error)}")
    return Failure("raised", text_of(error))


def failure_of_ray(error: errors.RayError) -> Failure:
    """What an error of Ray says about the call."""
    text = _line(str(error))
    if isinstance(error, errors.ActorDiedError):
        # A machine that vanishes says nothing about the row, and Ray has only these words for it.
        kind = "unavailable" if "its node has died" in text else "died"
        return Failure(kind, text, preempted=error.preempted)
    if isinstance(error, errors.OutOfMemoryError | errors.WorkerCrashedError):
        return Failure("died", text)
    if isinstance(error, errors.RayTaskError | errors.RuntimeEnvSetupError | errors.ActorUnschedulableError):
        return Failure("raised", text)
    return Failure("unavailable", text)


def _line(text: str) -> str:
    words = plain(text)
    return words if len(words) <= _TEXT_CHARACTERS else words[: _TEXT_CHARACTERS - 4] + " ..."


@dataclass
class _Slot:
    actor: Any
    starting: Any  # the reference of its set-up, None once it is ready
    pid: int | None = None
    calls: deque[tuple[int, Unit, Any]] = field(default_factory=deque)


class RayExecutor:
    """`pipeline.engine.executor.Executor` on the Ray that this process is connected to."""

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        *,
        slots: int,
        resources: SlotResources,
        env_vars: Mapping[str, str] | None = None,
    ) -> None:
        """Start the first slot; returns without waiting for it.

        Args:
            make_worker: called in each actor; what it holds is sent by value, so it must be small.
            slots: how many workers.
            resources: of each slot.
            env_vars: added to each process's environment before the worker's modules are imported.
        """
        if slots < 1:
            raise ValueError(f"slots is {slots}: at least one is needed to run anything")
        threads = str(resources.threads)
        actor_class: Any = ray.remote(_Actor)
        self._actor_class = actor_class.options(
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            enable_task_events=False,
        )
        self._arguments = (
            cloudpickle.dumps(make_worker),  # pyright: ignore[reportPrivateImportUsage]
            {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **(env_vars or {})},
        )
        self._slots: dict[int, _Slot] = {}
        self._waiting = tuple(range(1, slots))  # for the first slot to be ready
        self._calls = 0
        self._start(0)

    def _start(self, number: int) -> None:
        actor = self._actor_class.remote(*self._arguments)
        self._slots[number] = _Slot(actor, actor.setup.remote())

    def slots(self) -> tuple[int, ...]:
        """See `Executor`."""
        return tuple(sorted(number for number, slot in self._slots.items() if slot.starting is None))

    def starting(self) -> tuple[int, ...]:
        """See `Executor`. Slots that wait for the first one are not among them."""
        return tuple(sorted(number for number, slot in self._slots.items() if slot.starting is not None))

    def pid(self, number: int) -> int | None:
        """Process id of a ready slot's worker on its own machine."""
        slot = self._slots.get(number)
        return slot.pid if slot else None

    def submit(self, slot: int, unit: Unit) -> int:
        """See `Executor`."""
        self._calls += 1
        self._slots[slot].calls.append((self._calls, unit, self._slots[slot].actor.run.remote(unit)))
        return self._calls

    def wait(self, timeout_s: float) -> Sequence[Completion]:
        """See `Executor`. Also notices slots that have become ready."""
        # An actor runs its calls in order, so the oldest reference of a slot is the next to be there.
        oldest = {}
        for number, slot in self._slots.items():
            if slot.starting is not None:
                oldest[slot.starting] = number
            elif slot.calls:
                oldest[slot.calls[0][2]] = number
        if not oldest:
            time.sleep(timeout_s)
            return []
        references = list(oldest)
        ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s)
        if ready and len(references) > 1:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        completions = [self._collect(oldest[reference], reference) for reference in ready]
        return [completion for completion in completions if completion is not None]

    def _collect(self, number: int, reference: Any) -> Completion | None:
        slot = self._slots[number]
        try:
            result: Any = ray.get(reference)
        except errors.RayError as error:
            result = failure_of_ray(error)
        if slot.starting is not None:
            if isinstance(result, Failure):
                self.retire(number)
                return Completion(None, number, None, failure=result)
            slot.starting, slot.pid = None, result
            waiting, self._waiting = self._waiting, ()
            for other in waiting:
                self._start(other)
            return None
        call, unit, _ = slot.calls.popleft()
        if isinstance(result, Failure):
            if result.kind in ("died", "unavailable"):
                self.retire(number)
            return Completion(call, number, unit, failure=result)
        return Completion(call, number, unit, outcomes=result)

    def retire(self, slot: int) -> None:
        """See `Executor`."""
        gone = self._slots.pop(slot, None)
        if gone is not None:
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
