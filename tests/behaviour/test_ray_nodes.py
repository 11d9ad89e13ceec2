"""Machines of a real Ray cluster that vanish: nothing is lost, and no row is blamed for it."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import _internal_kv_get

from cluster.attach import attached, ensure_reachable
from cluster.errors import ClusterError
from cluster.fitness import Needs, ensure_fit, package_versions, program_digest
from cluster.fleet import Fleet, SlotResources, alive_nodes, requested
from cluster.ray_executor import RayExecutor
from pipeline.clock import SystemClock
from pipeline.contract.errors import Status
from pipeline.engine.figures import EngineError
from pipeline.engine.machines import ClusterSettings
from tests.support.ray_pool import Source, Worker, go

NODE = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 500}
PREEMPTION = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
ACCELERATOR = SlotResources(num_cpus=0, num_gpus=1, threads=1)


@pytest.fixture
def cluster(monkeypatch):
    """A head that can run nothing; machines with an accelerator are for the test to add. All of it on the loopback."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    handler = signal.getsignal(signal.SIGTERM)
    running = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "_system_config": QUICK})
    ray.init(address=running.address, log_to_driver=False)
    yield running
    ray.shutdown()
    running.shutdown()
    signal.signal(signal.SIGTERM, handler)  # nodes leave their own


@pytest.fixture
def make(tmp_path):
    made = []

    def executor(slots, **options):
        folder = str(tmp_path)
        made.append(RayExecutor(lambda: Worker(folder), slots=slots, **{"resources": ACCELERATOR, **options}))
        return made[-1]

    yield executor
    for each in made:
        each.close()


def add(cluster):
    return cluster.add_node(num_gpus=1, **NODE)


def under(node, pid):
    """Whether a process belongs to a node."""
    raylet = node.all_processes["raylet"][0].process.pid
    return raylet in {parent.pid for parent in psutil.Process(pid).parents()}


@pytest.fixture
def background():
    """Runs go here: Ray starts machines from the main thread alone."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def when_written(path):
    while not (path.exists() and path.read_text()):
        time.sleep(0.05)
    return int(path.read_text())


def test_machine_that_vanishes_in_the_middle_of_a_unit_is_an_outage_and_blames_no_row(
    cluster, make, tmp_path, background
):
    nodes = [add(cluster), add(cluster)]
    executor = make(2)
    while executor.slots() != (0, 1):
        executor.wait(10)
    run = background.submit(go, executor, ["ok", "ok", "ok", "hang once", *["ok"] * 8])
    pid = when_written(tmp_path / "r3")
    (gone,) = (node for node in nodes if under(node, pid))
    cluster.remove_node(gone, allow_graceful=False)
    outcomes, summary = run.result()
    assert len(outcomes) == 12
    assert {(row.status, row.attempts) for row in outcomes.values()} == {(Status.OK, 1)}
    assert (summary.deaths, summary.completed, summary.failed) == (0, 12, 0)
    assert summary.outages >= 1


def test_run_waits_for_a_machine_while_there_is_none(cluster, make, tmp_path, background):
    node = add(cluster)
    executor = make(1)
    run = background.submit(go, executor, ["ok", "hang once", "ok", "ok"])
    when_written(tmp_path / "r1")
    cluster.remove_node(node, allow_graceful=False)
    while executor.slots():
        time.sleep(0.05)
    assert not run.done()
    add(cluster)
    outcomes, summary = run.result()
    assert len(outcomes) == 4
    assert {(row.status, row.attempts) for row in outcomes.values()} == {(Status.OK, 1)}
    assert (summary.deaths, summary.outages) == (0, 1)
    assert len(list(tmp_path.glob("setup-*"))) == 2


def test_a_machine_that_joins_later_is_used_and_the_request_for_machines_is_taken_back(cluster, make, background):
    add(cluster)
    fleet = Fleet(ClusterSettings(address="auto", slots="1..2", gpus=1), SystemClock())
    assert (fleet.slot.num_gpus, fleet.slot.num_cpus, len(fleet.useful_nodes())) == (1, 1, 1)
    every = Fleet(ClusterSettings(address="auto", gpus=1), SystemClock())
    executor = make(every.wanted(), resources=every.slot, supply=every)
    while executor.slots() != (0,):
        executor.wait(10)
    add(cluster)
    with requested(fleet):
        assert [bundle["GPU"] for bundle in asked_for()] == [1.0, 1.0]
        while executor.slots() != (0, 1):
            executor.wait(10)
    assert asked_for() == []
    outcomes, summary = background.submit(go, executor, ["ok"] * 8).result()
    assert len(outcomes) == 8
    assert summary.outages == 0


def drain(node):
    """Tell Ray that a node is about to be taken away, as a cloud's notice or a pod's SIGTERM does."""
    client = ray._private.worker.global_worker.gcs_client
    accepted, reason = client.drain_node(node.node_id, PREEMPTION, "the spot machine is taken away", in_a_minute_ms())
    assert accepted, reason


def in_a_minute_ms():
    return int((time.time() + 60) * 1000)


def test_a_node_that_is_about_to_leave_ends_its_unit_gets_no_more_and_its_slot_starts_elsewhere(
    cluster, make, tmp_path
):
    nodes = [add(cluster), add(cluster)]
    fleet = Fleet(ClusterSettings(address="auto", slots=2, gpus=1), SystemClock())
    executor = make(2, supply=fleet)
    while executor.slots() != (0, 1):
        executor.wait(10)
    call = executor.submit(0, Source(["wait", "ok"]).next())
    pid = when_written(tmp_path / "r0")
    (leaving,) = (node for node in nodes if under(node, pid))
    drain(leaving)
    while executor.slots() != (1,):
        executor.wait(1)
    assert executor.starting() == ()  # it still runs its unit
    (tmp_path / "enough").touch()
    (done,) = when_any(executor)
    assert (done.call, done.failure, [row.status for row in done.outcomes]) == (call, None, [Status.OK, Status.OK])
    assert (executor.slots(), executor.starting()) == ((1,), (0,))
    newcomer = add(cluster)
    while executor.slots() != (0, 1):
        executor.wait(1)
    executor.submit(0, Source(["other", "ok"], first=10).next())
    assert under(newcomer, when_written(tmp_path / "r10"))
    drain(newcomer)
    (done,) = when_any(executor)
    while executor.slots() != (1,):
        executor.wait(1)
    assert executor.starting() == (0,)  # an idle slot moves at once


def when_any(executor):
    while not (completions := executor.wait(1)):
        pass
    return completions


def test_workers_share_a_gpu_by_the_memory_that_the_first_unit_took(cluster, make, background):
    cluster.add_node(num_gpus=2, **{**NODE, "num_cpus": 8})
    fleet = Fleet(ClusterSettings(address="auto", gpus="auto"), SystemClock())
    executor = make(fleet.wanted(), resources=fleet.slot, supply=fleet, measured=True)
    while executor.slots() != (0,):
        executor.wait(10)
    assert executor.starting() == ()
    executor.submit(0, Source(["ok"]).next())
    (done,) = when_any(executor)
    assert done.failure is None
    # A worker took 20 of 80: three fit on the second GPU, and the first worker keeps the first one.
    while executor.slots() != (0, 1, 2, 3):
        executor.wait(10)
    assert executor.machine(0) == "test machine"
    assert {executor.machine(slot) for slot in (1, 2, 3)} == {"test machine, 0.333 of a GPU"}
    outcomes, _ = background.submit(go, executor, ["ok"] * 30).result()
    assert len(outcomes) == 30


def test_a_first_worker_that_is_lost_before_it_is_measured_does_not_hold_the_others_back(cluster, make, tmp_path):
    cluster.add_node(num_gpus=2, **{**NODE, "num_cpus": 8})
    fleet = Fleet(ClusterSettings(address="auto", gpus="auto"), SystemClock())
    executor = make(fleet.wanted(), resources=fleet.slot, supply=fleet, measured=True)
    while executor.slots() != (0,):
        executor.wait(10)
    executor.submit(0, Source(["exit"]).next())
    (done,) = when_any(executor)
    assert done.failure.kind == "died"
    while executor.slots() != (1,):
        executor.wait(10)
    assert executor.machine(1) == "test machine"


def test_a_node_that_is_not_fit_is_named_before_a_worker_starts_and_costs_no_row_later(cluster, make, background):
    add(cluster)
    nodes = Fleet(ClusterSettings(address="auto", gpus=1), SystemClock()).useful_nodes()
    fit = Needs(program_digest(), package_versions(), files=(str(Path(__file__)),))
    ensure_fit(fit, nodes)
    unfit = replace(fit, packages={**fit.packages, "torch": "1.0"}, files=("/nowhere/photo.png",))
    with pytest.raises(ClusterError) as caught:
        ensure_fit(unfit, nodes)
    assert [line.partition(",")[0] for line in str(caught.value).splitlines()] == [
        "node 127.0.0.1: it does not see /nowhere/photo.png: mount the same folders on every node",
        f"node 127.0.0.1: it has torch {fit.packages['torch']}",
    ]
    with pytest.raises(EngineError, match=r"the worker cannot start: node .*: it has torch"):
        background.submit(go, make(1, needs=unfit), ["ok"]).result()
    assert len(background.submit(go, make(1, needs=fit), ["ok"]).result()[0]) == 1


def test_a_driver_attaches_by_address_and_leaves_the_cluster_running(cluster):
    ensure_reachable(cluster.address)
    ray.shutdown()
    with attached(cluster.address):
        assert len(alive_nodes()) == 1
    assert not ray.is_initialized()
    with attached(cluster.address):
        assert len(alive_nodes()) == 1


def asked_for():
    """The bundles that the cluster's autoscaler is asked for."""
    return json.loads(_internal_kv_get(b"autoscaler_resource_request") or "[]")
