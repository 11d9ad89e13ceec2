"""`perfusion retry`: retries the failed rows of a finished run, and nothing else."""

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import Address, Json, Run, Set, Target
from jobs.output import OK, complain, counted, refuse, say, say_json

if TYPE_CHECKING:
    from pipeline.contract.errors import Code

Failed = Annotated[bool, typer.Option("--failed", help="retry every failed row (default)")]
OneCode = Annotated[
    str | None, typer.Option("--code", metavar="CODE", help="retry only rows with this error code", show_default=False)
]
DeadLetters = Annotated[
    bool, typer.Option("--dead-letters", help="retry only worker_died, timed_out, out_of_memory, internal")
]
Only = Annotated[str | None, typer.Option("--only", hidden=True)]

# The words by which runs know which rows they retry. They are part of a run's identity, so they stay as they are.
_FAILED, _CODE, _DEAD_LETTERS = "failed", "code=", "from=dead-letter"


def command(
    target: Target,
    run: Run = None,
    *,
    failed: Failed = False,
    code: OneCode = None,
    dead_letters: DeadLetters = False,
    only: Only = None,
    set_: Set = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Retry the failed rows of a finished run.

    This is a new run, with the settings and the manifests that the finished one was started with. --set changes a
    setting. Rows whose input is bad are not retried: correct them, then use `perfusion run`.
    """
    from jobs.placement.address import placed
    from jobs.run import run as execute
    from jobs.spec import settings_of
    from jobs.target import finished_run_of
    from pipeline.plan.retry import to_retry
    from pipeline.plan.selection import Selection
    from pipeline.runs.record import RunRecord

    which = _which(failed=failed, code=code, dead_letters=dead_letters, only=only)
    codes = _codes(which)
    storage, chosen = finished_run_of(target, run)
    again = to_retry(storage, chosen, codes)
    if not again.rows:
        if json:
            say_json({"run_id": None, "retried": chosen, "rows": 0, "refused": again.refused, "exit_code": OK})
        else:
            say(f"no row of run {chosen} failed{_with(which)}: nothing to do")
            if again.refused:
                say(f"  {_refused(again.refused)}")
        raise typer.Exit(OK)
    recorded = RunRecord(storage, chosen).spec().settings
    settings = placed(settings_of(recorded, storage.root, set_ or ()), address)
    complain(f"retrying {counted(again.rows, 'row')} of run {chosen}")
    if again.refused:
        complain(_refused(again.refused))
    raise typer.Exit(execute(settings, json=json, selection=Selection(f"retry {chosen} {which}", keys=again.keys)))


def _refused(counts: dict[str, int]) -> str:
    codes = ", ".join(f"{count:,} {code}" for code, count in counts.items())
    total = sum(counts.values())
    rows = f"{counted(total, 'row')} {'was' if total == 1 else 'were'}"
    return f"{rows} refused before any work ({codes}): correct what is wrong, then use `perfusion run`"


def _which(*, failed: bool, code: str | None, dead_letters: bool, only: str | None) -> str:
    """The one of `failed`, `code=CODE` and `from=dead-letter` that the options give."""
    given = [
        *([_FAILED] if failed else []),
        *([f"{_CODE}{code}"] if code is not None else []),
        *([_DEAD_LETTERS] if dead_letters else []),
        *([only] if only is not None else []),
    ]
    if len(given) > 1:
        refuse("--failed, --code and --dead-letters exclude each other: give one of them")
    if only is not None:
        complain(f"--only {only} is the old spelling, and the next version drops it: write {_option(only)}")
    return given[0] if given else _FAILED


def _option(which: str) -> str:
    """The option that is spelled today."""
    if which.startswith(_CODE):
        return f"--code {which.removeprefix(_CODE)}"
    return {_FAILED: "--failed", _DEAD_LETTERS: "--dead-letters"}.get(which, "--failed, --code or --dead-letters")


def _with(which: str) -> str:
    if which.startswith(_CODE):
        return f" with {which.removeprefix(_CODE)}"
    return " as a dead letter" if which == _DEAD_LETTERS else ""


def _codes(which: str) -> "frozenset[Code]":
    from pipeline.contract.errors import Code
    from pipeline.plan.retry import DEAD_LETTER, FAILED

    if which == _FAILED:
        return FAILED
    if which == _DEAD_LETTERS:
        return DEAD_LETTER
    code = which.removeprefix(_CODE)
    if which.startswith(_CODE) and code in set(Code):
        return frozenset({Code(code)})
    if which.startswith(_CODE):
        refuse(f"{code!r} is not an error code: give one of {', '.join(sorted(Code))}")
    return refuse(f"unknown value {which} for --only: give --failed, --code CODE or --dead-letters instead")
