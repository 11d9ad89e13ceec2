"""`perfusion report`: write a run's page again, with more or fewer products on it."""

from typing import Annotated

import typer

from jobs.commands.run import Json
from jobs.output import location, refuse, say, say_json
from jobs.target import Target, storage_of

Run = Annotated[str | None, typer.Argument(help="the run; the newest finished one when absent", show_default=False)]
Most = Annotated[int, typer.Option("--concepts", min=0, help="products shown at most")]


def command(target: Target, run: Run = None, concepts: Most = 60, json: Json = False) -> None:
    """Write a run's page: totals, failures, photos beside renders. One HTML file that needs no other."""
    from pipeline.clock import SystemClock
    from pipeline.report.page import write_report
    from pipeline.runs.status import read_status

    storage = storage_of(target)
    finished = [each.run_id for each in read_status(storage, SystemClock(), run) if each.state == "finished"]
    if not finished:
        refuse(f"there is no finished run{f' {run!r}' if run else ''} under {target}; see `perfusion status {target}`")
    uri = write_report(storage, finished[-1], max_concepts=concepts)
    if json:
        say_json({"run_id": finished[-1], "report": uri})
    else:
        say(location(uri))
