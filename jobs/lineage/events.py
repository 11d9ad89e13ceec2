"""The events of one attempt at a run: START when it begins, and COMPLETE, ABORT or FAIL when it ends.

Each attempt (each lease of a run) is an OpenLineage run of its own, because an OpenLineage run ends once and a stopped
run of ours is resumed. The facet `perfusion_attempt` names the run that the attempts belong to.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import attrs
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import RunFacet, error_message_run, job_type_job, parent_run, processing_engine_run

from jobs.lineage.naming import PACKAGE, attempt_id
from pipeline.contract.kinds import PerKind
from pipeline.observer import Begun
from pipeline.run import RunResult

VERSION = version("perfusion-pipeline")
PRODUCER = f"{PACKAGE}@{VERSION}"


@dataclass(frozen=True)
class JobRun:
    """A run of another program that started this one, such as a task of Airflow."""

    namespace: str
    name: str
    run_id: str


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run.

    Attributes:
        namespace: of the job.
        job: name of the job.
        root: URI of the root.
        begun: the run, and the number of the attempt.
        parent: what started it, if that was told.
        top: what started the parent, if that was told.
    """

    namespace: str
    job: str
    root: str
    begun: Begun
    parent: JobRun | None = None
    top: JobRun | None = None


@attrs.define
class PerfusionAttemptRunFacet(RunFacet):
    """What only this program knows of an attempt; the specification lets a facet with a prefix have fields of its own.

    Attributes:
        runId: the run, as `perfusion status` and the tables name it.
        runDate: partition of its tables.
        attempt: number of the lease, from 1.
        resumed: whether an earlier driver began the run.
        root: URI of the root.
        seconds: duration of the attempt.
        stopped: why it stopped before its work was done.
        left: concepts and renders without an outcome.
        reused: concepts and renders that existed before the attempt.
        statuses: rows of each table by status.
        codes: rows of each table by error code.
    """

    runId: str  # noqa: N815 (as OpenLineage spells its fields)
    runDate: str  # noqa: N815
    attempt: int
    resumed: bool
    root: str
    seconds: float | None = None
    stopped: str | None = None
    left: dict[str, int] | None = None
    reused: dict[str, int] | None = None
    statuses: dict[str, dict[str, int]] | None = None
    codes: dict[str, dict[str, int]] | None = None


@dataclass(frozen=True)
class Ending:
    """How an attempt ended.

    Attributes:
        state: COMPLETE, ABORT or FAIL.
        result: of the run; None if an exception ended it.
        message: why it stopped or failed; holds no secret.
    """

    state: RunState
    result: RunResult | None = None
    message: str = ""


@dataclass(frozen=True)
class Datasets:
    """What an event says was read and written."""

    inputs: list[InputDataset] = field(default_factory=list)
    outputs: list[OutputDataset] = field(default_factory=list)


def event(attempt: Attempt, datasets: Datasets, at: float, ending: Ending | None = None) -> RunEvent:
    """The event of a moment.

    Args:
        attempt: whose.
        datasets: what it reads and writes, as far as it is known.
        at: the moment, in seconds since 1970.
        ending: how the attempt ended; None: it begins.
    """
    begun = attempt.begun
    found = RunEvent(
        eventType=ending.state if ending else RunState.START,
        eventTime=datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        run=Run(attempt_id(attempt.root, begun.run_id, begun.lease), facets=_run_facets(attempt, ending)),
        job=Job(attempt.namespace, attempt.job, facets={"jobType": _job_type()}),
        inputs=datasets.inputs,
        outputs=datasets.outputs,
        producer=PRODUCER,
    )
    _sign(found)
    return found


def _sign(found: RunEvent) -> None:
    """Name this program as the producer of every facet; by default it is the client."""
    groups: list[Any] = [found.run.facets, found.job.facets]
    for each in found.inputs or ():
        groups += [each.facets, each.inputFacets]
    for each in found.outputs or ():
        groups += [each.facets, each.outputFacets]
    for facet in (facet for group in groups for facet in (group or {}).values()):
        facet._producer = PRODUCER


def _run_facets(attempt: Attempt, ending: Ending | None) -> dict[str, Any]:
    facets: dict[str, Any] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            version=VERSION, name="perfusion", openlineageAdapterVersion=VERSION
        ),
        "perfusion_attempt": _attempt_facet(attempt, ending),
    }
    if attempt.parent:
        facets["parent"] = _parent(attempt.parent, attempt.top)
    if ending and ending.state == RunState.FAIL:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message=ending.message, programmingLanguage="PYTHON"
        )
    return facets


def _attempt_facet(attempt: Attempt, ending: Ending | None) -> PerfusionAttemptRunFacet:
    begun = attempt.begun
    facet = PerfusionAttemptRunFacet(begun.run_id, begun.run_date, begun.lease, begun.resumed, attempt.root)
    if ending and ending.state == RunState.ABORT:
        facet.stopped = ending.message
    if result := ending.result if ending else None:
        work = result.planned.work
        facet.seconds = round(result.seconds, 3)
        facet.left = _named(result.left)
        facet.reused = _named(PerKind(work.concepts.reused, work.renders.reused))
        if result.published:
            facet.statuses, facet.codes = result.published.statuses, result.published.codes
    return facet


def _named(values: PerKind[int]) -> dict[str, int]:
    return {table.name: value for table, value in values.items()}


def _parent(parent: JobRun, top: JobRun | None) -> parent_run.ParentRunFacet:
    root = None
    if top:
        root = parent_run.Root(
            run=parent_run.RootRun(runId=top.run_id),
            job=parent_run.RootJob(namespace=top.namespace, name=top.name),
        )
    return parent_run.ParentRunFacet(
        run=parent_run.Run(runId=parent.run_id),
        job=parent_run.Job(namespace=parent.namespace, name=parent.name),
        root=root,
    )


def _job_type() -> job_type_job.JobTypeJobFacet:
    pattern = job_type_job.EmissionPattern(eventTrigger="EVENT_BASED", eventContentMode="ACCUMULATIVE")
    return job_type_job.JobTypeJobFacet(
        processingType="BATCH", integration="PERFUSION", jobType="RUN", emissionPattern=pattern
    )
