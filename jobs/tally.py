"""What a run has done, is doing and has left, as one line of text. Pure: times and events in, a line out.

Totals are the plan's. A rate counts finished work since the first unit of its kind began, so that neither start-up nor
reused objects change it. A kind of work without a rate has no estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.output import counted, duration
from pipeline.contract.errors import Status
from pipeline.contract.kinds import PlanCounts
from pipeline.contract.units import Activity, Kind, Outcome


@dataclass
class _Kind:
    """One kind of work: tasks that ended, tasks that cost time, and when the first of the latter began."""

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
        """Tasks per second; None if there is no rate yet."""
        return self.worked / max(now - self.began, 1e-6) if self.worked else None

    def left_s(self, now: float) -> float | None:
        """Seconds until all have ended; None if there is no rate yet."""
        if self.ended >= self.total:
            return 0.0
        rate = self.rate(now)
        return (self.total - self.ended) / rate if rate else None


def describe(activities: Sequence[Activity]) -> str:
    """What workers are doing, as a part of the line; empty if no worker estimates the metric or trains."""
    metric = [each for each in activities if each.doing == "metric"]
    training = [each for each in activities if each.doing == "training"]
    parts = []
    if metric:
        first = max(metric, key=lambda each: each.done)
        parts.append(f"estimating the metric: {first.done:,}/{first.total:,} captions")
    if len(training) == 1:
        [only] = training
        parts.append(f"training {counted(only.concepts, 'concept')}: step {only.done:,}/{only.total:,}")
    elif training:
        concepts = sum(each.concepts for each in training)
        done = sum(each.done * each.concepts for each in training)
        total = sum(each.total * each.concepts for each in training)
        share = done / total if total else 0.0
        parts.append(f"training {counted(concepts, 'concept')} on {len(training)} workers: {share:.0%} of the steps")
    return ", ".join(parts)


class Tally:
    """Counts, rates and the estimated time of one run."""

    def __init__(self, work: PlanCounts, now: float) -> None:
        """Start counting at `now`, in seconds of the clock that all later times come from."""
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
            self._failed += outcome.status not in (Status.OK, Status.FILTERED)

    @property
    def begun(self) -> bool:
        """Whether any task has ended."""
        return self._concepts.ended + self._renders.ended > 0

    def line(self, now: float, doing: str = "") -> str:
        """Counts, failures, rate, what workers are `doing`, and time; the time stops when all work has ended."""
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
        if doing and not done:
            parts.append(doing)
        elapsed = duration(now - self._began)
        parts.append(f"in {elapsed}" if done else f"{elapsed} so far{self._left(now)}")
        return " | ".join(parts)

    def _rate(self, now: float) -> str:
        """The rate of renders if there is one, else the rate of trainings."""
        if rate := self._renders.rate(now):
            return f"{rate:.1f} renders/s" if rate >= 1 else f"{rate * 60:.1f} renders/min"
        if (rate := self._concepts.rate(now)) and self._concepts.ended < self._concepts.total:
            return f"{rate * 60:.1f} concepts/min"
        return ""

    def _left(self, now: float) -> str:
        """Workers train first and render in between, so the time left is that of the kind that takes longer."""
        concepts, renders = self._concepts.left_s(now), self._renders.left_s(now)
        if concepts is not None and renders is not None:
            return f", about {duration(max(concepts, renders))} left"
        return f", about {duration(concepts)} of training left" if concepts else ""
