"""`perfusion status`: the state of the runs of a root."""

from typing import Annotated

import typer

from jobs.options import Json, Target
from jobs.output import refuse, say, say_json, table

Run = Annotated[str | None, typer.Argument(help="run id; default: all runs", show_default=False)]

_TABLES = ("concepts", "renders")


def command(target: Target, run: Run = None, json: Json = False) -> None:
    """Show the state of the runs of a root. Reads storage alone, so it works on any machine."""
    from jobs.target import storage_of
    from pipeline.clock import SystemClock
    from pipeline.runs.status import read_status

    found = read_status(storage_of(target), SystemClock(), run)
    if run is not None and not found:
        refuse(f"there is no run {run!r} under {target}: `perfusion status {target}` lists them")
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


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _counts(planned: dict[str, int], statuses: dict[str, dict[str, int]], name: str) -> str:
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.get(name, {}).items()))
    return f"{counts or 'none'} of {planned.get(name, 0):,}"
