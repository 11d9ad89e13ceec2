"""The `perfusion` command. A known error ends it with a message and an exit code, an unknown one with a traceback.

Exit codes: 0 ok, 1 crash or outage, 2 usage or unusable manifest, 3 finished with rows that are not ok, 4 stopped
before the end, 130 interrupted before the work began. Those of errors are in `perfusion_ops.errors`.
"""

import sys

import typer

from jobs.commands import catalog, demo, plan, query, report, retry, run, schema, score, status
from jobs.output import INTERRUPTED, complain
from perfusion_ops.errors import PerfusionError

app = typer.Typer(
    name="perfusion",
    help="Personalised product pictures in bulk: manifests in, tiny concepts, pictures and tables out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.command)
app.command("catalog")(catalog.command)
app.command("validate")(plan.validate)
app.command("plan")(plan.plan)
app.command("run")(run.command)
app.command("rerender")(run.rerender)
app.command("retry")(retry.command)
app.command("status")(status.command)
app.command("query")(query.command)
app.command("score")(score.command)
app.command("report")(report.command)
app.command("schema")(schema.command)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="perfusion")
    except PerfusionError as error:
        for line in str(error).splitlines():
            complain(line)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # how typer ends a command after Ctrl-C
            complain("stopped; run the same command again to resume")
        raise
