"""`perfusion status`: how the runs of a root stand."""

from typing import Annotated

import typer

from jobs.output import USAGE, complain, say, say_json, storage_of, table
from jobs.run import Json

Target = Annotated[str, typer.Argument(help="a root, or a spec file that names one", show_default=False)]
Run = Annotated[str | None, typer.Argument(help="one run", show_default=False)]


def command(target: Target, run: Run = None, json: Json = False) -> None:
    """Say how runs stand, from storage alone: finished, running or interrupted, and their outcomes so far."""
    from pipeline.clock import SystemClock
    from pipeline.status import read_status

    found = read_status(storage_of(target), SystemClock(), run)
    if run is not None and not found:
        complain(f"there is no run {run!r} under {target}: `perfusion status {target}` lists them")
        raise typer.Exit(USAGE)
    if json:
        say_json({"runs": found})
        return
    if not found:
        say(f"no runs under {target} yet")
        return
    rows = [
        (
            each.run_id,
            each.run_date,
            each.state,
            *(_counts(each.planned, each.statuses, name) for name in _TABLES),
            each.holder,
        )
        for each in found
    ]
    table("", ("run", "date", "state", *_TABLES, "worked on by"), rows)


_TABLES = ("concepts", "renders")


def _counts(planned: dict[str, int], statuses: dict[str, dict[str, int]], name: str) -> str:
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.get(name, {}).items()))
    return f"{counts or 'none'} of {planned.get(name, 0):,}"
