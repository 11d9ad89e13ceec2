"""The interface between the scheduler and what runs units: Ray in production, a simulation in tests.

A slot is one accelerator, or a share of a CPU machine, with one warm worker. It computes its calls one after another in
the order in which they were submitted, and they complete in that order. While it computes a call, it may still write
the objects of the one before. A failing unit raises nothing here: failures are values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.contract.units import Activity, Machine, Outcome, Unit

FailureKind = Literal["died", "unavailable", "out_of_memory", "raised"]


@dataclass(frozen=True)
class Failure:
    """Why a call, or the start of a slot, gave no outcomes.

    After `died` and `unavailable` the slot has no worker. After `out_of_memory` and `raised` the worker is usable,
    unless it raised while it started.

    Attributes:
        kind: died (the process ended), unavailable (it is unknown whether the call ran: the infrastructure is at
            fault), out_of_memory (of the accelerator or the host), raised (an exception: a bug, or a setting that
            cannot work).
        message: the cause, or the text of the exception.
        preempted: whether the machine was taken away, so that the death says nothing about the work.
        overlapped: whether the worker died while it wrote the objects of this call and computed the next one, so that
            either of them may be the cause.
    """

    kind: FailureKind
    message: str
    preempted: bool = False
    overlapped: bool = False

    @property
    def infrastructure(self) -> bool:
        """Whether neither the row nor the slot is at fault."""
        return self.kind == "unavailable" or self.preempted


@dataclass(frozen=True)
class Completion:
    """A call that ended, with its outcomes or a failure; or, if `call` is None, a slot that failed to start."""

    call: int | None
    slot: int
    outcomes: tuple[Outcome, ...] = ()
    failure: Failure | None = None


class Worker(Protocol):
    """The process of a slot: loads the models once, then runs units, writes objects and returns outcomes."""

    def setup(self) -> None:
        """Load what each unit needs. An exception means that the slot cannot start."""
        ...

    def compute(self, unit: Unit) -> Callable[[], list[Outcome]]:
        """Do what a unit needs the accelerator for; never called while another unit is computed.

        Returns:
            A function that writes what is left to write, and returns exactly one outcome for each task of the unit. It
            is called once, in another thread, perhaps while the next unit is computed.
        """
        ...

    def machine(self) -> Machine:
        """What the worker runs on; called after `setup`, also while a unit is in progress."""
        ...

    def activity(self) -> Activity | None:
        """What the worker is doing, or None; called from another thread while it does so."""
        ...

    def counters(self) -> Mapping[str, float]:
        """What the worker has counted since it was made, for metrics: `storage_retries`."""
        ...

    def close(self) -> None:
        """Release what `setup` loaded. Not called when the process is killed."""
        ...


class Executor(Protocol):
    """Slots, numbered from 0, and their calls. Not thread-safe."""

    def slots(self) -> tuple[int, ...]:
        """Numbers of the slots that take units now, ascending.

        A slot that is in neither list although it was ready is leaving: it ends its calls, and then starts again.
        """
        ...

    def starting(self) -> tuple[int, ...]:
        """Numbers of the slots whose worker starts, ascending. None of them holds a call."""
        ...

    def machine(self, slot: int) -> str:
        """The kind of machine of a slot of `slots()`: what fits in memory on one fits on all of its kind."""
        ...

    def submit(self, slot: int, unit: Unit) -> int:
        """Give a unit to a slot of `slots()`; returns the number of the call, higher than all earlier ones."""
        ...

    def wait(self, timeout_s: float) -> Sequence[Completion]:
        """Wait for the first completion, at most `timeout_s`; returns completions, by ascending call in each slot.

        When a slot is lost, only its oldest call completes; the others never do. If the next one was computed already,
        the failure is `overlapped`.
        """
        ...

    def retire(self, slot: int) -> None:
        """Kill the slot's worker; its calls never complete. The slot stays empty until `replace`."""
        ...

    def replace(self, slot: int) -> None:
        """Kill the slot's worker, as `retire` does, and start a new one."""
        ...

    def close(self) -> None:
        """End all workers: idle ones gracefully, busy ones at once. May be called twice."""
        ...
