"""The events and fields of the JSON log. `docs/logs.md` repeats both tables (a test compares them).

Events and fields may be added, but never renamed: programs read them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """What one kind of line says.

    Attributes:
        meaning: when the line is written.
        fields: its own fields, beside those in `COMMON`.
    """

    meaning: str
    fields: tuple[str, ...] = ()


# In every line; run_id and lease as soon as the run has begun.
COMMON = ("time", "level", "event", "message", "run_id", "lease")

EVENTS = {
    "stage": Event("a stage of the run begins", ("stage",)),
    "planned": Event("the plan is complete", ("concepts", "renders")),
    "begun": Event("this command holds the run", ("run_date", "resumed")),
    "progress": Event(
        "when work begins, then at most once a minute",
        ("done", "left", "failed", "per_s", "slots", "spent_s"),
    ),
    "task": Event(
        "a concept or a render did not end ok",
        ("kind", "key", "status", "error_code", "column", "attempts", "worker"),
    ),
    "log": Event("a warning or an error of a module or a library", ("logger", "slot", "unit", "key", "trace")),
    "message": Event("what the command tells its user"),
    "output": Event("a line that other software wrote to stdout or stderr"),
    "error": Event("the error that ends the command", ("type", "exit_code", "trace")),
    "end": Event("the last line of every command", ("exit_code", "seconds", "statuses", "codes")),
}

FIELDS = {
    "time": "when the line was written: RFC 3339, UTC, milliseconds",
    "level": "`info`, `warning`, `error` or `critical`",
    "event": "one of the events above",
    "message": "text for people; of `task` the error message of its row",
    "run_id": "the run",
    "lease": "the attempt: 1 for the command that began the run, one more for each command that resumed it",
    "stage": "`base`, `validate`, `plan`, `start`, `publish` or `report`",
    "concepts": "counts of the plan: `rows`, `invalid`, `reused`, `to_do`, and `keys`, `keys_to_do` without equal rows",
    "renders": "the same counts of renders",
    "run_date": "YYYY-MM-DD, UTC, as in the tables",
    "resumed": "whether an earlier command began the run",
    "done": "`concepts` and `renders` that ended ok, since this command began",
    "left": "`concepts` and `renders` without an outcome",
    "failed": "`concepts` and `renders` that did not end ok, since this command began",
    "per_s": "`concepts` and `renders` that ended per second, since the line before; null in the first line",
    "slots": "workers that are `ready`, `running` (of the ready ones), `leaving`, `starting` and `quarantined`",
    "spent_s": "accelerator seconds since this command began",
    "kind": "`concept` or `render`",
    "key": "the content key: `concept_key` or `render_key` of the tables; in `log` only if one task is meant",
    "status": "`failed` or `invalid`",
    "error_code": "the error code of the row ([list](manifests.md#what-may-be-wrong-with-a-row))",
    "column": "the column of the manifest that is at fault; null if none is",
    "attempts": "how often the task was tried",
    "worker": "the name of the worker; null if no worker had it",
    "logger": "the name of the logger",
    "slot": "the number of the slot that is meant",
    "unit": "the name of the unit of work that is meant",
    "trace": "the traceback, if there is one",
    "type": "the class of the error",
    "exit_code": "the exit code of the command",
    "seconds": "since the command began",
    "statuses": "published rows by table and status, if the command published a run or found it published",
    "codes": "published rows by table and error code, with `statuses`",
}
