"""How long a unit may take: what the policy allows, and less once it is known how long its likes take.

A deadline that suits the largest picture of the slowest accelerator would let a row that hangs hold a whole cluster up
for an hour at the end of a run. So a warm worker, which neither loads nor compiles any more, gets a multiple of the
longest time that a unit of the same shape has taken anywhere.
"""

from dataclasses import dataclass

from pipeline.contract.units import TrainUnit, Unit
from pipeline.engine.policy import Policy


@dataclass
class _Seen:
    calls: int = 0
    longest_s: float = 0.0
    tasks: int = 1  # of the longest


class Watchdog:
    """Learns from what ended well; the same calls in the same order give the same deadlines."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._seen: dict[object, _Seen] = {}

    def learn(self, unit: Unit, seconds: float) -> None:
        """A unit ended well after so long on its worker."""
        seen = self._seen.setdefault(_likes(unit), _Seen())
        seen.calls += 1
        if seconds > seen.longest_s:
            seen.longest_s, seen.tasks = seconds, len(unit.tasks)

    def deadline_s(self, unit: Unit, *, warm: bool) -> float:
        """Seconds within which `unit` must end on a worker; `warm`: one that has ended a unit well before."""
        policy, most = self._policy, self._policy.deadline_s(unit)
        seen = self._seen.get(_likes(unit))
        if seen is None or seen.calls < policy.hang_calls:
            return most
        # A unit of more tasks than any before takes longer in proportion, at most.
        expected = seen.longest_s * max(1.0, len(unit.tasks) / seen.tasks)
        extra_s = 0.0 if warm else policy.cold_s
        return min(most, max(policy.hang_floor_s, policy.hang_factor * expected) + extra_s)


def _likes(unit: Unit) -> object:
    return unit.tasks[0].training if isinstance(unit, TrainUnit) else unit.tasks[0].shape
