"""`perfusion report`: writes the report of a finished run again."""

from typing import Annotated

import typer

from jobs.options import Json, Run, Target
from jobs.output import location, say, say_json

Most = Annotated[int, typer.Option("--concepts", min=0, help="products shown at most")]


def command(target: Target, run: Run = None, concepts: Most = 60, json: Json = False) -> None:
    """Write the report of a run again: one self-contained HTML file.

    It shows totals, failures, scores, and photos beside renders.
    """
    from jobs.target import finished_run_of
    from pipeline.report.page import write_report

    storage, run_id = finished_run_of(target, run)
    uri = write_report(storage, run_id, max_concepts=concepts)
    if json:
        say_json({"run_id": run_id, "report": uri})
    else:
        say(location(uri))
