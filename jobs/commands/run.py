"""`perfusion run`: from a spec to published tables; again resumes, and again reuses."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any

import typer

from jobs.output import (
    FAILED_ROWS,
    OK,
    STOPPED,
    complain,
    counted,
    duration,
    location,
    refuse,
    say,
    say_json,
    tell_notices,
)
from jobs.progress import Progress
from jobs.spec import load_spec
from jobs.spec_file import SpecError
from pipeline.contract.errors import MEANING, Code
from pipeline.contract.kinds import RESULTS
from pipeline.contract.layout import table_path
from pipeline.engine.executor import Worker
from pipeline.plan.changes import Changes
from pipeline.plan.selection import Selection
from pipeline.run import Engine, MakeEngine, RunResult, execute
from pipeline.runs.record import Published
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage
from pipeline.worker.settings import WorkerSettings

Spec = Annotated[str, typer.Argument(help="spec file: .yaml, .toml or .json", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="override one setting of the spec")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]
First = Annotated[
    int | None, typer.Option("--limit", min=1, help="only the first so many pictures", show_default=False)
]
Drawn = Annotated[int | None, typer.Option("--sample", min=1, help="only so many pictures from all over")]


def command(spec: Spec, set_: Set = None, limit: First = None, sample: Drawn = None, json: Json = False) -> None:
    """Train every product, render every prompt, publish the tables. Run it again to resume or to reuse.

    With --limit or --sample it tries a part of the work, as a run of its own: whatever it makes, the whole reuses.
    """
    raise typer.Exit(run(load_spec(spec, set_ or ()), json=json, selection=part(limit, sample)))


def rerender(spec: Spec, set_: Set = None, json: Json = False) -> None:
    """Render what is new or out of date, and say why it was.

    Made anew is what differs in its base model, weights, settings or prompt; everything else is reused.
    """
    raise typer.Exit(run(load_spec(spec, set_ or ()), json=json, explain=True))


def part(limit: int | None, sample: int | None) -> Selection | None:
    """What `--limit` and `--sample` choose."""
    if limit is not None and sample is not None:
        refuse("--limit and --sample choose differently: give one of them")
    if limit is not None:
        return Selection(f"limit {limit}", first=limit)
    return None if sample is None else Selection(f"sample {sample}", drawn=sample)


def run(
    settings: RunSettings,
    *,
    json: bool,
    selection: Selection | None = None,
    explain: bool = False,
    make_engine: MakeEngine | None = None,
) -> int:
    """Execute and report one run, on a local Ray unless there is another engine; returns the exit code."""
    make_engine = make_engine or partial(_engine, settings)
    # Ray tells of dead workers on stdout, where a result is expected and nothing else.
    with redirect_stdout(sys.stderr), Progress() as progress:
        result = execute(settings, make_engine=make_engine, observer=progress, selection=selection, explain=explain)
    published = result.published
    code = STOPPED if published is None else OK if _all_ok(published.statuses) else FAILED_ROWS
    if not json:
        tell_notices(result.planned.checked.notices)
    if json:
        say_json(_summary(result, code))
    elif published is not None:
        _tell(result, published, Storage(settings.root))
    if published is None:
        left = f"{counted(result.left.concepts, 'concept')} and {counted(result.left.renders, 'render')} left"
        why = f", for {result.summary.stopped}" if result.summary.stopped else ""
        complain(f"run {result.run_id} was stopped with {left}{why}; the same command goes on where it stopped")
    return code


def _summary(result: RunResult, code: int) -> dict[str, Any]:
    published, work = result.published, result.planned.work
    return {
        "run_id": result.run_id,
        "resumed": result.resumed,
        "repeated": result.repeated,
        "statuses": published.statuses if published else {},
        "codes": published.codes if published else {},
        "changes": result.planned.changes,
        "missing": result.planned.missing,
        "notices": result.planned.checked.notices,
        "reused": {"concepts": work.concepts.reused, "renders": work.renders.reused},
        "left": result.left,
        "files": [file.path for file in published.files] if published else [],
        "report": result.report,
        "seconds": round(result.seconds, 3),
        "engine": result.summary,
        "exit_code": code,
    }


def _tell(result: RunResult, published: Published, storage: Storage) -> None:
    work = result.planned.work
    took = duration(result.seconds)
    if result.repeated:
        say(f"run {result.run_id} of {published.run_date} holds all of it, found out in {took}")
    else:
        say(f"run {result.run_id}{' (resumed)' if result.resumed else ''} finished in {took}")
    for table, each in work.items():
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(published.statuses[table.name].items()))
        say(f"  {table.name:9} {counts or 'none'}; {each.reused:,} of them reused")
    tell_changes(result.planned.changes)
    for left_out in result.planned.missing.reasons:
        say(f"  {left_out.sentence}")
    if not work.concepts.keys_to_do and not work.renders.keys_to_do:
        say("  nothing was left to do: all that can be made was there already")
    for table in RESULTS:
        for code, count in sorted(published.codes[table.name].items()):
            say(f"  {table.name:9} {count:,} {code}: {MEANING[Code(code)]}")
    folder = PurePosixPath(table_path("*", published.run_date, published.run_id)).parent
    say(f"  tables    {location(f'{storage.root}/{folder}')}")
    if result.report:
        say(f"  report    {location(result.report)}")


def tell_changes(changes: Changes | None) -> None:
    """Why things are to be done, or were."""
    for table, counts in changes.items() if changes else ():
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        say(f"  {table.name:9} to do because of: {reasons or 'nothing'}")


def _all_ok(statuses: dict[str, dict[str, int]]) -> bool:
    return all(status == "ok" for counts in statuses.values() for status, count in counts.items() if count)


@contextmanager
def _engine(settings: RunSettings, worker: WorkerSettings) -> Iterator[Engine]:
    from cluster.local import start_local
    from cluster.ray_executor import RayExecutor, SlotResources

    if worker.root.startswith("memory://"):
        raise SpecError("root is memory://, which every process has for itself: give a folder or an object store")
    with start_local(slots=settings.engine.slots) as local:
        executor = RayExecutor(
            partial(_make_worker, worker),
            slots=local.slots,
            resources=SlotResources(local.num_cpus, local.num_gpus, local.threads),
            # Threads that spin long for each other slow a busy machine down many times over; libgomp alone listens.
            env_vars={"GOMP_SPINCOUNT": "1000"},
        )
        try:
            yield Engine(executor, local.stop)
        finally:
            executor.close()


def _make_worker(settings: WorkerSettings) -> Worker:
    from pipeline.worker.perfusion_worker import PerfusionWorker

    return PerfusionWorker(settings)
