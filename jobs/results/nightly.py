"""The one JSON line of `perfusion nightly`: what a run did, what it cost, and how it differs from the run before.

Every line has every field of `FIELDS`, so that a rule of an alerting system never meets a missing one; what is unknown
is null. `docs/logs.md` repeats the list (a test compares).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from jobs.logs.json_log import without_secrets
from jobs.output import CRASH, INTERRUPTED, complain, say_json, tell_notices
from jobs.run import executed, exit_code, stopped
from pipeline.contract.kinds import RESULTS, PlanCounts
from pipeline.contract.layout import table_path
from pipeline.contract.units import Outcome
from pipeline.engine.figures import EngineError, RunSummary
from pipeline.observer import Begun, Pulse
from pipeline.run import MakeEngine, RunResult
from pipeline.runs.record import Published, RunRecord
from pipeline.runs.status import newest_whole_run
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage

FIELDS = {
    "run_id": "the run; null if the command ended before it began one",
    "state": "`finished` (published), `stopped` (start it again to resume) or `error`",
    "exit_code": "the exit code of the command",
    "seconds": "since the command began",
    "resumed": "whether an earlier command began the run",
    "repeated": "whether an earlier run is the answer, because nothing changed",
    "changes": "why work had to be done: by table, keys by reason",
    "work": "by table: `rows`, `made` by this command, `reused`, and `failed` with rows by error code",
    "left": "by table, keys without an outcome: 0 unless the run stopped",
    "accelerator_hours": "that this command spent on units of work; multiply it by your price",
    "wasted_hours": "the part of them that gave no outcome",
    "compared_with": "the newest finished run of all rows under the root when the command began",
    "failures": "by table, against that run: rows of `new` and of `gone` error codes, and `delta`, the change by code",
    "tables": "by table, the folder with the published files",
    "report": "the HTML report",
    "error": "`type` and `message` of the error that ended the command",
}


def nightly(load: Callable[[], RunSettings], *, make_engine: MakeEngine | None = None) -> int:
    """Execute the run as `perfusion rerender` does and print exactly one line on stdout; returns the exit code.

    Args:
        load: gives the settings; its errors are told in the line too.
        make_engine: gives the workers; default: Ray, as the settings say.

    Raises:
        BaseException: what ended the run, after the line was printed.
    """
    began, watch = time.monotonic(), _Watch()
    try:
        settings = load()
        storage = Storage(settings.root, settings.storage_options or None)
        before = newest_whole_run(storage)
        compared = RunRecord(storage, before).published() if before else None
        result = executed(settings, explain=True, make_engine=make_engine, also=watch)
        line = _of_result(result, compared, storage)
    except BaseException as error:
        say_json(line_of_error(error, time.monotonic() - began, watch.run))
        raise
    say_json(_complete(line, time.monotonic() - began))
    tell_notices(result.planned.checked.notices)
    if result.published is None:
        complain(stopped(result))
    return exit_code(result)


def line_of_error(error: BaseException, seconds: float, run: Begun | None = None) -> dict[str, Any]:
    """The line of a command that an error ends."""
    code = getattr(error, "exit_code", None)  # of our own errors, and of those of the command line parser
    if isinstance(error, SystemExit):
        code = error.code
    elif isinstance(error, KeyboardInterrupt):
        code = INTERRUPTED
    message = getattr(error, "message", None) or str(error)
    told = {"type": type(error).__name__, "message": without_secrets(str(message))}
    line = {"state": "error", "exit_code": code if isinstance(code, int) else CRASH, "error": told}
    if run is not None:
        line |= {"run_id": run.run_id, "resumed": run.resumed, "repeated": False}
    if isinstance(error, EngineError):
        line |= _cost(error.summary)
    return _complete(line, seconds)


def _complete(line: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The line with all fields, in their order."""
    return {name: round(seconds, 3) if name == "seconds" else line.get(name) for name in FIELDS}


def _of_result(result: RunResult, compared: Published | None, storage: Storage) -> dict[str, Any]:
    line = {
        "run_id": result.run_id,
        "state": "stopped",
        "exit_code": exit_code(result),
        "resumed": result.resumed,
        "repeated": result.repeated,
        "changes": result.planned.changes,
        "left": result.left,
        "compared_with": compared.run_id if compared else None,
        "report": result.report,
        **_cost(result.summary),
    }
    if (published := result.published) is None:
        return line
    folders = {
        table.name: PurePosixPath(table_path(table.name, published.run_date, published.run_id)).parent
        for table in RESULTS
    }
    work = {
        table.name: {
            "rows": counts.rows,
            "made": max(0, published.statuses[table.name].get("ok", 0) - counts.reused),
            "reused": counts.reused,
            "failed": published.codes[table.name],
        }
        for table, counts in result.planned.work.items()
    }
    return {
        **line,
        "state": "finished",
        "work": work,
        "failures": _compared(compared, published) if compared else None,
        "tables": {name: storage.uri(str(folder)) for name, folder in folders.items()},
    }


def _cost(summary: RunSummary) -> dict[str, float]:
    hours = {"accelerator_hours": sum(summary.busy_s.values()), "wasted_hours": summary.wasted_s}
    return {name: round(seconds / 3600, 6) for name, seconds in hours.items()}


def _compared(before: Published, now: Published) -> dict[str, dict[str, dict[str, int]]]:
    """Failures by code of two runs, per table."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for table in RESULTS:
        old, new = before.codes[table.name], now.codes[table.name]
        delta = {code: new.get(code, 0) - old.get(code, 0) for code in sorted({*old, *new})}
        found[table.name] = {
            "new": {code: count for code, count in new.items() if not old.get(code)},
            "gone": {code: count for code, count in old.items() if not new.get(code)},
            "delta": {code: change for code, change in delta.items() if change},
        }
    return found


class _Watch:
    """The `pipeline.observer.Observer` that remembers which run began."""

    def __init__(self) -> None:
        self.run: Begun | None = None

    def stage(self, name: str, detail: str) -> None:
        """Nothing to remember."""

    def planned(self, work: PlanCounts) -> None:
        """Nothing to remember."""

    def begun(self, run: Begun) -> None:
        """Remember the run."""
        self.run = run

    def working(self, pulse: Pulse) -> None:
        """Nothing to remember."""

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing to remember."""
