"""Tells a lineage server about one run: an observer that puts events into the outbox."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from openlineage.client.event_v2 import RunEvent, RunState

from jobs.lineage.client import explain, open_client, parent_of
from jobs.lineage.datasets import Made, Written, inputs, outputs
from jobs.lineage.events import Attempt, Datasets, Ending, event
from jobs.lineage.naming import job_name
from jobs.lineage.outbox import Outbox
from pipeline.clock import Clock, SystemClock
from pipeline.contract.errors import Origin, Status
from pipeline.contract.kinds import RESULTS, PerKind, PlanCounts
from pipeline.contract.units import Outcome
from pipeline.observer import Begun, Pulse
from pipeline.run import RunResult
from pipeline.runs.record import Published, RunRecord, RunSpec
from pipeline.settings import LineageSettings, RunSettings
from pipeline.storage.objects import Storage, StorageError


class LineageObserver:
    """Sends START when a run begins, and one event when it ends. Without a beginning, nothing is sent.

    So a run that is repeated, refused or not planned has no events: it reads and writes no data.
    """

    def __init__(
        self,
        settings: RunSettings,
        lineage: LineageSettings,
        outbox: Outbox,
        *,
        clock: Clock,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Send nothing yet.

        Raises:
            SpecError: the environment names a parent in another form.
        """
        self._settings = settings
        self._outbox = outbox
        self._clock = clock
        self._storage = Storage(settings.root, settings.storage_options or None)
        self._attempt = partial(
            Attempt,
            lineage.namespace,
            lineage.job or job_name(settings.root),
            self._storage.root,
            parent=parent_of("OPENLINEAGE_PARENT_ID", environment),
            top=parent_of("OPENLINEAGE_ROOT_PARENT_ID", environment),
        )
        self._begun: Begun | None = None
        self._ended = False
        self._made = {table.kind: Made() for table in RESULTS}
        self._spec: RunSpec | None = None  # used by the outbox's thread alone

    def stage(self, name: str, detail: str) -> None:
        """Nothing to send."""

    def planned(self, work: PlanCounts) -> None:
        """Nothing to send."""

    def working(self, pulse: Pulse) -> None:
        """Nothing to send."""

    def begun(self, run: Begun) -> None:
        """Send START."""
        self._begun = run
        self._outbox.put(partial(self._starting, run, self._clock.wall()))

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Count the objects that were made."""
        for outcome in outcomes:
            if outcome.status == Status.OK and outcome.origin != Origin.REUSED:
                made = self._made[outcome.kind]
                self._made[outcome.kind] = Made(made.files + 1, made.bytes + (outcome.bytes or 0))

    def ended(self, result: RunResult) -> None:
        """Send COMPLETE if the run is published, else ABORT."""
        if result.published is None:
            self._end(Ending(RunState.ABORT, result, result.summary.stopped))
        else:
            self._end(Ending(RunState.COMPLETE, result))

    def failed(self, error: BaseException) -> None:
        """Send FAIL with the message; ABORT if it is an interrupt."""
        state = RunState.FAIL if isinstance(error, Exception) else RunState.ABORT
        self._end(Ending(state, message=explain(error)))

    def _end(self, ending: Ending) -> None:
        if self._begun is None or self._ended:
            return
        self._ended = True
        made = PerKind(*(self._made[table.kind] for table in RESULTS))
        self._outbox.put(partial(self._ending, self._begun, self._clock.wall(), ending, made))

    def _starting(self, run: Begun, at: float) -> RunEvent:
        datasets = Datasets(
            inputs(self._settings, self._recorded(run), None),
            outputs(self._settings, run.run_id, None, None),
        )
        return event(self._attempt(run), datasets, at)

    def _ending(self, run: Begun, at: float, ending: Ending, made: PerKind[Made]) -> RunEvent:
        result = ending.result
        published = result.published if result else None
        checked = result.planned.checked if result else None
        written = Written(made, published, _schemas(self._storage, published) if published else {})
        datasets = Datasets(
            inputs(self._settings, self._recorded(run), checked),
            outputs(self._settings, run.run_id, written, checked),
        )
        return event(self._attempt(run), datasets, at, ending)

    def _recorded(self, run: Begun) -> RunSpec | None:
        """The spec of the run, for the digests of its inputs; None if it cannot be read now."""
        if self._spec is None:
            with suppress(StorageError):
                self._spec = RunRecord(self._storage, run.run_id).spec()
        return self._spec


def _schemas(storage: Storage, published: Published) -> dict[str, pa.Schema]:
    """Columns of each published table, from the footer of one of its files; without a table that cannot be read."""
    found: dict[str, pa.Schema] = {}
    for file in published.files:
        if file.table not in found:
            with (
                suppress(OSError, pa.ArrowException, StorageError),
                storage.filesystem.open(storage.full(file.path), "rb") as source,
            ):
                found[file.table] = pq.read_schema(source)
    return found


@contextmanager
def observing(settings: RunSettings, lineage: LineageSettings, clock: Clock | None = None) -> Iterator[LineageObserver]:
    """An observer for one run in the block. The end of the block waits until the events are sent, for a few seconds.

    An exception that ends the block is sent as the end of the run.

    Raises:
        SpecError: the client cannot be set up.
    """
    outbox = Outbox(open_client(lineage), explain=explain)
    try:
        observer = LineageObserver(settings, lineage, outbox, clock=clock or SystemClock())
        try:
            yield observer
        except BaseException as error:
            observer.failed(error)
            raise
    finally:
        outbox.close()
