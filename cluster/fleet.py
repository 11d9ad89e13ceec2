"""How many workers a cluster has room for, and whether the least number came in time.

Nodes come and go while a run works. The number of workers only grows: a worker whose node is gone waits in Ray's queue
for another node.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.errors import ClusterError
from cluster.sharing import workers_on
from pipeline.clock import Clock
from pipeline.contract.units import Machine
from pipeline.engine.machines import ClusterSettings, SlotRange, slot_range

_ACCELERATOR_TYPE = "accelerator_type:"  # Ray's resource of a node whose GPUs have a known type


@dataclass(frozen=True)
class Node:
    """A node of the cluster: Ray's id, its address, its resources in total (CPU, GPU, custom ones) and its labels."""

    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SlotResources:
    """What Ray reserves for a slot, which nodes it may be on, and the number of threads that its process computes with.

    Attributes:
        num_cpus: CPUs.
        num_gpus: GPUs; a share puts several slots on one.
        threads: of its process.
        accelerator: type of GPU, by Ray's name.
        resources: custom resources.
        labels: labels that the node must have, in Ray's syntax of selectors.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    threads: int = 1
    accelerator: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def bundle(self) -> dict[str, float]:
        """The resources of one slot by Ray's names, those that are 0 left out."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        if self.accelerator:
            wanted[_ACCELERATOR_TYPE + self.accelerator] = 0.001
        return {name: amount for name, amount in wanted.items() if amount}

    def __str__(self) -> str:
        parts = [
            f"{amount:g} {name}" for name, amount in self.bundle().items() if not name.startswith(_ACCELERATOR_TYPE)
        ]
        if self.accelerator:
            parts.append(f"accelerator type {self.accelerator}")
        parts += [f"label {name}={value}" for name, value in self.labels.items()]
        return ", ".join(parts) or "no resources"


def alive_nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to."""
    import ray

    return [
        Node(each["NodeID"], each["NodeManagerAddress"], each["Resources"], each.get("Labels") or {})
        for each in ray.nodes()
        if each["Alive"]
    ]


def draining_nodes() -> frozenset[str]:
    """Ray's ids of the nodes that are about to leave: a spot machine that is taken away, a pod that is deleted."""
    from ray._private.state import state  # Ray's own libraries have no other way

    return frozenset(state.get_draining_nodes())


def room(node: Node, slot: SlotResources) -> int:
    """How many slots fit on a node with nothing else on it."""
    if not all(_matches(node.labels.get(name), wanted) for name, wanted in slot.labels.items()):
        return 0
    # A share of a GPU does not span two of them.
    on_one_gpu = int(1 / slot.num_gpus + 1e-9) if 0 < slot.num_gpus < 1 else 0
    counts = [
        int(node.resources.get(name, 0)) * on_one_gpu
        if name == "GPU" and on_one_gpu
        else int(node.resources.get(name, 0) / amount + 1e-9)
        for name, amount in slot.bundle().items()
        if not name.startswith(_ACCELERATOR_TYPE)
    ]
    if slot.accelerator and _ACCELERATOR_TYPE + slot.accelerator not in node.resources:
        return 0
    return min(counts, default=0)


def _chosen(node: Node, settings: ClusterSettings) -> bool:
    """Whether the settings allow a node, whatever its size."""
    return (
        all(_matches(node.labels.get(name), wanted) for name, wanted in settings.labels.items())
        and all(node.resources.get(name, 0) >= amount for name, amount in settings.resources.items())
        and (settings.accelerator is None or _ACCELERATOR_TYPE + settings.accelerator in node.resources)
    )


def _matches(value: str | None, wanted: str) -> bool:
    """Ray's label operators: `x`, `!x`, `in(a,b)`, `!in(a,b)`."""
    plain = wanted.removeprefix("!")
    options = plain[3:-1].split(",") if plain.startswith("in(") and plain.endswith(")") else [plain]
    return (value in [option.strip() for option in options]) != wanted.startswith("!")


def slot_of(settings: ClusterSettings, nodes: Sequence[Node]) -> SlotResources:
    """What each slot gets, from the settings or from the nodes that are there.

    Raises:
        ClusterError: the settings leave it open, and no node shows what there will be.
    """
    nodes = [node for node in nodes if _chosen(node, settings)]
    gpus = settings.first_gpus
    if gpus is None:
        wants_gpu = settings.accelerator or any(node.resources.get("GPU", 0) >= 1 for node in nodes)
        gpus = 1.0 if wants_gpu else 0.0
    cpus = settings.cpus
    if cpus is None and gpus:
        cpus = 1.0
    if cpus is None:
        there = [node.resources["CPU"] for node in nodes if node.resources.get("CPU", 0) >= 1]
        if not there:
            raise ClusterError(
                "the cluster has no node with a GPU or a CPU yet, so the size of a worker is unknown: set cluster.gpus "
                "or cluster.cpus"
            )
        cpus = min(there)
    return SlotResources(
        num_cpus=cpus,
        num_gpus=gpus,
        threads=max(1, int(cpus)),
        accelerator=settings.accelerator,
        resources=dict(settings.resources),
        labels=dict(settings.labels),
    )


class Fleet:
    """Follows the nodes of one run."""

    def __init__(self, settings: ClusterSettings, clock: Clock, look: Callable[[], list[Node]] = alive_nodes) -> None:
        """Look at the nodes for the first time.

        Raises:
            ClusterError: see `slot_of`.
        """
        self._look = look
        self._clock = clock
        self._range: SlotRange = slot_range(settings.slots)
        self._join_s = settings.join_s
        self._began = clock.monotonic()
        self._complete = False
        self.slot = slot_of(settings, look())
        self._shared: SlotResources | None = None

    def useful_nodes(self) -> list[Node]:
        """The nodes that a worker fits on."""
        return [node for node in self._look() if room(node, self.slot)]

    def wanted(self) -> int:
        """Number of workers that should exist now: at least one, which Ray keeps in its queue until a node has room."""
        if self._range.most is not None:
            return self._range.most
        if self._shared is None:
            return max(1, sum(room(node, self.slot) for node in self._look()))
        shares = round(self.slot.num_gpus / self._shared.num_gpus)  # the first worker keeps a whole GPU
        return max(1, sum(room(node, self._shared) for node in self._look()) - shares + 1)

    def draining(self) -> frozenset[str]:
        """Ray's ids of the nodes that are about to leave."""
        return draining_nodes()

    def shared(self, machine: Machine) -> SlotResources:
        """What each worker but the first gets; from now on `wanted` counts by it."""
        self._shared = replace(self.slot, num_gpus=self.slot.num_gpus / workers_on(machine))
        return self._shared

    def bundles(self) -> list[dict[str, float]]:
        """What to ask of an autoscaler: the resources of each worker; none if the cluster is taken as it is."""
        return [self.slot.bundle()] * (self._range.most or 0)

    def lacking(self) -> str | None:
        """Why the run must stop: nodes with room for the least number of workers did not come in time."""
        if self._complete:
            return None
        nodes = self._look()
        there = sum(room(node, self.slot) for node in nodes)
        self._complete = there >= self._range.least
        if self._complete or self._clock.monotonic() - self._began < self._join_s:
            return None
        shown = "; ".join(f"{node.address} with {_shown(node)}" for node in nodes[:5])
        more = f" and {len(nodes) - 5} more" if nodes[5:] else ""
        return (
            f"after {self._join_s:g} s (cluster.join_s) the cluster has room for {there} of at least "
            f"{self._range.least} workers; each needs {self.slot}, and the nodes are {shown or 'none'}{more}"
        )


@contextmanager
def requested(fleet: Fleet) -> Iterator[None]:
    """Ask the cluster's autoscaler for nodes for all workers, and take the request back at the end of the block.

    A cluster without an autoscaler ignores it. The request of a driver that was killed stays until the next run.
    """
    from ray.autoscaler.sdk import request_resources

    bundles = fleet.bundles()
    if not bundles:
        yield
        return
    labels = [dict(fleet.slot.labels)] * len(bundles) if fleet.slot.labels else None
    request_resources(bundles=bundles, bundle_label_selectors=labels)
    try:
        yield
    finally:
        request_resources(bundles=[])


def _shown(node: Node) -> str:
    parts: list[Any] = [
        f"{amount:g} {name}"
        for name, amount in sorted(node.resources.items())
        if not name.startswith(("node:", "memory", "object_store_memory", _ACCELERATOR_TYPE))
    ]
    parts += [name.removeprefix(_ACCELERATOR_TYPE) for name in node.resources if name.startswith(_ACCELERATOR_TYPE)]
    return ", ".join(parts) or "no resources"
