"""`perfusion status`: how the runs of a root stand."""

from typing import Annotated

import typer

from jobs.commands.run import Json
from jobs.output import refuse, say, say_json, table
from jobs.target import Target, storage_of

Run = Annotated[str | None, typer.Argument(help="one run", show_default=False)]

_TABLES = ("concepts", "renders")


def command(target: Target, run: Run = None, json: Json = False) -> None:
    """Say how the runs of a root stand. Reads storage alone, so any machine can ask."""
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
            say(f"{each.run_id} is worked on by {each.holder}")
        elif each.state == "interrupted":
            say(f"{each.run_id} was interrupted: the command that started it goes on where it stopped")


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _counts(planned: dict[str, int], statuses: dict[str, dict[str, int]], name: str) -> str:
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.get(name, {}).items()))
    return f"{counts or 'none'} of {planned.get(name, 0):,}"
