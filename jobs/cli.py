"""The `perfusion` command. A known error ends it with a message and an exit code, an unknown one with a traceback.

Exit codes: 0 ok, 1 crash or outage, 2 usage or unusable manifest, 3 finished with rows that are not ok, 4 stopped
before the end, 130 interrupted before the work began. Those of errors are in `perfusion_ops.errors`.
"""

import sys
from contextlib import ExitStack
from importlib.metadata import version
from typing import Annotated

import typer

from jobs.commands import (
    cluster,
    demo,
    export,
    nightly,
    plan,
    query,
    report,
    retry,
    run,
    schema,
    score,
    status,
    submit,
    sweep,
)
from jobs.options import Log, LogFormat
from jobs.output import INTERRUPTED, OK, complain, fail, say
from perfusion_ops.errors import PerfusionError

app = typer.Typer(
    name="perfusion",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"perfusion {version('perfusion-pipeline')}")
        raise typer.Exit(OK)


Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version")]


@app.callback()
def _perfusion(context: typer.Context, log: Log = LogFormat.TEXT, _: Version = False) -> None:
    """Bulk personalisation of product photos: manifests in, concepts, renders and tables out."""
    if log is LogFormat.JSON:
        from jobs.logs.json_log import JsonLog

        context.ensure_object(ExitStack).enter_context(JsonLog(sys.stderr))


app.command("demo")(demo.demo)
app.command("catalog")(demo.catalog)
app.command("validate")(plan.validate)
app.command("plan")(plan.plan)
app.command("run")(run.command)
app.command("rerender")(run.rerender)
app.command("nightly", cls=nightly.OneLine)(nightly.command)
app.command("retry")(retry.command)
app.command("submit")(submit.submit)
app.command("jobs")(submit.jobs)
app.command("logs")(submit.logs)
app.command("stop")(submit.stop)
app.command("status")(status.command)
app.command("query")(query.command)
app.command("score")(score.command)
app.command("sweep")(sweep.command)
app.command("report")(report.command)
app.command("export")(export.command)
app.command("schema")(schema.command)
app.add_typer(cluster.app, name="cluster")


def main() -> None:
    """Entry point of the console script."""
    from cluster.signals import sigterm_interrupts

    with sigterm_interrupts(), ExitStack() as log:  # the JSON log, if the command opens it
        try:
            app(prog_name="perfusion", obj=log)
        except PerfusionError as error:
            fail(error)
        except SystemExit as end:
            if end.code == INTERRUPTED and isinstance(end.__context__, typer.Exit):  # how typer ends it after Ctrl-C
                complain("stopped; run the same command again to resume")
            raise
