"""What a run has done and has left, as one line of text. Pure: times and outcomes come in, a line goes out.

Totals are the plan's. A rate is what was worked on, over the time since the first such unit began, so that neither
start-up nor what turned out to be there already bends it; a kind of work without a rate yet has no estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.output import duration
from pipeline.contract.errors import Status
from pipeline.contract.kinds import PlanCounts
from pipeline.contract.units import Kind, Outcome


@dataclass
class _Kind:
    """One kind of work: tasks ended, those that cost time, and the moment at which the first of them began."""

    total: int
    ended: int = 0
    worked: int = 0
    began: float = 0.0

    def add(self, outcome: Outcome, now: float) -> None:
        self.ended += 1
        if outcome.accelerator_s > 0:
            if not self.worked:
                self.began = now - outcome.accelerator_s * outcome.batch
            self.worked += 1

    def rate(self, now: float) -> float | None:
        """Tasks a second."""
        return self.worked / max(now - self.began, 1e-6) if self.worked else None

    def left_s(self, now: float) -> float | None:
        """Seconds until all have ended; None when there is no telling yet."""
        if self.ended >= self.total:
            return 0.0
        rate = self.rate(now)
        return (self.total - self.ended) / rate if rate else None


class Tally:
    """Counts, rates and the estimated time of one run."""

    def __init__(self, work: PlanCounts, now: float) -> None:
        """Start counting at `now`, in seconds of any clock that all later times are of."""
        self._concepts = _Kind(work.concepts.keys_to_do)
        self._renders = _Kind(work.renders.keys_to_do)
        self._failed = 0
        self._began = self._latest = now

    def add(self, outcomes: Sequence[Outcome], now: float) -> None:
        """Count tasks that ended at `now`."""
        self._latest = now
        kinds: dict[Kind, _Kind] = {"concept": self._concepts, "render": self._renders}
        for outcome in outcomes:
            kinds[outcome.kind].add(outcome, now)
            self._failed += outcome.status != Status.OK

    def line(self, now: float) -> str:
        """Counts, failures, rate, time; once all has ended, time stands still."""
        done = all(kind.ended >= kind.total for kind in (self._concepts, self._renders))
        now = self._latest if done else now
        parts = [
            f"{name} {kind.ended:,}/{kind.total:,}"
            for name, kind in (("concepts", self._concepts), ("renders", self._renders))
            if kind.total
        ]
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if rate := self._rate(now):
            parts.append(rate)
        elapsed = duration(now - self._began)
        parts.append(f"in {elapsed}" if done else f"{elapsed} so far{self._left(now)}")
        return " | ".join(parts)

    def _rate(self, now: float) -> str:
        """The rate of renders once there are any, of trainings before."""
        if rate := self._renders.rate(now):
            return f"{rate:.1f} pictures/s" if rate >= 1 else f"{rate * 60:.1f} pictures/min"
        if (rate := self._concepts.rate(now)) and self._concepts.ended < self._concepts.total:
            return f"{rate * 60:.1f} concepts/min"
        return ""

    def _left(self, now: float) -> str:
        """Renders start when the trainings run out, so the time left is that of whichever takes longer."""
        concepts, renders = self._concepts.left_s(now), self._renders.left_s(now)
        if concepts is not None and renders is not None:
            return f", about {duration(max(concepts, renders))} left"
        return f", about {duration(concepts)} of training left" if concepts else ""
