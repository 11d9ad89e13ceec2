"""How many workers nodes have room for, by a count of one worker after the other, and when a run has waited enough."""

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.fleet import Fleet, Node, SlotResources, room, slot_of
from cluster.sharing import workers_on
from pipeline.contract.units import Machine
from pipeline.engine.machines import ClusterSettings
from tests.support.fake_clock import FakeClock

HOUR = 3600.0


def node(name="n", labels=None, **resources):
    return Node(name, f"10.0.0.{len(name)}", resources, labels or {})


CPU4 = node("cpu", CPU=4.0)
CPU16 = node("large", CPU=16.0)
GPU2 = node("gpu", CPU=8.0, GPU=2.0, **{"accelerator_type:A100": 1.0})
HEAD = node("head", CPU=0.0)


# Room


def exact(value):
    return Fraction(str(value))


def placed_one_by_one(there, slot):
    """How many slots fit, found by placing them: a share on one GPU with enough left, whole ones on free GPUs."""
    gpus = [Fraction(1)] * int(there.resources.get("GPU", 0))
    left = {name: exact(amount) for name, amount in there.resources.items() if name != "GPU"}
    wanted = {"CPU": exact(slot.num_cpus), **{name: exact(amount) for name, amount in slot.resources.items()}}
    share = exact(slot.num_gpus)
    count = 0
    while all(left.get(name, 0) >= amount for name, amount in wanted.items()):
        if share < 1:
            found = [number for number, free in enumerate(gpus) if free >= share][:1]
        else:
            found = [number for number, free in enumerate(gpus) if free == 1][: int(share)]
        if share and len(found) < max(1, int(share)):
            break
        for number in found:
            gpus[number] -= min(share, Fraction(1))
        for name, amount in wanted.items():
            left[name] -= amount
        count += 1
    return count


tenths = st.integers(1, 80).map(lambda number: number / 10)
shares = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.33, 0.4, 0.5, 0.6, 0.7, 0.9, 1.0, 2.0, 3.0, 4.0])


@settings(max_examples=400)
@given(
    cpus=st.one_of(st.just(0.0), st.integers(0, 20).map(float), tenths),
    gpus=st.integers(0, 5).map(float),
    licenses=st.one_of(st.just(0.0), tenths),
    slot_cpus=tenths,
    slot_gpus=shares,
    slot_licenses=st.one_of(st.none(), tenths),
)
@example(cpus=20.0, gpus=2.0, licenses=0.0, slot_cpus=0.1, slot_gpus=0.4, slot_licenses=None)
@example(cpus=20.0, gpus=1.0, licenses=0.0, slot_cpus=0.1, slot_gpus=0.1, slot_licenses=None)
@example(cpus=0.3, gpus=0.0, licenses=0.7, slot_cpus=0.1, slot_gpus=0.0, slot_licenses=0.1)
def test_room_is_what_can_be_placed_one_by_one(cpus, gpus, licenses, slot_cpus, slot_gpus, slot_licenses):
    there = node(CPU=cpus, GPU=gpus, license=licenses, memory=1e9)
    extra = {} if slot_licenses is None else {"license": slot_licenses}
    slot = SlotResources(num_cpus=slot_cpus, num_gpus=slot_gpus, resources=extra)
    assert room(there, slot) == placed_one_by_one(there, slot)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [(0.5, 4), (0.4, 4), (0.6, 2), (0.34, 4), (1 / 3, 6), (1 / 93, 186), (0.1, 20), (1.0, 2), (2.0, 1), (3.0, 0)],
)
def test_a_share_does_not_span_two_gpus(gpus, expected):
    assert room(node(CPU=200.0, GPU=2.0), SlotResources(num_cpus=1, num_gpus=gpus)) == expected


def test_a_resource_that_a_node_lacks_leaves_no_room():
    slot = SlotResources(num_cpus=1, resources={"license": 0.5})
    assert room(node(CPU=8.0), slot) == 0
    assert room(node(CPU=8.0, license=1.0), slot) == 2
    assert room(node(CPU=8.0, license=100.0), slot) == 8
    assert room(node(GPU=8.0), SlotResources(num_cpus=1)) == 0


@pytest.mark.parametrize(
    ("wanted", "fitting"),
    [
        ("a100", {"a100"}),
        ("!a100", {"l4", None}),
        ("in(a100,l4)", {"a100", "l4"}),
        ("in(a100, l4)", {"a100", "l4"}),
        ("in(l4)", {"l4"}),
        ("!in(a100,l4)", {None}),
        ("!in(h100)", {"a100", "l4", None}),
        ("h100", set()),
        ("a10", set()),
        ("in(a10,l)", set()),
    ],
)
def test_labels_choose_nodes(wanted, fitting):
    slot = SlotResources(num_cpus=1, labels={"kind": wanted})
    for value in ("a100", "l4", None):
        there = node(CPU=2.0, labels={"other": "a100"} | ({"kind": value} if value else {}))
        assert room(there, slot) == (2 if value in fitting else 0), value


def test_every_label_must_fit():
    slot = SlotResources(num_cpus=1, labels={"zone": "a", "pool": "!spot"})
    assert room(node(CPU=2.0, labels={"zone": "a"}), slot) == 2
    assert room(node(CPU=2.0, labels={"zone": "a", "pool": "spot"}), slot) == 0
    assert room(node(CPU=2.0, labels={"zone": "b"}), slot) == 0


def test_an_accelerator_type_chooses_nodes_and_limits_nothing():
    slot = SlotResources(num_cpus=1, num_gpus=0.25, accelerator="A100")
    assert room(GPU2, slot) == 8
    assert room(node(CPU=8.0, GPU=2.0, **{"accelerator_type:L4": 1.0}), slot) == 0
    assert room(node(CPU=8.0, GPU=2.0), slot) == 0


def test_a_bundle_has_ray_s_names_and_no_zeros():
    slot = SlotResources(2.0, 0.5, accelerator="A100", resources={"license": 1.5}, labels={"zone": "a"})
    assert slot.bundle() == {"CPU": 2.0, "GPU": 0.5, "license": 1.5, "accelerator_type:A100": 0.001}
    assert SlotResources(4.0).bundle() == {"CPU": 4.0}
    assert str(slot) == "2 CPU, 0.5 GPU, 1.5 license, accelerator type A100, label zone=a"
    assert str(SlotResources(0.0)) == "no resources"


# The size of a worker


def size(nodes, **given):
    slot = slot_of(ClusterSettings(**given), nodes)
    return slot.num_cpus, slot.num_gpus, slot.threads


@pytest.mark.parametrize(
    ("nodes", "given", "expected"),
    [
        ([CPU16, CPU4], {}, (4, 0, 4)),
        ([HEAD, CPU16], {}, (16, 0, 16)),
        ([CPU4, GPU2], {}, (1, 1, 1)),
        ([GPU2], {}, (1, 1, 1)),
        ([GPU2, CPU4], {"gpus": 0}, (4, 0, 4)),
        ([GPU2], {"gpus": 0.5}, (1, 0.5, 1)),
        ([GPU2], {"gpus": 2, "cpus": 6}, (6, 2, 6)),
        ([GPU2], {"cpus": 3.5}, (3.5, 1, 3)),
        ([CPU16], {"cpus": 0.5}, (0.5, 0, 1)),
        ([CPU4], {"gpus": 1}, (1, 1, 1)),
        ([CPU4], {"accelerator": "H100"}, (1, 1, 1)),
        ([], {"gpus": 1}, (1, 1, 1)),
        ([], {"cpus": 2}, (2, 0, 2)),
        ([HEAD], {"accelerator": "H100"}, (1, 1, 1)),
    ],
)
def test_what_is_not_set_comes_from_the_nodes(nodes, given, expected):
    assert size(nodes, **given) == expected


@pytest.mark.parametrize("nodes", [[], [HEAD], [node("odd", license=4.0)]])
@pytest.mark.parametrize("given", [{}, {"gpus": 0}])
def test_an_empty_cluster_shows_no_size(nodes, given):
    with pytest.raises(ClusterError, match=r"no node with a GPU or a CPU yet.*set cluster\.gpus or cluster\.cpus"):
        slot_of(ClusterSettings(**given), nodes)


def test_what_chooses_nodes_comes_from_the_settings():
    given = ClusterSettings(cpus=1, accelerator="A100", resources={"license": 2}, labels={"zone": "!in(a,b)"})
    slot = slot_of(given, [])
    assert (slot.accelerator, slot.resources, slot.labels) == ("A100", {"license": 2}, {"zone": "!in(a,b)"})


# Nodes that come and go


class Cluster:
    """Nodes that a test adds and removes."""

    def __init__(self, *nodes):
        self.nodes = list(nodes)
        self.clock = FakeClock()

    def fleet(self, **given):
        return Fleet(ClusterSettings(**given), self.clock, lambda: list(self.nodes))


@pytest.mark.parametrize(
    ("slots", "before", "after"), [(None, 2, 5), ("all", 2, 5), (3, 3, 3), ("2..3", 3, 3), ("1..100", 100, 100)]
)
def test_wanted_grows_when_nodes_join_unless_the_number_is_given(slots, before, after):
    cluster = Cluster(node(CPU=4.0))
    fleet = cluster.fleet(slots=slots, cpus=2)
    assert fleet.wanted() == before
    cluster.nodes += [HEAD, node(CPU=7.0)]
    assert fleet.wanted() == after


def test_one_worker_waits_where_no_node_has_room():
    cluster = Cluster(CPU4)
    fleet = cluster.fleet(gpus=1)
    assert (fleet.wanted(), fleet.useful_nodes()) == (1, [])
    cluster.nodes.append(GPU2)
    assert (fleet.wanted(), fleet.useful_nodes()) == (2, [GPU2])


def test_the_size_of_a_worker_stays_that_of_the_first_look():
    cluster = Cluster(CPU4)
    fleet = cluster.fleet()
    cluster.nodes[:] = [CPU16, GPU2]
    assert (fleet.slot.num_cpus, fleet.slot.num_gpus) == (4, 0)
    assert fleet.wanted() == 4 + 2


@pytest.mark.parametrize(("slots", "count"), [(None, 0), ("all", 0), (3, 3), ("2..5", 5)])
def test_an_autoscaler_is_asked_for_the_most_workers(slots, count):
    fleet = Cluster().fleet(slots=slots, gpus=1, accelerator="L4")
    assert fleet.bundles() == [{"CPU": 1.0, "GPU": 1.0, "accelerator_type:L4": 0.001}] * count


# Nodes that do not come


def test_nothing_is_lacking_before_the_time_is_over():
    cluster = Cluster(CPU4)
    cluster.clock.now = 500.0
    fleet = cluster.fleet(slots="3..8", cpus=4, join_s=HOUR)
    assert fleet.lacking() is None
    cluster.clock.now += HOUR - 0.1
    assert fleet.lacking() is None
    cluster.clock.now += 0.2
    assert fleet.lacking().startswith("after 3600 s (cluster.join_s) the cluster has room for 1 of at least 3 workers")


def test_a_cluster_that_was_complete_lacks_nothing_when_nodes_leave():
    cluster = Cluster(CPU4)
    fleet = cluster.fleet(slots="3..8", cpus=4, join_s=HOUR)
    assert fleet.lacking() is None
    cluster.nodes.append(node(CPU=8.0))
    assert fleet.lacking() is None
    cluster.nodes.clear()
    cluster.clock.now = 10 * HOUR
    assert fleet.lacking() is None


def test_nodes_that_leave_before_the_cluster_was_complete_are_missed():
    cluster = Cluster(CPU4, CPU4)
    fleet = cluster.fleet(slots="3..8", cpus=4, join_s=HOUR)
    assert fleet.lacking() is None
    cluster.nodes[:] = [CPU4, CPU4]
    cluster.clock.now = HOUR
    assert "room for 2 of at least 3 workers" in fleet.lacking()


def test_nodes_that_come_at_the_last_moment_are_enough():
    cluster = Cluster()
    fleet = cluster.fleet(slots="2..2", cpus=4, join_s=HOUR)
    cluster.nodes += [CPU4, CPU4]
    cluster.clock.now = 2 * HOUR
    assert fleet.lacking() is None


@pytest.mark.parametrize("slots", [None, "all", 9])
def test_one_worker_is_enough_unless_a_range_says_otherwise(slots):
    cluster = Cluster(CPU4)
    fleet = cluster.fleet(slots=slots, cpus=4, join_s=1)
    cluster.clock.now = 2.0
    assert fleet.lacking() is None


def test_the_message_names_the_needs_and_the_nodes():
    named = {"node:10.0.0.9": 1.0, "memory": 1e9, "object_store_memory": 1e8, "accelerator_type:L4": 1.0}
    cluster = Cluster(Node("a", "10.0.0.9", {"CPU": 4.0, "GPU": 1.0, **named}), Node("b", "10.0.0.8", {"memory": 1e9}))
    fleet = cluster.fleet(gpus=1, accelerator="A100", resources={"license": 2}, labels={"zone": "a"}, join_s=5)
    cluster.clock.now = 5.0
    assert fleet.lacking() == (
        "after 5 s (cluster.join_s) the cluster has room for 0 of at least 1 workers; each needs 1 CPU, 1 GPU, "
        "2 license, accelerator type A100, label zone=a, and the nodes are 10.0.0.9 with 4 CPU, 1 GPU, L4; "
        "10.0.0.8 with no resources"
    )


def test_the_message_shows_five_nodes_at_most():
    cluster = Cluster()
    fleet = cluster.fleet(gpus=1, join_s=5)
    cluster.clock.now = 5.0
    assert fleet.lacking().endswith("each needs 1 CPU, 1 GPU, and the nodes are none")
    cluster.nodes += [Node(str(number), f"10.0.0.{number}", {"CPU": 2.0}) for number in range(5)]
    assert fleet.lacking().endswith("10.0.0.3 with 2 CPU; 10.0.0.4 with 2 CPU")
    cluster.nodes += [Node(str(number), f"10.0.0.{number}", {"CPU": 2.0}) for number in range(5, 7)]
    assert fleet.lacking().endswith("10.0.0.4 with 2 CPU and 2 more")


# Workers that share a GPU


@pytest.mark.parametrize(
    ("peak", "total", "workers"),
    [(20, 80, 3), (9, 80, 8), (1, 80, 8), (37, 80, 1), (36, 80, 2), (80, 80, 1), (200, 80, 1), (0, 80, 1)],
)
def test_as_many_workers_share_a_gpu_as_its_memory_holds(peak, total, workers):
    assert workers_on(Machine("A100", total, peak)) == workers


@given(gpus=st.integers(1, 8), cpus=st.integers(1, 64), nodes=st.integers(1, 3), peak=st.integers(1, 90))
def test_with_shares_no_more_workers_are_wanted_than_fit_beside_a_first_one_with_a_whole_gpu(gpus, cpus, nodes, peak):
    there = [node(f"n{number}", GPU=float(gpus), CPU=float(cpus)) for number in range(nodes)]
    fleet = Fleet(ClusterSettings(address="auto", gpus="auto"), FakeClock(), lambda: there)
    assert (fleet.slot.num_gpus, fleet.wanted()) == (1.0, nodes * min(gpus, cpus))
    slot = fleet.shared(Machine("A100", 80, peak))
    beside = node("n0", GPU=float(gpus - 1), CPU=float(cpus - 1))
    fit = 1 + placed_one_by_one(beside, slot) + sum(placed_one_by_one(each, slot) for each in there[1:])
    assert 1 <= fleet.wanted() <= fit
    if cpus >= 8 * gpus:
        assert fleet.wanted() == fit
