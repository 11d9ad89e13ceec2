"""What a run tells while it runs, and to whom: the progress line, logs, metrics, lineage.

An observer decides nothing. It is called in the driver's thread, between the events of the scheduler, so it must be
quick and must not raise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.contract.kinds import PlanCounts
from pipeline.contract.units import Activity, Outcome
from pipeline.engine.figures import Snapshot


@dataclass(frozen=True)
class Begun:
    """A run that this driver holds.

    Attributes:
        run_id: the run.
        run_date: YYYY-MM-DD, UTC, as in the tables.
        resumed: whether an earlier driver began it.
        lease: number of this driver's lease: the attempt, from 1.
    """

    run_id: str
    run_date: str
    resumed: bool
    lease: int


@dataclass(frozen=True)
class Pulse:
    """The state of a run at one moment.

    Attributes:
        engine: slots and units.
        activities: one entry per worker that estimates the metric or trains; a worker that renders or waits has none.
        heartbeat_age_s: seconds since the lease was last renewed.
        storage_retries: transient storage errors that the driver has retried so far.
    """

    engine: Snapshot = field(default_factory=Snapshot)
    activities: tuple[Activity, ...] = ()
    heartbeat_age_s: float = 0.0
    storage_retries: int = 0


class Observer(Protocol):
    """Receives the events of one run, in the order of the methods below; stages lie between them."""

    def stage(self, name: str, detail: str) -> None:
        """A stage has begun: base, validate, plan, start, publish or report."""
        ...

    def planned(self, work: PlanCounts) -> None:
        """The plan is complete."""
        ...

    def begun(self, run: Begun) -> None:
        """The lease is acquired. Not called if an earlier run is the answer."""
        ...

    def working(self, pulse: Pulse) -> None:
        """What happens now; called at least every `policy.poll_s` seconds while there is work."""
        ...

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Some tasks have ended."""
        ...


class Observers:
    """Passes each event on to several observers, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def stage(self, name: str, detail: str) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.stage(name, detail)

    def planned(self, work: PlanCounts) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.planned(work)

    def begun(self, run: Begun) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.begun(run)

    def working(self, pulse: Pulse) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.working(pulse)

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.outcomes(outcomes)
