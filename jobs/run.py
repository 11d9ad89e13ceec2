"""Executes one run, shows its progress, and reports the result as text or JSON."""

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import PurePosixPath
from typing import Any

from cluster.metrics import Metrics
from jobs.lineage.start import lineage_of
from jobs.logs.json_log import installed
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
from jobs.placement.engine import engines
from jobs.progress import watching
from pipeline.contract.errors import MEANING, Code
from pipeline.contract.kinds import RESULTS
from pipeline.contract.layout import table_path
from pipeline.observer import Observer, Observers
from pipeline.plan.changes import Changes
from pipeline.plan.selection import Selection
from pipeline.run import MakeEngine, RunResult, execute
from pipeline.runs.record import Published
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage


def part(limit: int | None, sample: int | None) -> Selection | None:
    """The part of the plan that `--limit` or `--sample` selects; None is all of it."""
    if limit is not None and sample is not None:
        refuse("--limit and --sample exclude each other: give one of them")
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
    """Execute one run and print its result; returns the exit code.

    Args:
        settings: the run.
        json: whether to print one JSON object instead of text.
        selection: a part of the plan; default: all of it.
        explain: whether to say why each concept and render has to be made.
        make_engine: gives the workers; default: Ray, as the settings say.

    Raises:
        PerfusionError: the run cannot start or continue.
    """
    result = executed(settings, selection=selection, explain=explain, make_engine=make_engine)
    published, code = result.published, exit_code(result)
    if not json:
        tell_notices(result.planned.checked.notices)
    if json:
        say_json(_summary(result, code))
    elif published is not None:
        _tell(result, published, Storage(settings.root))
    if published is None:
        complain(stopped(result))
    return code


def executed(
    settings: RunSettings,
    *,
    selection: Selection | None = None,
    explain: bool = False,
    make_engine: MakeEngine | None = None,
    also: Observer | None = None,
) -> RunResult:
    """Execute one run and show it on stderr; stdout stays empty.

    Arguments and errors are those of `run`; `also` is told what happens.
    """
    # Ray reports dead workers on stdout, which is for the result alone.
    with (
        redirect_stdout(sys.stderr),
        lineage_of(settings) as lineage,
        nullcontext(make_engine) if make_engine else engines(settings) as start,
        watching() as progress,
        Metrics(settings.engine) as metrics,
    ):
        observer = Observers(progress, metrics, *([lineage] if lineage else ()), *([also] if also else ()))
        result = execute(settings, make_engine=start, observer=observer, selection=selection, explain=explain)
        if lineage:
            lineage.ended(result)
    if (log := installed()) and result.published:
        log.name(run_id=result.run_id)
        log.published(result.published.statuses, result.published.codes)
    return result


def exit_code(result: RunResult) -> int:
    """The exit code of a command that ends with this run."""
    published = result.published
    return STOPPED if published is None else OK if _all_ok(published.statuses) else FAILED_ROWS


def stopped(result: RunResult) -> str:
    """What is left of a run that stopped, why it stopped, and what to do."""
    left = f"{counted(result.left.concepts, 'concept')} and {counted(result.left.renders, 'render')} left"
    why = f": {result.summary.stopped}" if result.summary.stopped else ""
    return f"run {result.run_id} stopped with {left}{why}; run the same command again to resume"


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
        say(f"run {result.run_id} of {published.run_date} already covers this spec (checked in {took})")
    else:
        say(f"run {result.run_id}{' (resumed)' if result.resumed else ''} finished in {took}")
    for table, each in work.items():
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(published.statuses[table.name].items()))
        say(f"  {table.name:9} {counts or 'none'}; {each.reused:,} of them reused")
    tell_changes(result.planned.changes)
    for left_out in result.planned.missing.reasons:
        say(f"  {left_out.sentence}")
    if not work.concepts.keys_to_do and not work.renders.keys_to_do:
        say("  nothing to do: everything that can be made exists already")
    for table in RESULTS:
        for code, count in sorted(published.codes[table.name].items()):
            say(f"  {table.name:9} {count:,} {code}: {MEANING[Code(code)]}")
    folder = PurePosixPath(table_path("*", published.run_date, published.run_id)).parent
    say(f"  tables    {location(f'{storage.root}/{folder}')}")
    if result.report:
        say(f"  report    {location(result.report)}")


def tell_changes(changes: Changes | None) -> None:
    """Print why concepts and renders have to be made."""
    for table, counts in changes.items() if changes else ():
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        say(f"  {table.name:9} to do because of: {reasons or 'nothing'}")


def _all_ok(statuses: dict[str, dict[str, int]]) -> bool:
    return all(status == "ok" for counts in statuses.values() for status, count in counts.items() if count)
