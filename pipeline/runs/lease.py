"""One driver per run at a time: a numbered lease in storage, renewed by a heartbeat.

Invariants:

- `lease/<n>.json` is created exclusively and n only grows, so two drivers never share a number. Lease files are never
  deleted: with a reused number, parts of an old driver could not be told from those of a new one.
- Only the holder writes to its file: its identity and the time of its last heartbeat.
- A holder whose process on this machine is gone is replaced at once. A holder whose process cannot be checked is
  replaced when its last heartbeat is older than `EXPIRY_S`. Before it writes, a driver checks `still_mine`, and stops
  when that is false.
"""

import json
import logging
import os
import socket
import threading
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ConfigDict, TypeAdapter

from perfusion_ops.errors import PerfusionError
from pipeline.clock import Clock
from pipeline.contract.layout import lease_folder, lease_number, lease_path, run_path
from pipeline.runs.stored_json import NewerJsonError, StoredJsonError, decode
from pipeline.storage.objects import Storage, StorageError

HEARTBEAT_S = 10.0
EXPIRY_S = 60.0  # five heartbeats may be late or lost, and the clocks of two machines may differ by a few seconds
_FILE_BYTES = 10_000
_STRICT = ConfigDict(extra="forbid")

_log = logging.getLogger(__name__)


class LeaseHeld(PerfusionError):  # noqa: N818 (it is not a fault, but an answer)
    """Another driver holds the run; the message names it and says since when it holds the run and what to do."""


@dataclass(frozen=True)
class Owner:
    """The identity of a process, unique over time.

    Attributes:
        host: name of its machine, for messages.
        machine: boot id and process namespace in which `pid` is valid; empty on a system without /proc.
        pid: process id.
        started: start of the process in clock ticks since boot; it differs when a pid is reused.
    """

    __pydantic_config__ = _STRICT

    host: str
    machine: str
    pid: int
    started: int | None

    @staticmethod
    def this_process() -> "Owner":
        """The calling process."""
        return Owner(socket.gethostname(), _machine(), os.getpid(), _start_ticks(os.getpid()))

    def certainly_alive(self) -> bool | None:
        """Whether the process runs; None if this machine cannot check it."""
        if not self.machine or self.machine != _machine():
            return None
        return self.started is not None and _start_ticks(self.pid) == self.started


@dataclass(frozen=True)
class _Record:
    __pydantic_config__ = _STRICT

    owner: Owner
    nonce: str
    since: float
    heartbeat: float
    released: bool = False

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


_RECORD = TypeAdapter(_Record)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (the text of the link, not a path)
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """Start time of a running process; None if there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name is in parentheses and may contain anything; the state is the first field after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _numbers(storage: Storage, run_id: str) -> list[int]:
    numbers = (lease_number(path) for path, _ in storage.list(lease_folder(run_id)))
    return sorted(number for number in numbers if number is not None)


def latest_lease(storage: Storage, run_id: str) -> int:
    """The number of the newest lease, 0 without any. Listings may be stale, so the next one is looked up by name."""
    latest = max(_numbers(storage, run_id), default=0)
    while storage.exists(lease_path(run_id, latest + 1)):
        latest += 1
    return latest


def acquire(
    storage: Storage,
    run_id: str,
    *,
    clock: Clock,
    owner: Owner | None = None,
    heartbeat_s: float = HEARTBEAT_S,
) -> "Lease":
    """Acquire the lease of a run.

    Args:
        storage: the root that all drivers of the run share.
        run_id: the run.
        clock: its wall time is written to the lease and compared with that of other machines.
        owner: the new holder; this process if None.
        heartbeat_s: seconds between two heartbeats.

    Raises:
        LeaseHeld: another driver is alive, or may be.
        StorageError: storage fails.
    """
    latest = latest_lease(storage, run_id)
    if latest:
        _refuse_if_held(storage, run_id, latest, clock)
    now = clock.wall()
    record = _Record(owner or Owner.this_process(), uuid.uuid4().hex, now, now)
    number = latest + 1
    path = lease_path(run_id, number)
    # An object store may create the file and lose the response: the file then has our nonce.
    if not storage.create(path, record.to_json()) and _read(storage, run_id, number).nonce != record.nonce:
        _refuse_if_held(storage, run_id, number, clock)
        raise LeaseHeld(f"another driver of run {run_id!r} began and ended at this moment: run the same command again")
    return Lease(storage, run_id, number, record=record, clock=clock, heartbeat_s=heartbeat_s)


def _read(storage: Storage, run_id: str, number: int) -> _Record:
    path = lease_path(run_id, number)
    try:
        return decode(_RECORD, storage.read(path, _FILE_BYTES))
    except NewerJsonError as error:
        raise LeaseHeld(
            f"the lease {storage.uri(path)} was written by a newer version of perfusion ({error}): use that version"
        ) from error
    except StoredJsonError as error:
        raise LeaseHeld(
            f"the lease {storage.uri(path)} is damaged ({error}), so it is unknown whether a driver works on run "
            f"{run_id!r}: make sure that none does, move the folder {storage.uri(run_path(run_id))} away and run the "
            "same command again, which reuses every object that exists"
        ) from error


def _refuse_if_held(storage: Storage, run_id: str, number: int, clock: Clock) -> None:
    record = _read(storage, run_id, number)
    alive = record.owner.certainly_alive()
    silent_s = clock.wall() - record.heartbeat
    if record.released or alive is False or (alive is None and silent_s > EXPIRY_S):
        return
    since = datetime.fromtimestamp(record.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    who = f"process {record.owner.pid} on {record.owner.host}"
    if alive:
        remedy = f"wait for it to end, or stop it with: kill {record.owner.pid}"
    else:
        left_s = max(1, round(EXPIRY_S - silent_s) + 1)
        remedy = f"wait for it to end or stop it there; if it has ended already, try again in {left_s} s"
    raise LeaseHeld(
        f"run {run_id!r} is held by {who} since {since}, last heartbeat {max(0, round(silent_s))} s ago: {remedy}"
    )


def describe_holder(storage: Storage, run_id: str, clock: Clock) -> str:
    """The driver that holds a run according to storage, with its last heartbeat; empty if none does."""
    numbers = _numbers(storage, run_id)
    if not numbers:
        return ""
    record = _read(storage, run_id, numbers[-1])
    silent_s = clock.wall() - record.heartbeat
    alive = record.owner.certainly_alive()
    if record.released or alive is False or (alive is None and silent_s > EXPIRY_S):
        return ""
    return f"process {record.owner.pid} on {record.owner.host}, last heartbeat {max(0, round(silent_s))} s ago"


class Lease:
    """The exclusive right to write to a run, until `release` or the end of the `with` block.

    Attributes:
        run_id: the run.
        number: of the lease, from 1.
    """

    def __init__(
        self, storage: Storage, run_id: str, number: int, *, record: _Record, clock: Clock, heartbeat_s: float
    ) -> None:
        self.number = number
        self.run_id = run_id
        self._storage = storage
        self._record = record
        self._clock = clock
        self._renewed = clock.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(heartbeat_s,), name=f"lease-{run_id}", daemon=True)
        self._thread.start()

    def still_mine(self) -> bool:
        """Whether the lease is neither released nor taken over by another driver."""
        return not self._ended.is_set() and not self._storage.exists(lease_path(self.run_id, self.number + 1))

    def heartbeat_age_s(self) -> float:
        """Seconds since the lease was last renewed; after `EXPIRY_S` another driver may take over."""
        return self._clock.monotonic() - self._renewed

    def release(self) -> None:
        """Release the run, so that the next driver need not wait. Idempotent.

        Raises:
            StorageError: the release was not written; the lease then ends with this process, or after `EXPIRY_S`.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        self._write(released=True)

    def _beat(self, heartbeat_s: float) -> None:
        while not self._ended.wait(heartbeat_s):
            try:
                self._write(released=False)
            except StorageError as error:  # the next one may succeed; if none does, another driver may take over
                _log.warning("a heartbeat could not be written: %s", error)

    def _write(self, *, released: bool) -> None:
        record = replace(self._record, heartbeat=self._clock.wall(), released=released)
        self._storage.write(lease_path(self.run_id, self.number), record.to_json())
        self._renewed = self._clock.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except StorageError as failure:  # must not replace the run's result: the lease expires by itself
            _log.warning("the lease of run %s could not be released: %s", self.run_id, failure)
