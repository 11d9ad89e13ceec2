"""The state of every run, read from storage alone: it works on any machine and needs no running process."""

from dataclasses import dataclass, field
from typing import Literal

from perfusion_ops.errors import UsageError
from pipeline.clock import Clock
from pipeline.contract.kinds import PlanCounts
from pipeline.runs.find import RunFiles, list_runs
from pipeline.runs.lease import describe_holder, latest_lease
from pipeline.runs.record import RunRecord, RunSpec
from pipeline.runs.staged import StagedCounts
from pipeline.storage.objects import Storage, StorageError

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
        left: keys without an outcome, per table; empty if the run is finished or has no plan yet.
    """

    run_id: str
    run_date: str
    began_at: str
    state: State
    holder: str
    planned: dict[str, int]
    statuses: dict[str, dict[str, int]]
    left: dict[str, int] = field(default_factory=dict)


class RunReader:
    """Reads the state of one run repeatedly. What cannot change is read once: its spec, its parts, its end."""

    def __init__(self, storage: Storage, clock: Clock, run_id: str) -> None:
        """Read nothing yet.

        Args:
            storage: the root of the run.
            clock: tells whether a lease has expired.
            run_id: a run that has begun.
        """
        self._storage = storage
        self._clock = clock
        self._record = RunRecord(storage, run_id)
        self._staged = StagedCounts(storage)
        self._spec: RunSpec | None = None
        self._end: RunStatus | None = None

    def read(self, files: RunFiles | None = None) -> RunStatus:
        """The state now.

        Args:
            files: what a listing shows of the run; default: a new listing.

        Raises:
            StorageError: a file of the run cannot be read.
            LeaseHeld: its lease cannot be read.
        """
        if self._end is not None:
            return self._end
        record, run_id = self._record, self._record.run_id
        files = files or list_runs(self._storage, run_id).get(run_id)
        if files is None:
            raise StorageError(f"run {run_id} is gone from {self._storage.root}: somebody deleted its folder")
        spec = self._spec = self._spec or record.spec()
        plan = record.plan() if files.planned else None
        holder = "" if files.published else describe_holder(self._storage, run_id, self._clock)
        # A driver that finished after the listing holds nothing any more.
        published = files.published or (not holder and record.is_published())
        if not published:
            self._staged.add(files.parts)
        status = RunStatus(
            run_id=run_id,
            run_date=spec.run_date,
            began_at=spec.began,
            state="finished" if published else "running" if holder else "interrupted",
            holder=holder,
            planned={table.name: counts.rows for table, counts in plan.items()} if plan else {},
            statuses=record.published().statuses if published else self._staged.statuses(),
            left=self._left(plan) if plan and not published else {},
        )
        if published:
            self._end = status
        return status

    def _left(self, plan: PlanCounts) -> dict[str, int]:
        """Keys of the newest plan that have no outcome: a driver that resumes a run plans what is left at that time."""
        lease = latest_lease(self._storage, self._record.run_id)
        return {
            table.name: max(0, counts.keys_to_do - self._staged.rows(lease, table.name))
            for table, counts in plan.items()
        }


def read_status(storage: Storage, clock: Clock, run_id: str | None = None) -> list[RunStatus]:
    """Runs under a root, oldest first; only `run_id` if it is given.

    Raises:
        StorageError: the root, or a file of a run, cannot be read.
        LeaseHeld: a lease cannot be read.
    """
    found = [RunReader(storage, clock, name).read(files) for name, files in _begun(storage, run_id).items()]
    return sorted(found, key=lambda run: (run.began_at, run.run_id))


def run_to_watch(storage: Storage, run_id: str | None = None) -> str | None:
    """The newest unfinished run, else the newest run, or `run_id`; None if there is no such run.

    Raises:
        StorageError: the root, or a file of a run, cannot be read.
    """
    runs = _begun(storage, run_id)
    chosen = [name for name, files in runs.items() if not files.published] or list(runs)
    return max(((RunRecord(storage, name).spec().began, name) for name in chosen), default=(None, None))[1]


def newest_whole_run(storage: Storage) -> str | None:
    """The id of the newest finished run of all rows, not of a selection such as `retry`; None if there is none.

    Raises:
        StorageError: the root, or a file of a run, cannot be read.
    """
    specs = [RunRecord(storage, name).spec() for name, files in _begun(storage, None).items() if files.published]
    return max(((spec.began, spec.run_id) for spec in specs if spec.selection is None), default=(None, None))[1]


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
        name: files
        for name, files in list_runs(storage, run_id).items()
        if files.begun and (run_id is None or name == run_id)
    }
