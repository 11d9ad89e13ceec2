"""One run from manifests to published tables; running it again resumes it, and again reuses it.

The order of writes is the guarantee: objects, then parts that record them, then the published tables, then
`published.json`. Wherever the driver is killed, the same settings find the same run, take its lease over, believe only
what was recorded and is there, and go on.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Protocol

from perfusion_ops.base.folder import BaseFolder
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer
from pipeline.bases.captions import captions_digest
from pipeline.bases.find import find_base
from pipeline.bases.superclasses import superclass_check
from pipeline.clock import Clock, SystemClock
from pipeline.contract.errors import ManifestError
from pipeline.contract.keys import metric_key, settings_json
from pipeline.contract.layout import run_path
from pipeline.contract.units import Activity, Outcome
from pipeline.database.plandb import PlanDB
from pipeline.engine.executor import Executor
from pipeline.engine.scheduler import RunSummary
from pipeline.engine.scheduler import run as schedule
from pipeline.inputs.cache import InputCache
from pipeline.inputs.uris import is_signed
from pipeline.manifest.load import ManifestSummary, load_concepts, load_prompts
from pipeline.plan.changes import Changes, find_changes
from pipeline.plan.done import list_objects, load_done
from pipeline.plan.expand import Pending, pending, plan_concepts, plan_requests
from pipeline.plan.left_out import find_left_out
from pipeline.plan.repeat import content_digest, find_repeat
from pipeline.plan.selection import Missing, Selection, select
from pipeline.plan.workqueue import Remaining, WorkQueue
from pipeline.report.page import write_report
from pipeline.runs.lease import Lease, LeaseHeld, acquire
from pipeline.settings import EngineSettings, RunSettings
from pipeline.storage.objects import Storage
from pipeline.storage.patience import Patience, PatientStorage
from pipeline.tables.columns import carried_columns
from pipeline.tables.parts import PartWriter
from pipeline.tables.publish import Published, publish
from pipeline.worker.settings import WorkerSettings

_INPUTS_SHOWN = 1000


class Observer(Protocol):
    """Learns how a run goes on; what it does with it is its own business."""

    def stage(self, name: str, detail: str) -> None:
        """A new stage has begun."""
        ...

    def planned(self, work: Pending) -> None:
        """The plan stands."""
        ...

    def working(self, activities: Sequence[Activity]) -> None:
        """What workers are doing now; called at least every `policy.poll_s` seconds while there is work.

        One entry per worker that estimates the metric or trains; a worker that renders or waits has none.
        """
        ...

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Some tasks have ended."""
        ...


@dataclass(frozen=True)
class Checked:
    """Manifests that were read whole, and what follows from them and the settings before any picture is planned.

    `digest` names the run: what is asked for, wherever it lies. `content` says what every concepts row came to as well.
    """

    base: BaseFolder
    counter: TokenCounter
    concepts: ManifestSummary
    prompts: ManifestSummary
    worker: WorkerSettings
    digest: str
    content: str
    columns: tuple[str, ...] = ()

    @property
    def notices(self) -> tuple[str, ...]:
        """What was skipped or assumed in the manifests, and which of their columns the tables carry in another way."""
        return (*self.concepts.notices, *self.prompts.notices, *self.columns)


@dataclass(frozen=True)
class Planned:
    """A plan and what it was made from."""

    checked: Checked
    work: Pending
    missing: Missing = field(default_factory=Missing)
    changes: Changes | None = None


@dataclass(frozen=True)
class RunResult:
    """How a run ended; `published` is None when it was stopped with something `left`, and can be resumed.

    `repeated`: an earlier run is the answer, and nothing was made or written.
    """

    run_id: str
    resumed: bool
    repeated: bool
    planned: Planned
    summary: RunSummary
    left: Remaining
    published: Published | None
    report: str | None
    seconds: float


@dataclass(frozen=True)
class Engine:
    """Workers, whether someone asked the run to end, and what the workers are doing (for display)."""

    executor: Executor
    stop: Callable[[], bool]
    activities: Callable[[], Sequence[Activity]] = tuple


MakeEngine = Callable[[WorkerSettings], AbstractContextManager[Engine]]


def check(
    db: PlanDB, storage: Storage, settings: RunSettings, observer: Observer, selection: Selection | None = None
) -> Checked:
    """Check both manifests whole and give every good concept its key.

    Raises:
        BaseError, ManifestError, StorageError: nothing can start, with the sentence for the user.
    """
    observer.stage("base", settings.base)
    base = find_base(settings.base, settings.storage_options)
    counter = TokenCounter(load_tokenizer(base))
    options = settings.storage_options or None
    observer.stage("validate", settings.concepts)
    concepts = load_concepts(
        db,
        settings.concepts,
        storage=storage,
        limits=settings.inputs,
        cache=InputCache(storage),
        storage_options=options,
        threads=settings.engine.threads,
        superclass_check=superclass_check(counter, base.settings.templates),
    )
    observer.stage("validate", settings.prompts)
    prompts = load_prompts(db, settings.prompts, storage_options=options)
    key = metric_key(
        base_digest=base.digest, metric=settings.metric, captions_sha256=captions_digest(settings.metric, options)
    )
    training, sampling = settings.training(base), settings.sampling(base)
    plan_concepts(db, base_digest=base.digest, metric_key=key, training=training)
    meaning = [
        concepts.digest,
        prompts.digest,
        base.digest,
        key,
        settings_json(training),
        settings_json(sampling),
        str(settings.seed),
        *([selection.name] if selection else []),
    ]
    digest = hashlib.sha256("\n".join(meaning).encode()).hexdigest()
    worker = WorkerSettings(
        root=storage.root,
        storage_options=options,
        base=settings.base,
        base_digest=base.digest,
        metric=settings.metric,
        metric_key=key,
        limits=settings.inputs.allowing(storage.uri("inputs")),
        device=settings.engine.device,
        dtype=settings.engine.dtype,
        micro_batch=settings.engine.micro_batch,
        checkpoint_s=settings.engine.checkpoint_s,
        edit_unconditional=sampling.edit_unconditional,
    )
    # Those of renders are those of concepts and more.
    _, columns = carried_columns(db, storage, "renders")
    return Checked(base, counter, concepts, prompts, worker, digest, content_digest(db, digest), columns)


def make_plan(
    db: PlanDB,
    storage: Storage,
    settings: RunSettings,
    checked: Checked,
    *,
    selection: Selection | None = None,
    explain: bool = False,
) -> Planned:
    """Give every picture its key, take the `selection`, and find out what exists already; `objects` must be filled.

    With `explain` also why each thing is to be done, which reads the published tables once more.

    Raises:
        ManifestError, StorageError: nothing can start, with the sentence for the user.
    """
    base = checked.base
    plan_requests(
        db,
        base_digest=base.digest,
        sampling=settings.sampling(base),
        seed=settings.seed,
        counter=checked.counter,
        schedule=base.schedule,
    )
    missing = _select(db, storage, selection, base.digest, settings.engine.plan_memory) if selection else Missing()
    load_done(db, storage)
    work = pending(db)
    changes = None
    if explain:
        memory = settings.engine.plan_memory
        changes = find_changes(db, storage, base_digest=base.digest, memory_limit=memory)
    return Planned(checked, work, missing, changes)


def _select(db: PlanDB, storage: Storage, selection: Selection, base_digest: str, memory_limit: str) -> Missing:
    """Take the selection; what of it is not in the plan has its reasons.

    Raises:
        ManifestError: none of the keys to do again is in the plan.
    """
    if not selection.keys:
        return select(db, selection)
    reasons, refused = find_left_out(db, storage, selection.keys, base_digest=base_digest, memory_limit=memory_limit)
    missing = replace(select(db, selection, refused), reasons=reasons)
    if (missing.concepts, missing.renders) == (len(selection.keys.concepts), len(selection.keys.renders)):
        raise ManifestError(
            "\n".join(each.sentence for each in reasons)
            or "none of the rows to do again is in the plan; `perfusion run` makes what the manifests ask for now"
        )
    return missing


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
        make_engine: gives workers when there is work; not called when nothing is left to do.
        observer: told of progress.
        selection: a part of the plan; all of it when absent.
        explain: whether to find out why each thing is to be done.
        clock: times.

    Raises:
        BaseError, ManifestError, StorageError, LeaseHeld, EngineError: with the sentence for the user.
    """
    clock = clock or SystemClock()
    began = clock.monotonic()
    storage = Storage(settings.root, settings.storage_options or None)
    with PlanDB(memory_limit=settings.engine.plan_memory) as db:
        checked = check(db, storage, settings, observer, selection)
        observer.stage("plan", settings.root)
        runs = find_runs(storage, checked.digest)
        list_objects(db, storage)
        if not runs.open and not (selection and selection.keys):
            repeat = find_repeat(db, storage, runs.published, checked.content)
            if repeat:
                published, work = repeat
                observer.planned(work)
                planned = Planned(checked, work, changes=Changes() if explain else None)
                report = _report(storage, published.run_id)
                seconds = clock.monotonic() - began
                nothing = RunSummary(), Remaining(0, 0)
                return RunResult(published.run_id, False, True, planned, *nothing, published, report, seconds)
        planned = make_plan(db, storage, settings, checked, selection=selection, explain=explain)
        observer.planned(planned.work)
        run_id = runs.next
        with acquire(storage, run_id, clock=clock) as lease:
            # Until here trouble is best told at once; from here on a run would be lost to it.
            patience = Patience(budget_s=math.inf)
            storage = PatientStorage(settings.root, settings.storage_options or None, patience)
            run_date = _begin(storage, run_id, settings, planned, selection, clock)
            writer = PartWriter(
                storage, run_id, lease.number, seconds_per_part=settings.engine.flush_s, clock=clock.monotonic
            )
            queue = WorkQueue(db, group_size=settings.engine.group_size, render_batch=settings.engine.render_batch)
            summary = RunSummary()

            def sink(outcomes: Sequence[Outcome]) -> None:
                writer.add(outcomes)
                observer.outcomes(outcomes)

            try:
                if queue.unfinished():
                    observer.stage("start", f"run {run_id}")
                    with make_engine(checked.worker) as engine:
                        stop = _heartbeat(engine, observer, _stop(engine, settings.engine, clock, began))
                        summary = schedule(queue, engine.executor, sink, policy=settings.policy, clock=clock, stop=stop)
            finally:
                _fence(lease, run_id, patience)
                writer.flush()
            published, report = None, None
            if not queue.unfinished():
                observer.stage("publish", f"run {run_id}")
                published = publish(
                    db,
                    storage,
                    run_id=run_id,
                    run_date=run_date,
                    base=checked.base.name,
                    base_digest=checked.base.digest,
                    content=checked.content,
                    parts=writer.written,
                )
                storage.write(run_path(run_id, "inputs.json"), _inputs_shown(db))
                observer.stage("report", f"run {run_id}")
                report = write_report(storage, run_id, known=[file.path for file in published.files])
    seconds = clock.monotonic() - began
    return RunResult(run_id, runs.open, False, planned, summary, queue.remaining(), published, report, seconds)


def _stop(engine: Engine, caps: EngineSettings, clock: Clock, began: float) -> Callable[[float], str | None]:
    """Why a run ends before its work does: it was asked to, or it has had what it may have."""

    def stop(spent_s: float) -> str | None:
        if engine.stop():
            return "it was asked to end"
        if caps.stop_after_s is not None and clock.monotonic() - began >= caps.stop_after_s:
            return f"its engine.stop_after_s of {caps.stop_after_s:g} s is over"
        if caps.budget_h is not None and spent_s >= 3600 * caps.budget_h:
            return f"its engine.budget_h of {caps.budget_h:g} accelerator-hours is spent"
        return None

    return stop


def _heartbeat(
    engine: Engine, observer: Observer, stop: Callable[[float], str | None]
) -> Callable[[float], str | None]:
    """`stop` for the scheduler, which asks it regularly; each time the observer learns what workers do."""

    def beat(spent_s: float) -> str | None:
        observer.working(engine.activities())
        return stop(spent_s)

    return beat


@dataclass(frozen=True)
class Runs:
    """Runs of one meaning: the id of the `next` one, whether it is `open`, and those that are published, newest first.

    The id depends on nothing but storage and meaning, so that two drivers started at once meet at one lease.
    """

    next: str
    open: bool
    published: tuple[str, ...]


def find_runs(storage: Storage, digest: str) -> Runs:
    """The runs that a meaning has: the next one is the unfinished one if there is one, else has a new number."""
    prefix = f"run-{digest[:12]}-"
    numbers: dict[int, bool] = {}
    for path, _ in storage.list("runs"):
        parts = PurePosixPath(path).parts
        if len(parts) > 2 and parts[1].startswith(prefix):
            number = int(parts[1].removeprefix(prefix))
            numbers[number] = numbers.get(number, False) or parts[2] == "published.json"
    unfinished = [number for number, complete in numbers.items() if not complete]
    published = sorted((number for number, complete in numbers.items() if complete), reverse=True)
    number = max(unfinished) if unfinished else max(numbers, default=0) + 1
    return Runs(f"{prefix}{number:04d}", bool(unfinished), tuple(f"{prefix}{each:04d}" for each in published))


def _fence(lease: Lease, run_id: str, patience: Patience) -> None:
    """What this attempt made is in storage and will be adopted; recording it is now another attempt's to do."""
    if not patience(lease.still_mine):
        raise LeaseHeld(f"another attempt took run {run_id!r} over; this one ends here and loses nothing")


def _begin(  # noqa: PLR0917 - what the files tell
    storage: Storage, run_id: str, settings: RunSettings, planned: Planned, selection: Selection | None, clock: Clock
) -> str:
    """Write spec.json once and plan.json each time; returns the date that the run began on, UTC."""
    checked = planned.checked
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock.wall()))
    spec = {
        "run_id": run_id,
        "run_date": began[:10],
        "began_at": began,
        "digest": checked.digest,
        "base_digest": checked.base.digest,
        "concepts_digest": checked.concepts.digest,
        "prompts_digest": checked.prompts.digest,
        "selection": selection.name if selection else None,
        "settings": settings.model_dump(mode="json"),
    }
    path = run_path(run_id, "spec.json")
    storage.create(path, json.dumps(spec, indent=1).encode())
    storage.write(run_path(run_id, "plan.json"), json.dumps(asdict(planned.work), indent=1).encode())
    return str(json.loads(storage.read(path))["run_date"])


def _report(storage: Storage, run_id: str) -> str:
    """Where a published run's report is; it is written where a crash came before it."""
    path = run_path(run_id, "report/index.html")
    return storage.uri(path) if storage.exists(path) else write_report(storage, run_id)


def _inputs_shown(db: PlanDB) -> bytes:
    """Training pictures of the concepts that a report may show, in the order in which it samples them."""
    rows = db.connection.execute(
        "SELECT concept_id, list_transform(images, lambda image: image.uri) FROM concepts "
        f"WHERE code IS NULL ORDER BY md5(concept_id) LIMIT {_INPUTS_SHOWN}"
    ).fetchall()
    # A pre-signed address is a secret, and without its signature of no use: the manifest keeps it.
    return json.dumps({name: uris for name, uris in rows if not any(map(is_signed, uris))}).encode()
