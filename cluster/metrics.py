"""Publishes the metrics of a run through Ray, whose agent on this node serves them to Prometheus.

Events are only counted; once a second the counts and the state go to Ray. Metrics exist while Ray is connected: from
the first worker to the end of the command.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from cluster import metric_table as table
from cluster.instruments import Instruments
from cluster.metric_table import Metric
from pipeline.contract.errors import Origin, Status
from pipeline.contract.kinds import PlanCounts
from pipeline.contract.units import Kind, Outcome
from pipeline.engine.figures import Snapshot
from pipeline.observer import Begun, Pulse
from pipeline.settings import EngineSettings

_EVERY_S = 1.0
_KINDS: tuple[Kind, ...] = ("concept", "render")
_Series = tuple[Metric, tuple[str, ...]]  # a metric, and the values of its tags after run_id

_log = logging.getLogger(__name__)


class Metrics(AbstractContextManager["Metrics"]):
    """The `pipeline.observer.Observer` that publishes the metrics of one run. The end of the block publishes the rest.

    Trouble with metrics ends the publishing, never the run.
    """

    def __init__(
        self,
        engine: EngineSettings,
        *,
        make: Callable[[], Instruments | None] = Instruments.if_connected,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Publish nothing yet.

        Args:
            engine: how large batches are, and the budget.
            make: gives the instruments, or None while there is no Ray; asked once there are workers.
            clock: monotonic seconds.
            wall: seconds since 1970.
        """
        self._places = {"concept": engine.group_size, "render": engine.render_batch}
        self._budget_s = None if engine.budget_h is None else 3600 * engine.budget_h
        self._make, self._clock, self._wall = make, clock, wall
        self._instruments: Instruments | None = None
        self._is_off = False
        self._planned: dict[Kind, int] = dict.fromkeys(_KINDS, 0)
        self._ended: dict[Kind, int] = dict.fromkeys(_KINDS, 0)
        self._run: Begun | None = None
        self._pulse = Pulse()
        self._last_unit = 0.0  # wall time
        self._due = 0.0  # of the clock
        # What is added at the next publication. The zeros make series appear before they count anything.
        self._added: defaultdict[_Series, float] = defaultdict(float, dict.fromkeys(_at_first(), 0.0))
        self._before = Pulse()  # whose counts are published

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._publish()

    def stage(self, name: str, detail: str) -> None:  # noqa: ARG002 (as `Observer` says)
        """Publish what is left when another stage begins."""
        if name == "start":
            self._last_unit = self._wall()
        self._publish()

    def planned(self, work: PlanCounts) -> None:
        """Take the plan's totals."""
        self._planned = {each.kind: counts.keys_to_do for each, counts in work.items()}

    def begun(self, run: Begun) -> None:
        """Take the run's id."""
        self._run = run

    def working(self, pulse: Pulse) -> None:
        """Publish at most once a second."""
        self._pulse = pulse
        if self._instruments is None and not self._is_off:
            self._instruments = self._make()
        if self._clock() >= self._due:
            self._publish()

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Count tasks that ended."""
        self._last_unit = self._wall()
        for outcome in outcomes:
            self._count(outcome)

    def _count(self, outcome: Outcome) -> None:
        kind, added = outcome.kind, self._added
        self._ended[kind] += 1
        code = "" if outcome.error_code is None else outcome.error_code.value
        is_made = outcome.status == Status.OK and outcome.origin != Origin.REUSED
        ending = "made" if is_made else "reused" if outcome.status == Status.OK else outcome.status.value
        added[table.TASKS, (kind, ending, code)] += 1
        if outcome.accelerator_s > 0:  # neither adopted nor failed without a worker
            added[table.ACCELERATOR, ("useful",)] += outcome.accelerator_s
            added[table.BATCH_TASKS, (kind,)] += 1
            added[table.BATCH_PLACES, (kind,)] += self._places[kind] / outcome.batch
        if is_made and outcome.bytes:
            added[table.WRITTEN, (kind,)] += outcome.bytes

    def _publish(self) -> None:
        if self._instruments is None or self._run is None:
            return
        self._due = self._clock() + _EVERY_S
        try:
            self._publish_to(self._instruments, self._run)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with metrics must not cost the run)
            self._instruments, self._is_off = None, True
            _log.warning("this run publishes no more metrics: %s: %s", type(error).__name__, error)

    def _publish_to(self, instruments: Instruments, run: Begun) -> None:
        before = _counts(self._before)
        for series, total in _counts(self._pulse).items():
            if (risen := total - before[series]) > 0:
                self._added[series] += risen
        self._before = self._pulse
        for (metric, values), amount in self._added.items():
            instruments.add(metric, (run.run_id, *values), amount)
        self._added.clear()
        for (metric, values), value in self._state(run).items():
            instruments.set(metric, (run.run_id, *values), value)

    def _state(self, run: Begun) -> dict[_Series, float]:
        """Each gauge."""
        found: dict[_Series, float] = {
            (table.RUN, (run.run_date, str(run.lease))): 1.0,
            (table.LAST_UNIT, ()): self._last_unit,
            (table.HEARTBEAT_AGE, ()): self._pulse.heartbeat_age_s,
            (table.SPENT, ()): self._pulse.engine.spent_s,
        }
        if self._budget_s is not None:
            found[table.BUDGET, ()] = self._budget_s
        for kind in _KINDS:
            found[table.TASKS_PLANNED, (kind,)] = self._planned[kind]
            found[table.TASKS_LEFT, (kind,)] = self._planned[kind] - self._ended[kind]
        for state, count in _slots(self._pulse.engine).items():
            found[table.SLOTS, (state,)] = count
        return found


def _at_first() -> list[_Series]:
    """The counters whose tags are known before anything is counted."""
    each_kind = [
        (metric, (kind,)) for metric in (table.BATCH_TASKS, table.BATCH_PLACES, table.WRITTEN) for kind in _KINDS
    ]
    made: list[_Series] = [(table.TASKS, (kind, "made", "")) for kind in _KINDS]
    return [*made, *each_kind, (table.ACCELERATOR, ("useful",)), *_counts(Pulse())]


def _counts(pulse: Pulse) -> dict[_Series, float]:
    """The counts of a pulse, which only rise."""
    return {
        (table.ACCELERATOR, ("wasted",)): pulse.engine.wasted_s,
        (table.STORAGE_RETRIES, ("driver",)): pulse.storage_retries,
        (table.UNIT_RETRIES, ()): pulse.engine.retries,
        (table.DEATHS, ()): pulse.engine.deaths,
        (table.OUTAGES, ()): pulse.engine.outages,
    }


def _slots(now: Snapshot) -> dict[str, int]:
    return {
        "running": now.running,
        "idle": now.ready - now.running,
        "leaving": now.leaving,
        "starting": now.starting,
        "quarantined": now.quarantined,
    }
