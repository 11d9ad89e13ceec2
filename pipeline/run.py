"""One run from manifests to published tables. Rerunning resumes an unfinished run and reuses a finished one.

The order of writes is the guarantee: objects, then parts that record them, then the published tables, then the commit
marker. A driver may be killed at any moment: the same settings find the same run, take over its lease, and trust only
recorded results whose objects exist.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pipeline.clock import Clock, SystemClock
from pipeline.contract.kinds import PerKind
from pipeline.contract.units import Activity, Outcome
from pipeline.database.plandb import PlanDB
from pipeline.engine.executor import Executor
from pipeline.engine.figures import RunSummary, Snapshot
from pipeline.engine.scheduler import run as schedule
from pipeline.observer import Begun, Observer, Pulse
from pipeline.plan.done import list_objects
from pipeline.plan.repeat import Repeat, find_repeat
from pipeline.plan.selection import Selection
from pipeline.plan.workqueue import WorkQueue
from pipeline.prepare import Checked, Planned, check, make_plan
from pipeline.report.page import write_report
from pipeline.runs.find import find_runs
from pipeline.runs.lease import Lease, LeaseHeld, acquire
from pipeline.runs.parts import PartWriter
from pipeline.runs.photos import photos_to_record
from pipeline.runs.record import Published, RunRecord, RunSpec
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage
from pipeline.storage.patience import Patience, PatientStorage
from pipeline.tables.publish import publish
from pipeline.worker.settings import WorkerSettings


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_id: the run.
        resumed: whether an unfinished run was resumed.
        repeated: whether an earlier run is the answer: nothing was made or written.
        planned: the plan.
        summary: of the scheduler.
        left: keys without an outcome.
        published: what was published; None if the run was stopped, and can be resumed.
        report: URI of the HTML report; None unless the run is published.
        seconds: since the start of this execution.
    """

    run_id: str
    resumed: bool
    repeated: bool
    planned: Planned
    summary: RunSummary
    left: PerKind[int]
    published: Published | None
    report: str | None
    seconds: float


@dataclass(frozen=True)
class Engine:
    """Workers, why the run must stop (None: it need not), and what the workers are doing (for display)."""

    executor: Executor
    stop: Callable[[], str | None]
    activities: Callable[[], Sequence[Activity]] = tuple


MakeEngine = Callable[[WorkerSettings], AbstractContextManager[Engine]]


def execute(
    settings: RunSettings,
    *,
    make_engine: MakeEngine,
    observer: Observer,
    selection: Selection | None = None,
    explain: bool = False,
    clock: Clock | None = None,
) -> RunResult:
    """Run, resume or reuse.

    Args:
        settings: the run.
        make_engine: starts workers; not called if there is nothing to do.
        observer: receives progress events.
        selection: a part of the plan; the whole plan if None.
        explain: whether to find out why each key is to be done.
        clock: time source.

    Raises:
        BaseError, ManifestError, StorageError, LeaseHeld, EngineError: with a message for the user.
    """
    clock = clock or SystemClock()
    driver = _Driver(
        settings=settings,
        make_engine=make_engine,
        observer=observer,
        selection=selection,
        explain=explain,
        clock=clock,
        began=clock.monotonic(),
    )
    with PlanDB(memory_limit=settings.engine.plan_memory) as db:
        return driver.run(db)


@dataclass(frozen=True)
class _Driver:
    """One execution; see `execute` for the fields. `began` is the monotonic time of its start, in seconds."""

    settings: RunSettings
    make_engine: MakeEngine
    observer: Observer
    selection: Selection | None
    explain: bool
    clock: Clock
    began: float

    def run(self, db: PlanDB) -> RunResult:
        # Before the lease a storage error fails fast. After it, it is retried: failing would waste a started run.
        storage = Storage(self.settings.root, self.settings.storage_options or None)
        checked = check(db, storage, self.settings, self.observer, self.selection)
        self.observer.stage("plan", self.settings.root)
        runs = find_runs(storage, checked.digest)
        list_objects(db, storage)
        # A retry is never a repeat: it does again what an earlier run has published.
        if not runs.open and not (self.selection and self.selection.keys):
            repeat = find_repeat(db, storage, runs.published, checked.content)
            if repeat:
                return self._repeated(storage, checked, repeat)
        planned = make_plan(db, storage, self.settings, checked, selection=self.selection, explain=self.explain)
        self.observer.planned(planned.work)
        with acquire(storage, runs.next, clock=self.clock) as lease:
            return self._worked(db, planned, lease, run_id=runs.next, resumed=runs.open)

    def _repeated(self, storage: Storage, checked: Checked, repeat: Repeat) -> RunResult:
        """An earlier run is the answer."""
        run_id = repeat.published.run_id
        self.observer.planned(repeat.work)
        # The report is missing if the driver died between publishing and reporting.
        report = RunRecord(storage, run_id).report() or write_report(storage, run_id)
        return RunResult(
            run_id=run_id,
            resumed=False,
            repeated=True,
            planned=Planned(checked, repeat.work, changes=PerKind({}, {}) if self.explain else None),
            summary=RunSummary(),
            left=PerKind(0, 0),
            published=repeat.published,
            report=report,
            seconds=self._seconds(),
        )

    def _worked(self, db: PlanDB, planned: Planned, lease: Lease, *, run_id: str, resumed: bool) -> RunResult:
        """Do what is left to do; publish and report if that is everything."""
        patience = Patience(budget_s=math.inf)
        storage = PatientStorage(self.settings.root, self.settings.storage_options or None, patience)
        record = RunRecord(storage, run_id)
        if record.is_published():  # after this driver had looked for it: the plan is out of date
            raise LeaseHeld(
                f"another driver finished run {run_id!r} while this one planned it: run the same command again"
            )
        spec = record.begin(self._spec(run_id, planned.checked))
        record.write_plan(planned.work)
        self.observer.begun(Begun(run_id, spec.run_date, resumed, lease.number))
        engine = self.settings.engine
        queue = WorkQueue(db, group_size=engine.group_size, render_batch=engine.render_batch)
        parts = PartWriter(storage, run_id, lease.number, seconds_per_part=engine.flush_s, clock=self.clock.monotonic)
        try:
            summary = self._scheduled(queue, parts, planned.checked.worker, lease, patience)
        finally:
            _ensure_lease_held(lease, run_id, patience)
            parts.flush()
        published = report = None
        if not queue.unfinished():
            published = self._published(db, storage, planned.checked, spec, parts.written)
            record.write_photos(photos_to_record(db))
            self.observer.stage("report", f"run {run_id}")
            report = write_report(storage, run_id, known=[file.path for file in published.files])
        return RunResult(
            run_id=run_id,
            resumed=resumed,
            repeated=False,
            planned=planned,
            summary=summary,
            left=queue.remaining(),
            published=published,
            report=report,
            seconds=self._seconds(),
        )

    def _scheduled(
        self, queue: WorkQueue, parts: PartWriter, worker: WorkerSettings, lease: Lease, patience: Patience
    ) -> RunSummary:
        """Give the queue's work to workers until it is done or the run must stop."""
        if not queue.unfinished():
            return RunSummary()

        def sink(outcomes: Sequence[Outcome]) -> None:
            parts.add(outcomes)
            self.observer.outcomes(outcomes)

        self.observer.stage("start", f"run {lease.run_id}")
        with self.make_engine(worker) as engine:

            def stop(now: Snapshot) -> str | None:
                pulse = Pulse(now, tuple(engine.activities()), lease.heartbeat_age_s(), patience.retries)
                self.observer.working(pulse)
                return self._why_stop(engine, now.spent_s)

            policy = self.settings.policy
            return schedule(queue, engine.executor, sink, policy=policy, clock=self.clock, stop=stop)

    def _published(
        self, db: PlanDB, storage: Storage, checked: Checked, spec: RunSpec, parts: Sequence[str]
    ) -> Published:
        self.observer.stage("publish", f"run {spec.run_id}")
        return publish(
            db,
            storage,
            run_id=spec.run_id,
            run_date=spec.run_date,
            base=checked.base.name,
            base_digest=checked.base.digest,
            drawing=(checked.drawing.name, checked.drawing.digest),
            content=checked.content,
            parts=parts,
            clock=self.clock.wall,
        )

    def _spec(self, run_id: str, checked: Checked) -> RunSpec:
        began_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock.wall()))
        return RunSpec(
            run_id=run_id,
            run_date=began_at[:10],
            began_at=began_at,
            digest=checked.digest,
            base_digest=checked.base.digest,
            concepts_digest=checked.concepts.digest,
            prompts_digest=checked.prompts.digest,
            selection=self.selection.name if self.selection else None,
            settings=self.settings.model_dump(mode="json"),
        )

    def _why_stop(self, engine: Engine, spent_s: float) -> str | None:
        """Why the run stops before its work is done, given the accelerator seconds spent: a signal, or a limit."""
        caps = self.settings.engine
        if reason := engine.stop():
            return reason
        if caps.stop_after_s is not None and self._seconds() >= caps.stop_after_s:
            return f"its engine.stop_after_s of {caps.stop_after_s:g} s is over"
        if caps.budget_h is not None and spent_s >= 3600 * caps.budget_h:
            return f"its engine.budget_h of {caps.budget_h:g} accelerator-hours is spent"
        return None

    def _seconds(self) -> float:
        return self.clock.monotonic() - self.began


def _ensure_lease_held(lease: Lease, run_id: str, patience: Patience) -> None:
    """Raise unless this driver may still record outcomes; the new holder adopts the objects that exist."""
    if not patience(lease.still_mine):
        raise LeaseHeld(f"another driver took run {run_id!r} over: this one stops, and no result is lost")
