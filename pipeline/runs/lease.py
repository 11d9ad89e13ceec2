"""One attempt at a run at a time: a numbered lease in storage, kept alive by a heartbeat.

Invariants:

- `lease/<n>.json` is created exclusively and n only grows, so two attempts never share a number. Lease files are never
  deleted, for a number that came back would let an old attempt's parts pass for a new one's.
- Only the holder writes to its file: who it is and when it last gave a sign of life.
- A holder that is certainly dead (its process on this machine is gone) is replaced at once; one that cannot be looked
  at is replaced when it has been silent for `EXPIRY_S`. Its number tells it apart from then on: whoever writes checks
  `still_mine` and stops when it is false.
"""

import json
import logging
import os
import re
import socket
import threading
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perfusion_ops.errors import PerfusionError
from pipeline.clock import Clock
from pipeline.contract.layout import lease_path, run_path
from pipeline.storage.objects import Storage, StorageError

HEARTBEAT_S = 10.0
EXPIRY_S = 60.0  # five heartbeats may be late or lost, and the clocks of two machines may differ by a few seconds
_FILE_BYTES = 10_000
_LEASE_NAME = re.compile(r"lease/([1-9][0-9]{0,8})\.json$")

_log = logging.getLogger(__name__)


class LeaseHeld(PerfusionError):  # noqa: N818 (it is not a fault, but an answer)
    """Someone else works on the run; the message says who, since when, and what to do."""


@dataclass(frozen=True)
class Owner:
    """A process, told apart from every other one there ever was.

    Attributes:
        host: its machine's name, for people.
        machine: boot and process namespace in which `pid` means something; empty where the system has no /proc.
        pid: process id.
        started: when the process started, in clock ticks since the boot: a reused pid has another one.
    """

    host: str
    machine: str
    pid: int
    started: int | None

    @staticmethod
    def this_process() -> "Owner":
        """The calling process."""
        return Owner(socket.gethostname(), _machine(), os.getpid(), _start_ticks(os.getpid()))

    def certainly_alive(self) -> bool | None:
        """Whether the process runs: None where that cannot be known from here."""
        if not self.machine or self.machine != _machine():
            return None
        return self.started is not None and _start_ticks(self.pid) == self.started


@dataclass(frozen=True)
class _Record:
    owner: Owner
    nonce: str
    since: float
    heartbeat: float
    released: bool = False

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def from_json(data: bytes) -> "_Record":
        fields: dict[str, Any] = json.loads(data)
        owner = Owner(**fields.pop("owner"))
        return _Record(owner=owner, **fields)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (the text of the link, not a path)
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """Start time of a process that runs; None when there is none, or only its remains (a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name stands in brackets and may hold anything; the state is the first field after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _numbers(storage: Storage, run_id: str) -> list[int]:
    matches = (_LEASE_NAME.search(path) for path, _ in storage.list(run_path(run_id, "lease")))
    return sorted(int(match[1]) for match in matches if match)


def _latest(storage: Storage, run_id: str) -> int:
    """The highest number there is, 0 for none; a listing may lag behind, the next number is there or is not."""
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
    """Take the run, or say who has it.

    Args:
        storage: the root that every attempt at the run shares.
        run_id: the run.
        clock: its wall time is written to the lease and compared with other machines'.
        owner: who takes it; this process when absent.
        heartbeat_s: seconds between two signs of life.

    Raises:
        LeaseHeld: another attempt is alive, or may be.
        StorageError: storage does not work.
    """
    latest = _latest(storage, run_id)
    if latest:
        _refuse_if_held(storage, run_id, latest, clock)
    now = clock.wall()
    record = _Record(owner or Owner.this_process(), uuid.uuid4().hex, now, now)
    number = latest + 1
    path = lease_path(run_id, number)
    # An object store may create the file and lose the answer: then it holds our nonce all the same.
    if not storage.create(path, record.to_json()) and _read(storage, run_id, number).nonce != record.nonce:
        _refuse_if_held(storage, run_id, number, clock)
        raise LeaseHeld(f"another attempt at run {run_id!r} began and ended at this moment; start again")
    return Lease(storage, run_id, number, record=record, clock=clock, heartbeat_s=heartbeat_s)


def _read(storage: Storage, run_id: str, number: int) -> _Record:
    path = lease_path(run_id, number)
    try:
        return _Record.from_json(storage.read(path, _FILE_BYTES))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LeaseHeld(
            f"the lease {storage.uri(path)} cannot be understood ({type(error).__name__}: {error}), so nobody knows "
            f"whether run {run_id!r} is being worked on; use another run id, which reuses everything that is done"
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
        remedy = f"wait for it to end or stop it there; if it is gone already, try again in {left_s} s"
    raise LeaseHeld(
        f"run {run_id!r} has been worked on by {who} since {since}, last sign of life {max(0, round(silent_s))} s ago: "
        f"{remedy}; or use another run id"
    )


def describe_holder(storage: Storage, run_id: str, clock: Clock) -> str:
    """Who works on a run, as far as storage tells; empty when nobody does."""
    numbers = _numbers(storage, run_id)
    if not numbers:
        return ""
    record = _read(storage, run_id, numbers[-1])
    silent_s = clock.wall() - record.heartbeat
    alive = record.owner.certainly_alive()
    if record.released or alive is False or (alive is None and silent_s > EXPIRY_S):
        return ""
    return f"process {record.owner.pid} on {record.owner.host}, last sign of life {max(0, round(silent_s))} s ago"


class Lease:
    """The right to write to a run, until `release` or the end of the block; see the module's invariants."""

    def __init__(
        self, storage: Storage, run_id: str, number: int, *, record: _Record, clock: Clock, heartbeat_s: float
    ) -> None:
        self.number = number
        self._storage = storage
        self._run_id = run_id
        self._record = record
        self._clock = clock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(heartbeat_s,), name=f"lease-{run_id}", daemon=True)
        self._thread.start()

    def still_mine(self) -> bool:
        """Whether nobody has taken the run over, and it has not been released."""
        return not self._ended.is_set() and not self._storage.exists(lease_path(self._run_id, self.number + 1))

    def release(self) -> None:
        """Give the run back, so that the next attempt need not wait. May be called twice.

        Raises:
            StorageError: it could not be written; the lease then lapses with this process, or after `EXPIRY_S`.
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
            except StorageError as error:  # the next one may succeed; if none does, another attempt may take over
                _log.warning("no sign of life could be written: %s", error)

    def _write(self, *, released: bool) -> None:
        record = replace(self._record, heartbeat=self._clock.wall(), released=released)
        self._storage.write(lease_path(self._run_id, self.number), record.to_json())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except StorageError as failure:  # not worth the run's result: the lease lapses by itself
            _log.warning("the lease of run %s could not be released: %s", self._run_id, failure)
