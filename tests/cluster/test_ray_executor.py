"""Real actors of a real Ray: what comes back, and what happens when a worker is killed, hangs or cannot start."""

import os
import signal
import threading
import time

import pytest
import ray

from cluster.failures import failure_of_ray, failure_of_worker
from cluster.fleet import SlotResources
from cluster.ray_executor import RayExecutor
from pipeline.contract.errors import Code, Status
from pipeline.contract.units import MESSAGE_BYTES, Activity, TrainUnit
from pipeline.engine.executor import Failure
from pipeline.engine.figures import EngineError
from tests.support.ray_pool import POLICY, Worker, go
from tests.support.simulated_pool import concept

RESOURCES = SlotResources(num_cpus=0, threads=3)


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture
def pool(tmp_path):
    made = []

    def make(slots=1, setup_error=None, **options):
        folder = str(tmp_path)
        made.append(RayExecutor(lambda: Worker(folder, setup_error), slots=slots, resources=RESOURCES, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def test_outcomes_come_back_from_every_slot_and_the_first_is_set_up_alone(pool, tmp_path):
    executor = pool(slots=2, env_vars={"EXTRA": "!"})
    assert executor.slots() == ()
    assert executor.starting() == (0,)
    while executor.slots() != (0, 1):
        assert executor.wait(10) == []
    outcomes, summary = go(executor, ["ok"] * 12)
    assert len(outcomes) == summary.completed == 12
    assert {row.error_message for row in outcomes.values()} == {"3!"}  # threads and the extra variable
    pids = {row.worker for row in outcomes.values()}
    setups = {path.name.removeprefix("setup-"): path.read_text().split() for path in tmp_path.glob("setup-*")}
    assert setups.keys() == pids
    (_, first_ended), (second_began, _) = sorted(setups.values(), key=lambda times: float(times[0]))
    assert float(first_ended) <= float(second_began)
    executor.close()
    assert (tmp_path / "closed").exists()


def test_worker_killed_in_the_middle_of_a_unit_costs_nothing(pool, tmp_path):
    executor = pool()

    def kill_when_it_hangs():
        while not ((tmp_path / "r3").exists() and (tmp_path / "r3").read_text()):
            time.sleep(0.05)
        os.kill(int((tmp_path / "r3").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_when_it_hangs, daemon=True)
    killer.start()
    outcomes, summary = go(executor, ["ok", "ok", "ok", "hang once", "ok", "ok"])
    assert {row.status for row in outcomes.values()} == {Status.OK}
    assert len(outcomes) == 6
    assert summary.deaths == 1
    assert outcomes["r3"].attempts == 2
    assert outcomes["r5"].attempts == 1


def test_failing_rows_are_told_apart(pool):
    outcomes, summary = go(pool(slots=2), ["ok", "memory", "raise", "ok", "exit", "ok", "ok", "ok"], batch=4)
    codes = {key: row.error_code for key, row in outcomes.items() if row.error_code}
    assert codes == {"r1": Code.OUT_OF_MEMORY, "r2": Code.INTERNAL, "r4": Code.WORKER_DIED}
    assert "no room for 12 GB" in outcomes["r1"].error_message
    assert "KeyError: 'colour'" in outcomes["r2"].error_message
    assert "ray_pool.py:" in outcomes["r2"].error_message
    assert summary.deaths >= 2
    assert all(len(row.error_message.encode()) <= MESSAGE_BYTES for row in outcomes.values() if row.error_code)


def test_what_workers_do_is_seen_while_they_start_and_while_they_train(pool, tmp_path):
    (tmp_path / "slow start").touch()
    executor = pool()

    def seen():
        while not (found := executor.activities()):
            executor.wait(0.2)
        return found

    assert seen() == (Activity("metric", 5, 10),)
    (tmp_path / "enough").touch()
    while not executor.slots():
        executor.wait(10)
    (tmp_path / "enough").unlink()
    assert executor.activities() == ()
    executor.submit(0, TrainUnit("t", (concept("c0"), concept("c1"))))
    assert seen() == (Activity("training", 3, 4, 2),)
    (tmp_path / "enough").touch()
    while not (ended := executor.wait(10)):
        pass
    assert [outcome.key for outcome in ended[0].outcomes] == ["c0", "c1"]
    assert executor.activities() == ()


def test_unit_that_hangs_is_replaced(pool, tmp_path):
    executor = pool()
    outcomes, summary = go(executor, ["ok", "hang once", "ok"], POLICY.model_copy(update={"render_deadline_s": 5.0}))
    assert {row.status for row in outcomes.values()} == {Status.OK}
    assert summary.deaths == 1
    assert summary.wasted_s >= 5.0
    assert len(list(tmp_path.glob("setup-*"))) == 2


def test_a_worker_that_cannot_start_is_reported_with_its_message(pool):
    executor = pool(slots=2, setup_error="there is no model at s3://models/sdxl")
    with pytest.raises(EngineError, match=r"cannot start: FileNotFoundError: there is no model at s3://models/sdxl"):
        go(executor, ["ok"])


def test_a_worker_that_cannot_be_unpickled_is_reported(tmp_path):
    class Broken:
        def __call__(self):
            return Worker(tmp_path)

        def __reduce__(self):
            return (int, ("not a number",))

    executor = RayExecutor(Broken(), slots=1, resources=RESOURCES)
    try:
        with pytest.raises(EngineError, match="invalid literal"):
            go(executor, ["ok"])
    finally:
        executor.close()


def test_errors_of_a_worker_are_told_apart():
    class AcceleratorError(RuntimeError):
        pass

    class OutOfMemoryError(RuntimeError):
        pass

    def kind(error):
        return failure_of_worker(error).kind

    assert kind(MemoryError()) == kind(OutOfMemoryError("CUDA out of memory")) == "out_of_memory"
    assert kind(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")) == "out_of_memory"
    assert kind(AcceleratorError("CUDA error: out of memory")) == "out_of_memory"
    assert kind(AcceleratorError("unspecified launch failure")) == "died"
    assert kind(RuntimeError("CUDA error: an illegal memory access was encountered")) == "died"
    assert kind(ValueError("a shape")) == "raised"


def test_errors_of_ray_are_told_apart():
    errors = ray.exceptions
    assert failure_of_ray(errors.ActorDiedError()).kind == "died"
    assert failure_of_ray(errors.ActorUnavailableError("gone", None)).kind == "unavailable"
    assert failure_of_ray(errors.NodeDiedError("gone")).infrastructure
    assert failure_of_ray(errors.OutOfMemoryError("the node is full")) == Failure("died", "the node is full")
    assert failure_of_ray(errors.RuntimeEnvSetupError("no wheel")).kind == "raised"


def test_no_slots_is_an_error():
    with pytest.raises(ValueError, match="slots is 0"):
        RayExecutor(lambda: None, slots=0, resources=RESOURCES)
