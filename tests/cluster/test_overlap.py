"""Real actors that store the objects of one unit while they compute the next one, and every way in which that fails."""

import os
import signal
import threading
import time

import pytest
import ray

from cluster.fleet import SlotResources
from cluster.ray_executor import RayExecutor
from pipeline.clock import SystemClock
from pipeline.contract.errors import Code, Status
from pipeline.engine.scheduler import run
from tests.support.ray_pool import POLICY, Source, Worker, go

RESOURCES = SlotResources(num_cpus=0, threads=1)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture
def executor(tmp_path):
    folder = str(tmp_path)
    made = RayExecutor(lambda: Worker(folder), slots=1, resources=RESOURCES)
    while not made.slots():
        made.wait(10)
    yield made
    made.close()


def until(condition):
    while not condition():
        time.sleep(0.02)


def later(*actions):
    """Conditions and calls, in a thread, one after the other."""

    def do():
        for condition, action in actions:
            until(condition)
            action()

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


def written(path):
    return path.exists() and bool(path.read_text())


def is_told(executor):
    """Whether the driver knows that a unit is computed. Ray sends this answer when the next unit may have begun."""
    return any(slot.is_overlapped() for slot in list(executor._slots.values()))


def codes(outcomes):
    return {key: row.error_code for key, row in outcomes.items() if row.status is not Status.OK}


def test_a_unit_is_computed_while_the_one_before_is_stored_and_they_complete_in_order(executor, tmp_path):
    source = Source(["store slowly", "ok", "ok"], batch=1)
    numbers = [executor.submit(0, source.next()) for _ in range(3)]
    until((tmp_path / "r1").exists)
    assert not (tmp_path / "stored r1").exists()
    assert executor.wait(0.3) == []
    (tmp_path / "enough").touch()
    found = []
    while len(found) < 3:
        found += executor.wait(10)
    assert [completion.call for completion in found] == numbers
    assert [row.key for completion in found for row in completion.outcomes] == ["r0", "r1", "r2"]


def test_units_wait_when_storing_is_slower_than_computing(executor, tmp_path):
    source = Source(["store slowly always", *["ok"] * 5], batch=1)
    for _ in range(6):
        executor.submit(0, source.next())
    # One is stored, one waits, and one is computed; no other is begun before one of them is stored.
    until((tmp_path / "r2").exists)
    assert executor.wait(0.5) == []
    assert not (tmp_path / "r3").exists()
    (tmp_path / "enough").touch()
    found = []
    while len(found) < 6:
        found += executor.wait(10)


def test_a_worker_killed_while_it_stores_and_computes_charges_neither_unit(executor, tmp_path):
    mark = tmp_path / "r2"
    stored = tmp_path / "stored r0"
    later(
        (lambda: written(mark) and written(stored), lambda: None),
        (lambda: is_told(executor), lambda: os.kill(int(mark.read_text()), signal.SIGKILL)),
    )
    outcomes, summary = go(executor, ["store slowly", "ok", "hang once", "ok", "ok", "ok"])
    assert codes(outcomes) == {}
    assert {row.attempts for row in outcomes.values()} == {1}
    assert (summary.deaths, summary.retries) == (1, 2)


def test_a_row_that_kills_its_worker_is_found_although_another_unit_was_being_stored(executor, tmp_path):
    later((lambda: is_told(executor), (tmp_path / "told").touch))
    outcomes, summary = go(executor, ["store slowly", "ok", "exit while storing", "ok", "ok", "ok"])
    assert codes(outcomes) == {"r2": Code.WORKER_DIED}
    assert {outcomes[key].attempts for key in ("r0", "r1", "r4", "r5")} == {1}
    assert summary.deaths == 1 + 2 * POLICY.strikes  # in doubt, in its unit, and alone


def test_errors_while_a_unit_is_stored_are_its_own(executor, tmp_path):
    (tmp_path / "enough").touch()
    outcomes, summary = go(
        executor, ["raise while storing", "ok", "ok", "ok", "memory while storing", "ok", "ok", "ok"]
    )
    assert codes(outcomes) == {"r0": Code.INTERNAL, "r4": Code.OUT_OF_MEMORY}
    assert "OSError: the disk" in outcomes["r0"].error_message
    assert {outcomes[key].attempts for key in ("r2", "r3", "r6", "r7")} == {1}
    assert summary.deaths == 0


def test_a_run_that_is_stopped_while_it_stores_loses_nothing(executor, tmp_path):
    found, waiting = {}, tmp_path / "r2"
    later((waiting.exists, lambda: None), ((tmp_path / "asked").exists, (tmp_path / "enough").touch))

    def stop(_):
        if not waiting.exists():
            return None
        (tmp_path / "asked").touch()
        return "asked"

    source = Source(["store slowly", "ok", "ok", "ok", *["ok"] * 8])
    summary = run(
        source,
        executor,
        lambda rows: found.update({row.key: row for row in rows}),
        policy=POLICY,
        clock=SystemClock(),
        stop=stop,
    )
    # Both units that the slot held are stored and settled; no other one was begun.
    assert summary.stopped == "asked"
    assert found.keys() == {"r0", "r1", "r2", "r3"}
    assert source.unfinished() == 8
    executor.close()
    assert (tmp_path / "closed").exists()
