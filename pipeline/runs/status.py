"""How runs stand, read from storage alone: any machine can ask, and nothing has to be running."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from perfusion_ops.errors import UsageError
from pipeline.clock import Clock
from pipeline.contract.layout import run_path
from pipeline.database.memory import in_memory
from pipeline.runs.lease import describe_holder
from pipeline.storage.objects import Storage, StorageError
from pipeline.tables.parts import read_parts

State = Literal["finished", "running", "interrupted"]


class NoFinishedRunError(UsageError):
    """No run under a root is finished, or the named one is not; the message says what to do."""


@dataclass(frozen=True)
class RunStatus:
    """One run.

    Attributes:
        run_id: the run.
        run_date: YYYY-MM-DD, UTC, as in the tables.
        began_at: when its first attempt began, YYYY-MM-DDTHH:MM:SSZ; the date alone where only that was written.
        state: finished (published), running (its lease is alive), interrupted (run the same command again).
        holder: who works on it, empty otherwise.
        planned: rows of each manifest's work: concepts and renders.
        statuses: outcomes by status for each table; of an unfinished run, what is staged so far.
    """

    run_id: str
    run_date: str
    began_at: str
    state: State
    holder: str
    planned: dict[str, int]
    statuses: dict[str, dict[str, int]]


def read_status(storage: Storage, clock: Clock, run_id: str | None = None) -> list[RunStatus]:
    """Runs under a root, oldest first; only `run_id` if it is given.

    Raises:
        StorageError: the root, or a file of a run, cannot be read.
        LeaseHeld: a lease cannot be understood.
    """
    found = [_status(storage, clock, name, present) for name, present in _runs(storage, run_id).items()]
    return sorted(found, key=lambda run: (run.began_at, run.run_id))


def finished_run(storage: Storage, run_id: str | None = None, *, root: str | None = None) -> str:
    """The id of the newest finished run under a root, or `run_id` if that run is finished.

    Args:
        storage: the root.
        run_id: a run; default: the newest finished one.
        root: how messages name the root; default: its URI.

    Raises:
        NoFinishedRunError: no run is finished, or the named one is not.
        StorageError: the root, or a file of a run, cannot be read.
    """
    runs = _runs(storage, run_id)
    finished = [(_began_at(storage, name), name) for name, present in runs.items() if "published.json" in present]
    if finished:
        return max(finished)[1]
    if run_id is not None and run_id in runs:
        raise NoFinishedRunError(f"run {run_id} is not finished: run the command that started it again to resume it")
    which = f" {run_id!r}" if run_id is not None else ""
    root = root or storage.root
    raise NoFinishedRunError(f"there is no finished run{which} under {root}: see `perfusion status {root}`")


def _runs(storage: Storage, run_id: str | None) -> dict[str, set[str]]:
    """Names directly under each run's folder; only of runs that have begun, and only of `run_id` if it is given."""
    files: dict[str, set[str]] = defaultdict(set)
    for path, _ in storage.list("runs"):
        parts = PurePosixPath(path).parts
        if len(parts) > 2 and (run_id is None or parts[1] == run_id):
            files[parts[1]].add(parts[2])
    return {name: present for name, present in files.items() if "spec.json" in present}


def _began_at(storage: Storage, run_id: str) -> str:
    spec = _json(storage, run_path(run_id, "spec.json"))
    return str(spec.get("began_at", spec["run_date"]))


def _status(storage: Storage, clock: Clock, run_id: str, present: set[str]) -> RunStatus:
    spec = _json(storage, run_path(run_id, "spec.json"))
    run_date, began_at = spec["run_date"], spec.get("began_at", spec["run_date"])
    planned: dict[str, int] = {}
    if "plan.json" in present:
        plan = _json(storage, run_path(run_id, "plan.json"))
        planned = {name: int(work["rows"]) for name, work in plan.items()}
    if "published.json" in present:
        statuses = _json(storage, run_path(run_id, "published.json"))["statuses"]
        return RunStatus(run_id, run_date, began_at, "finished", "", planned, statuses)
    holder = describe_holder(storage, run_id, clock)
    state: State = "running" if holder else "interrupted"
    return RunStatus(run_id, run_date, began_at, state, holder, planned, _staged(storage, run_id))


def _json(storage: Storage, path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(storage.read(path)))
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{storage.uri(path)} is damaged ({error}): restore it, or delete the folder, which loses no picture"
        ) from error


def _staged(storage: Storage, run_id: str) -> dict[str, dict[str, int]]:
    statuses: dict[str, dict[str, int]] = {"concepts": {}, "renders": {}}
    with in_memory() as connection:
        read_parts(connection, storage, run_id)
        rows = connection.execute("SELECT kind || 's', status, count(*) FROM outcomes GROUP BY ALL").fetchall()
    for kind, status, count in rows:
        statuses[kind][status] = count
    return statuses
