"""How long a unit may run: the deadline of the policy, or less once similar units have been timed.

The policy's deadline suits the largest render on the slowest accelerator; at the end of a run a hanging row would hold
a cluster for that long. So the limit becomes a multiple of the longest time that a unit of the same shape took
anywhere. A worker's first unit may load and compile, so it gets more.
"""

from dataclasses import dataclass

from pipeline.contract.units import TrainUnit, Unit
from pipeline.engine.policy import Policy


@dataclass(frozen=True)
class Deadline:
    """Seconds within which a unit must end, and the field of `Policy` that set the limit."""

    seconds: float
    setting: str


@dataclass
class _Timing:
    units: int = 0
    longest_s: float = 0.0
    tasks: int = 1  # of the longest unit


class Watchdog:
    """Times units that succeeded; the same units in the same order give the same deadlines."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._timings: dict[object, _Timing] = {}
        self.version = 0  # changes whenever a limit may have become shorter

    def learn(self, unit: Unit, seconds: float) -> None:
        """Record that a unit succeeded `seconds` after its worker began it."""
        timing = self._timings.setdefault(_shape(unit), _Timing())
        timing.units += 1
        if timing.units == self._policy.hang_calls:
            self.version += 1
        if seconds > timing.longest_s:
            # Of more tasks, the same seconds mean less for each task of a still larger unit.
            self.version += len(unit.tasks) > timing.tasks
            timing.longest_s, timing.tasks = seconds, len(unit.tasks)

    def deadline(self, unit: Unit, *, warm: bool) -> Deadline:
        """The limit of `unit` on a worker; `warm`: the worker has completed a unit before."""
        policy, most = self._policy, self._longest(unit)
        timing = self._timings.get(_shape(unit))
        if timing is None or timing.units < policy.hang_calls:
            return most
        # A unit with more tasks than the longest one takes at most proportionally longer.
        expected_s = timing.longest_s * max(1.0, len(unit.tasks) / timing.tasks)
        extra_s = 0.0 if warm else policy.cold_s
        factor = Deadline(policy.hang_factor * expected_s + extra_s, "hang_factor")
        floor = Deadline(policy.hang_floor_s + extra_s, "hang_floor_s")
        learnt = factor if factor.seconds > floor.seconds else floor
        return learnt if learnt.seconds < most.seconds else most

    def _longest(self, unit: Unit) -> Deadline:
        if isinstance(unit, TrainUnit):
            return Deadline(self._policy.train_deadline_s, "train_deadline_s")
        return Deadline(self._policy.render_deadline_s, "render_deadline_s")


def _shape(unit: Unit) -> object:
    """What decides, besides the number of tasks, how long a unit takes."""
    return unit.tasks[0].training if isinstance(unit, TrainUnit) else unit.tasks[0].shape
