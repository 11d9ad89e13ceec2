"""`perfusion status`: the state of the runs of a root, once or until a run ends."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from jobs.options import Json, Target
from jobs.output import INTERRUPTED, OK, STOPPED, complain, refuse, say, say_json, table

if TYPE_CHECKING:
    from pipeline.runs.status import RunStatus
    from pipeline.storage.objects import Storage

Run = Annotated[str | None, typer.Argument(help="run id; default: all runs", show_default=False)]
Watch = Annotated[
    bool, typer.Option("--watch", help="show one run until it ends: RUN, else the newest unfinished, else the newest")
]
Every = Annotated[
    float | None,
    typer.Option(
        "--every",
        min=1.0,
        metavar="SECONDS",
        help="with --watch: time between two readings; default: 5",
        show_default=False,
    ),
]

_TABLES = ("concepts", "renders")
_EVERY_S = 5.0
_PATIENCE_S = 60.0  # a watch of hours survives a short outage of the store


def command(target: Target, run: Run = None, *, watch: Watch = False, every: Every = None, json: Json = False) -> None:
    """Show the state of the runs of a root. Reads storage alone, so it works on any machine.

    --watch ends with exit code 0 when the run is finished, 4 when it is interrupted, and 130 after Ctrl-C, which leaves
    the run alone. With --json it prints one line per change.
    """
    from jobs.target import storage_of
    from pipeline.clock import SystemClock
    from pipeline.runs.status import read_status

    if every is not None and not watch:
        refuse("--every needs --watch: it is the time between two readings")
    storage = storage_of(target)
    if watch:
        raise typer.Exit(_watch(storage, target, run, every or _EVERY_S, json=json))
    found = read_status(storage, SystemClock(), run)
    if run is not None and not found:
        _refuse_unknown(target, run)
    if json:
        say_json({"runs": found})
        return
    if not found:
        say(f"no runs under {target} yet")
        return
    rows = [
        (
            each.run_id,
            _minute(each.began_at),
            each.state,
            *(_counts(each.planned, each.statuses, name) for name in _TABLES),
        )
        for each in found
    ]
    table(("run", "began (UTC)", "state", *_TABLES), rows)
    for each in found:
        if each.state == "running":
            say(f"{each.run_id} is running: {each.holder}")
        elif each.state == "interrupted":
            say(f"{each.run_id} was interrupted: run the command that started it again to resume")


def _watch(storage: "Storage", target: str, run: str | None, every_s: float, *, json: bool) -> int:
    """Show one run until it ends; returns the exit code."""
    from rich.console import Console

    from jobs.results.watch import JsonLines, Lines, LiveTable, watch
    from pipeline.clock import SystemClock
    from pipeline.runs.status import RunReader, run_to_watch
    from pipeline.storage.patience import Patience, PatientStorage

    clock = SystemClock()
    run_id = run_to_watch(storage, run)
    if run_id is None:
        _refuse_unknown(target, run)
    patience = Patience(budget_s=_PATIENCE_S)
    reader = RunReader(PatientStorage(storage.root, storage.options, patience), clock, run_id)

    def read() -> "RunStatus":
        patience.renew()
        return patience(reader.read)

    console = Console()
    try:
        if json or not console.is_terminal:
            view = JsonLines(clock) if json else Lines(clock)
            state = watch(read, view, every_s=every_s, clock=clock, wait=_wait)
        else:
            with LiveTable(console, clock) as live:
                state = watch(read, live, every_s=every_s, clock=clock, wait=_wait)
    except KeyboardInterrupt:
        complain(f"stopped watching; run {run_id} is not affected")
        raise SystemExit(INTERRUPTED) from None
    if state == "interrupted":
        complain(f"run {run_id} was interrupted: run the command that started it again to resume")
    return OK if state == "finished" else STOPPED


def _wait(seconds: float) -> None:
    sys.stdout.flush()  # a pipe gets each line at once
    time.sleep(seconds)


def _refuse_unknown(target: str, run: str | None) -> NoReturn:
    if run is None:
        refuse(f"there is no run under {target} yet")
    refuse(f"there is no run {run!r} under {target}: `perfusion status {target}` lists them")


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _counts(planned: dict[str, int], statuses: dict[str, dict[str, int]], name: str) -> str:
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.get(name, {}).items()))
    return f"{counts or 'none'} of {planned.get(name, 0):,}"
