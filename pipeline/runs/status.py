"""The state of every run, read from storage alone: it works on any machine and needs no running process."""

from dataclasses import dataclass
from typing import Literal

from perfusion_ops.errors import UsageError
from pipeline.clock import Clock
from pipeline.contract.kinds import RESULTS
from pipeline.database.memory import in_memory
from pipeline.runs.find import RunFiles, list_runs
from pipeline.runs.lease import describe_holder
from pipeline.runs.parts import read_parts
from pipeline.runs.record import RunRecord
from pipeline.storage.objects import Storage

State = Literal["finished", "running", "interrupted"]


class NoFinishedRunError(UsageError):
    """No run under a root is finished, or the named one is not; the message says what to do."""


@dataclass(frozen=True)
class RunStatus:
    """The state of one run.

    Attributes:
        run_id: the run.
        run_date: YYYY-MM-DD, UTC, as in the tables.
        began_at: when its first driver began, YYYY-MM-DDTHH:MM:SSZ; only the date if the time was not recorded.
        state: finished (published), running (its lease is held), interrupted (rerun the same command to resume).
        holder: the process that holds the lease; empty unless the run is running.
        planned: planned rows, per table.
        statuses: rows by status, per table; of an unfinished run, keys that are staged so far.
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
        LeaseHeld: a lease cannot be read.
    """
    found = [_status(storage, clock, name, files) for name, files in _begun(storage, run_id).items()]
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
    runs = _begun(storage, run_id)
    finished = [(RunRecord(storage, name).spec().began, name) for name, files in runs.items() if files.published]
    if finished:
        return max(finished)[1]
    if run_id is not None and run_id in runs:
        raise NoFinishedRunError(f"run {run_id} is not finished: run the command that started it again to resume it")
    which = f" {run_id!r}" if run_id is not None else ""
    root = root or storage.root
    raise NoFinishedRunError(f"there is no finished run{which} under {root}: see `perfusion status {root}`")


def _begun(storage: Storage, run_id: str | None) -> dict[str, RunFiles]:
    return {
        name: files for name, files in list_runs(storage).items() if files.begun and (run_id is None or name == run_id)
    }


def _status(storage: Storage, clock: Clock, run_id: str, files: RunFiles) -> RunStatus:
    record = RunRecord(storage, run_id)
    spec, plan = record.spec(), record.plan() if files.planned else None
    holder = "" if files.published else describe_holder(storage, run_id, clock)
    state: State = "finished" if files.published else "running" if holder else "interrupted"
    return RunStatus(
        run_id=run_id,
        run_date=spec.run_date,
        began_at=spec.began,
        state=state,
        holder=holder,
        planned={table.name: counts.rows for table, counts in plan.items()} if plan else {},
        statuses=record.published().statuses if files.published else _staged(storage, run_id),
    )


def _staged(storage: Storage, run_id: str) -> dict[str, dict[str, int]]:
    with in_memory() as connection:
        read_parts(connection, storage, run_id)
        rows = connection.execute("SELECT kind, status, count(*) FROM outcomes GROUP BY ALL").fetchall()
    return {table.name: {status: count for kind, status, count in rows if kind == table.kind} for table in RESULTS}
