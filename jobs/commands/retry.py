"""`perfusion retry`: what failed in a run, and nothing else, once more."""

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.commands.run import Json, Set, run
from jobs.output import OK, complain, counted, refuse, say, say_json
from jobs.spec import settings_of
from jobs.target import Target, storage_of

if TYPE_CHECKING:
    from pipeline.contract.errors import Code

Run = Annotated[str | None, typer.Argument(help="the run; the newest finished one when absent", show_default=False)]
Only = Annotated[
    str, typer.Option("--only", metavar="failed|code=CODE|from=dead-letter", help="which of the rows that failed")
]


def command(target: Target, run_id: Run = None, only: Only = "failed", set_: Set = None, json: Json = False) -> None:
    """Do again what failed in a run that has ended.

    That is a run of its own, with the settings and the manifests that the first was started with; --set changes a
    setting. `from=dead-letter` means the rows that killed or hung their workers, did not fit in memory, or met a fault
    of the program.
    """
    from pipeline.clock import SystemClock
    from pipeline.contract.layout import run_path
    from pipeline.plan.retry import to_retry
    from pipeline.plan.selection import Selection
    from pipeline.runs.status import read_status

    codes = _codes(only)
    storage = storage_of(target)
    runs = read_status(storage, SystemClock(), run_id)
    if run_id is not None and runs and runs[-1].state != "finished":
        refuse(f"run {run_id} is not finished: run the command that started it again, and it resumes")
    finished = [each.run_id for each in runs if each.state == "finished"]
    if not finished:
        which = f" {run_id!r}" if run_id else ""
        refuse(f"there is no finished run{which} under {target}: see `perfusion status {target}`")
    chosen = finished[-1]
    again = to_retry(storage, chosen, codes)
    if not again.rows:
        if json:
            say_json({"run_id": None, "retried": chosen, "rows": 0, "refused": again.refused, "exit_code": OK})
        else:
            say(f"no row of run {chosen} failed{'' if only == 'failed' else f' with {only}'}: nothing to do")
            if again.refused:
                say(f"  {_refused(again.refused)}")
        raise typer.Exit(OK)
    settings = settings_of(storage.read(run_path(chosen, "spec.json")), storage.root, set_ or ())
    complain(f"doing {counted(again.rows, 'row')} of run {chosen} again")
    if again.refused:
        complain(_refused(again.refused))
    raise typer.Exit(run(settings, json=json, selection=Selection(f"retry {chosen} {only}", keys=again.keys)))


def _refused(counts: dict[str, int]) -> str:
    codes = ", ".join(f"{count:,} {code}" for code, count in counts.items())
    total = sum(counts.values())
    rows = f"{counted(total, 'row')} {'was' if total == 1 else 'were'}"
    return f"{rows} refused before any work ({codes}): correct what is wrong, then use `perfusion run`"


def _codes(only: str) -> "frozenset[Code]":
    from pipeline.contract.errors import Code
    from pipeline.plan.retry import DEAD_LETTER, FAILED

    if only == "failed":
        return FAILED
    if only == "from=dead-letter":
        return DEAD_LETTER
    name, _, code = only.partition("=")
    if name == "code" and code in set(Code):
        return frozenset({Code(code)})
    known = f"; codes are {', '.join(sorted(Code))}" if name == "code" else ""
    return refuse(f"--only {only} means nothing: give failed, code=CODE or from=dead-letter{known}")
