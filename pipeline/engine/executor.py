"""The seam between the scheduler and whatever runs units: Ray in production, a simulation in tests.

A slot is one accelerator (or one share of a CPU machine) with one warm worker on it. It runs the calls it is given
one after another in the order given. Nothing here raises for a failing unit: failures are values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.contract.units import Outcome, Unit

FailureKind = Literal["died", "unavailable", "out_of_memory", "raised"]


@dataclass(frozen=True)
class Failure:
    """Why a call, or the start of a slot, gave no outcomes.

    `died` and `unavailable` take the slot with them; after `out_of_memory` and `raised` its worker is still usable,
    except where the start of a slot raised.

    Attributes:
        kind: died (the process is gone), unavailable (nobody knows whether it ran: the infrastructure is at fault),
            out_of_memory (accelerator or host), raised (an exception: a bug, or a setting that cannot work).
        message: one sentence or the exception's own text.
        preempted: the machine was taken away, so the death says nothing about the work.
    """

    kind: FailureKind
    message: str
    preempted: bool = False

    @property
    def infrastructure(self) -> bool:
        """Whether neither the row nor the slot is to blame."""
        return self.kind == "unavailable" or self.preempted


@dataclass(frozen=True)
class Completion:
    """One call that ended, or (`call` and `unit` are None) a slot that failed to start."""

    call: int | None
    slot: int
    unit: Unit | None
    outcomes: tuple[Outcome, ...] = ()
    failure: Failure | None = None


class Worker(Protocol):
    """What a slot holds: loads the models once, then runs units, writes objects and returns small rows."""

    def setup(self) -> None:
        """Load what every unit needs. An exception means that the slot cannot start."""
        ...

    def run(self, unit: Unit) -> list[Outcome]:
        """Run one unit: exactly one outcome for each of its tasks, each under 1 KB."""
        ...

    def close(self) -> None:
        """Release what `setup` took. Not called when the process is killed."""
        ...


class Executor(Protocol):
    """Numbered slots, from 0, and the calls on them. Not thread-safe."""

    def slots(self) -> tuple[int, ...]:
        """Slots that can be given a unit now, in ascending order."""
        ...

    def starting(self) -> tuple[int, ...]:
        """Slots that are being set up, in ascending order."""
        ...

    def submit(self, slot: int, unit: Unit) -> int:
        """Give a unit to a slot of `slots()`; returns the call's number, higher than every earlier one."""
        ...

    def wait(self, timeout_s: float) -> Sequence[Completion]:
        """Completions, in ascending call order per slot; waits for the first one, at most `timeout_s`.

        When a slot is lost, only its oldest call (the one that ran) completes; the others never do.
        """
        ...

    def retire(self, slot: int) -> None:
        """Kill whatever is on the slot; its calls never complete. It stays empty until `replace`."""
        ...

    def replace(self, slot: int) -> None:
        """Kill whatever is on the slot, as `retire` does, and start a new worker on it."""
        ...

    def close(self) -> None:
        """End every worker: idle ones gracefully, busy ones at once. May be called twice."""
        ...
