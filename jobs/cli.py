"""The `perfusion` command. Known errors end as a sentence and an exit code, unknown ones with their traceback.

Exit codes: 0 ok, 1 crash or outage, 2 usage or unusable manifest, 3 finished with rows that are not ok, 4 stopped
before the end, 130 interrupted before it began to work.
"""

import sys

import typer

from jobs.commands import catalog, demo, plan, query, report, retry, run, schema, score, status
from jobs.output import CRASH, INTERRUPTED, USAGE, complain
from jobs.spec_file import SpecError

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
    from cluster.local import ClusterError
    from perfusion_ops.base.folder import BaseError
    from perfusion_ops.mini.catalog import CatalogError
    from perfusion_ops.scoring.folder import ScorerError
    from pipeline.contract.errors import ManifestError
    from pipeline.database.memory import MemoryFullError, ScratchFullError, outage
    from pipeline.engine.scheduler import EngineError
    from pipeline.runs.lease import LeaseHeld
    from pipeline.storage.objects import StorageError

    try:
        app(prog_name="perfusion")
    except (SpecError, ManifestError, BaseError, CatalogError, ScorerError) as error:
        for line in str(error).splitlines():
            complain(line)
        sys.exit(USAGE)
    except (StorageError, LeaseHeld, EngineError, ClusterError, MemoryFullError, ScratchFullError) as error:
        complain(str(error))
        sys.exit(CRASH)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            complain("stopped; the same command goes on where it stopped")
        raise
    except Exception as error:
        if (sentence := outage(error)) is None:
            raise
        complain(sentence)
        sys.exit(CRASH)
