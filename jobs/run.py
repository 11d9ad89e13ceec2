"""`perfusion run`: from a spec to published tables; again resumes, and again reuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

import typer

from jobs.output import FAILED_ROWS, OK, STOPPED, complain, say, say_json
from jobs.progress import Progress
from jobs.spec import load_spec
from pipeline.executor import Worker
from pipeline.run import Engine, RunResult, execute
from pipeline.settings import RunSettings
from pipeline.worker_settings import WorkerSettings

Spec = Annotated[str, typer.Argument(help="spec file: .yaml, .toml or .json", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="override one setting of the spec")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


def command(spec: Spec, set_: Set = None, json: Json = False) -> None:
    """Train every product, render every prompt, publish the tables. Run it again to resume or to reuse."""
    raise typer.Exit(run(load_spec(spec, set_ or ()), json=json))


def run(settings: RunSettings, *, json: bool) -> int:
    """Execute and report one run; returns the exit code."""
    with Progress() as progress:
        result = execute(settings, make_engine=partial(_engine, settings), observer=progress)
    if result.published is None:
        complain(f"run {result.run_id} was stopped before its end; the same command goes on where it stopped")
        return STOPPED
    code = OK if _all_ok(result.published.statuses) else FAILED_ROWS
    if json:
        say_json(
            {
                "run_id": result.run_id,
                "resumed": result.resumed,
                "statuses": result.published.statuses,
                "codes": result.published.codes,
                "reused": {
                    "concepts": result.planned.work.concepts.reused,
                    "renders": result.planned.work.renders.reused,
                },
                "files": [file.path for file in result.published.files],
                "report": result.report,
                "seconds": round(result.seconds, 3),
                "engine": result.summary,
                "exit_code": code,
            }
        )
        return code
    _tell(result)
    return code


def _tell(result: RunResult) -> None:
    published, work = result.published, result.planned.work
    assert published is not None
    made = work.concepts.keys_to_do + work.renders.keys_to_do
    say()
    say(f"run {result.run_id}{' (resumed)' if result.resumed else ''} finished in {result.seconds:.1f} s")
    for name, each in (("concepts", work.concepts), ("renders", work.renders)):
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(published.statuses[name].items()))
        say(f"  {name:9} {counts}; {each.reused:,} reused, {each.rows - each.reused - each.invalid:,} made or tried")
    if made == 0:
        say("  nothing was left to do: every concept and every picture was reused")
    for name in ("concepts", "renders"):
        for code, count in sorted(published.codes[name].items()):
            say(f"  {count:,} {name} rows: {code}")
    for file in published.files:
        say(f"  table   {file.path} ({file.rows:,} rows)")
    say(f"  report  {result.report}")


def _all_ok(statuses: dict[str, dict[str, int]]) -> bool:
    return all(status == "ok" for counts in statuses.values() for status, count in counts.items() if count)


@contextmanager
def _engine(settings: RunSettings, worker: WorkerSettings) -> Iterator[Engine]:
    from cluster.local import start_local
    from pipeline.ray_executor import RayExecutor, SlotResources

    with start_local(slots=settings.engine.slots) as local:
        executor = RayExecutor(
            partial(_make_worker, worker),
            slots=local.slots,
            resources=SlotResources(local.num_cpus, local.num_gpus, local.threads),
            # Threads that spin while they wait for each other slow a busy machine down many times over.
            env_vars={"OMP_WAIT_POLICY": "PASSIVE"},
        )
        try:
            yield Engine(executor, local.stop)
        finally:
            executor.close()


def _make_worker(settings: WorkerSettings) -> Worker:
    from pipeline.worker import PerfusionWorker

    return PerfusionWorker(settings)
