"""The lease on real storage: one holder, a dead one replaced, a silent one too, and the old one told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.clock import SystemClock
from pipeline.runs import lease as leases
from pipeline.runs.lease import EXPIRY_S, LeaseHeld, Owner
from pipeline.storage.objects import Storage, StorageError
from tests.support.fake_clock import FakeClock

HOLD = """
import sys, threading
from pipeline.clock import SystemClock
from pipeline.runs.lease import acquire
from pipeline.storage.objects import Storage
print(acquire(Storage(sys.argv[1]), "run", clock=SystemClock()).number, flush=True)
threading.Event().wait()
"""


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["file", "memory"])
def storage(request, tmp_path):
    return Storage(str(tmp_path) if request.param == "file" else f"memory://lease-{uuid.uuid4().hex}")


@pytest.fixture
def acquire():
    """`pipeline.runs.lease.acquire`, whose leases end with the test."""
    made = []

    def take(*arguments, **options):
        made.append(leases.acquire(*arguments, **options))
        return made[-1]

    yield take
    for lease in made:
        lease.release()


ELSEWHERE = Owner("gpu-node-7", "another-boot/pid:[1]", 4711, 99)


def content(storage, number):
    return json.loads(storage.read(f"runs/run/lease/{number}.json"))


def test_numbers_grow_and_a_released_lease_is_free(acquire, storage, clock):
    with acquire(storage, "run", clock=clock) as first:
        assert first.number == 1
        assert first.still_mine()
    assert not first.still_mine()
    second = acquire(storage, "run", clock=clock)
    assert second.number == 2
    assert acquire(storage, "other", clock=clock).number == 1
    second.release()
    second.release()
    assert content(storage, 1)["released"]
    assert content(storage, 2)["released"]
    assert len(list(storage.list("runs/run"))) == 2  # numbers are never used again


def test_living_process_on_this_machine_keeps_it_however_silent(acquire, storage, clock):
    lease = acquire(storage, "run", clock=clock)
    clock.now += 1000
    with pytest.raises(
        LeaseHeld, match=rf"'run' .* process {os.getpid()} on .* since 2027-01-15 08:00:00 UTC, .*1000 s"
    ):
        acquire(storage, "run", clock=clock)
    with pytest.raises(LeaseHeld, match=rf"kill {os.getpid()}$"):
        acquire(storage, "run", clock=clock)
    assert lease.still_mine()
    lease.release()


def test_other_machine_keeps_it_until_it_is_silent_for_a_minute(acquire, storage, clock):
    old = acquire(storage, "run", clock=clock, owner=ELSEWHERE)
    clock.now += EXPIRY_S - 1
    with pytest.raises(LeaseHeld, match=r"process 4711 on gpu-node-7 .* try again in 2 s"):
        acquire(storage, "run", clock=clock)
    clock.now += 2
    new = acquire(storage, "run", clock=clock)
    assert new.number == 2
    assert new.still_mine()
    assert not old.still_mine()
    old.release()  # says something about its own number only
    assert new.still_mine()
    assert not content(storage, 2)["released"]
    new.release()


def test_dead_process_of_this_machine_is_replaced_at_once(acquire, storage, clock):
    me = Owner.this_process()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    acquire(storage, "run", clock=clock, owner=replace(me, pid=gone.pid, started=12345))
    lease = acquire(storage, "run", clock=clock)
    assert lease.number == 2
    lease.release()


def test_reused_process_id_does_not_count_as_alive(acquire, storage, clock):
    me = Owner.this_process()
    acquire(storage, "run", clock=clock, owner=replace(me, started=me.started - 1))
    assert acquire(storage, "run", clock=clock, owner=me).number == 2


def test_zombie_does_not_count_as_alive():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    owner = replace(Owner.this_process(), pid=child.pid, started=started)
    assert owner.certainly_alive() is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    assert owner.certainly_alive() is False
    child.communicate()
    assert ELSEWHERE.certainly_alive() is None


def test_killed_process_loses_it(acquire, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "1\n"
        storage = Storage(str(tmp_path))
        with pytest.raises(LeaseHeld, match=f"process {holder.pid} on"):
            acquire(storage, "run", clock=SystemClock())
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with acquire(storage, "run", clock=SystemClock()) as lease:
            assert lease.number == 2
    finally:
        holder.kill()
        holder.communicate()


def test_of_many_attempts_exactly_one_wins(acquire, storage, clock):
    acquire(storage, "run", clock=clock, owner=ELSEWHERE)
    clock.now += EXPIRY_S + 1
    barrier = threading.Barrier(12)

    def attempt(number):
        barrier.wait()
        try:
            return acquire(storage, "run", clock=clock, owner=replace(ELSEWHERE, pid=number))
        except LeaseHeld as held:
            return str(held)

    with ThreadPoolExecutor(12) as threads:
        results = list(threads.map(attempt, range(12)))
    winners = [lease for lease in results if not isinstance(lease, str)]
    assert [lease.number for lease in winners] == [2]
    assert winners[0].still_mine()
    assert all("is held by process" in text for text in results if isinstance(text, str))


def test_lost_answer_of_a_creation_that_happened_is_not_a_loss(acquire, clock):
    class Forgetful(Storage):
        def create(self, path, data):
            super().create(path, data)
            return False

    storage = Forgetful(f"memory://lease-{uuid.uuid4().hex}")
    lease = acquire(storage, "run", clock=clock)
    assert lease.number == 1
    assert lease.still_mine()
    lease.release()


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_heartbeat_is_written_survives_a_failure_and_ends_with_the_lease(acquire, storage, clock):
    class Flaky(Storage):
        failures = 0
        broken = False

        def write(self, path, data):
            if self.broken:
                self.failures += 1
                raise StorageError("the disk is full")
            super().write(path, data)

    flaky = Flaky(storage.root)
    lease = acquire(flaky, "run", clock=clock, owner=ELSEWHERE, heartbeat_s=0.02)
    clock.now += 500
    wait_for(lambda: content(storage, 1)["heartbeat"] == clock.wall())
    with pytest.raises(LeaseHeld, match="last heartbeat 0 s ago"):
        acquire(storage, "run", clock=clock)
    flaky.broken = True
    wait_for(lambda: flaky.failures >= 2)
    with pytest.raises(LeaseHeld), lease:  # the block's own error, not the release's
        acquire(storage, "run", clock=clock)
    flaky.broken = False
    clock.now += 5
    assert content(storage, 1)["heartbeat"] == clock.wall() - 5
    assert "lease-run" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"owner": {}}', b"\xff\xfe"])
def test_lease_that_cannot_be_understood_is_not_overrun(acquire, storage, clock, data):
    storage.write("runs/run/lease/3.json", data)
    with pytest.raises(LeaseHeld, match=r"lease/3\.json is damaged .* move the folder .*run away"):
        acquire(storage, "run", clock=clock)


def test_other_files_in_the_folder_are_no_leases(acquire, storage, clock):
    for name in ("notes.txt", "07.json", "x2.json"):
        storage.write(f"runs/run/lease/{name}", b"?")
    with acquire(storage, "run", clock=clock) as lease:
        assert lease.number == 1
