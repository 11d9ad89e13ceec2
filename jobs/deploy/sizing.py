"""From a spec and the options to nodes: what a node has, how many workers it holds, and how many nodes there may be.

The spec that travels states the same numbers. On a cluster that starts without nodes, a run cannot look them up, and
without an upper bound it asks the autoscaler for nothing.
"""

import math
from dataclasses import dataclass

from jobs.deploy.options import Deployment, Pool
from jobs.spec import dump_spec
from jobs.spec_file import SpecError
from pipeline.engine.machines import slot_range
from pipeline.settings import RunSettings

_MODELS = ("base", "render_base", "motion")
_LOCATIONS = ("root", "concepts", "prompts", "points", *_MODELS)
_CPUS = 4  # of a node, for one worker, its uploads and Ray


@dataclass(frozen=True)
class Node:
    """A pod or virtual machine, and what one worker takes of it. `workers`: how many it holds."""

    gpus: int
    cpus: int
    worker_gpus: float
    worker_cpus: float
    workers: int


@dataclass(frozen=True)
class Bounds:
    """How many nodes of one pool run at least and at most."""

    least: int
    most: int


@dataclass(frozen=True)
class Fleet:
    """The nodes of a deployment."""

    node: Node
    on_demand: Bounds
    spot: Bounds

    @property
    def most(self) -> int:
        """Nodes of all pools at most."""
        return self.on_demand.most + self.spot.most

    def pools(self, deployment: Deployment) -> list[tuple[str, Bounds, Pool]]:
        """Name, bounds and options of each pool that may have nodes."""
        every = [("on-demand", self.on_demand, deployment.on_demand), ("spot", self.spot, deployment.spot)]
        return [each for each in every if each[1].most]


def node_of(deployment: Deployment, settings: RunSettings) -> Node:
    """What a node has.

    Raises:
        SpecError: the options make it too small for one worker.
    """
    cluster = settings.cluster
    default = 0 if settings.engine.device == "cpu" else 1
    gpus = deployment.gpus
    if gpus is None:
        gpus = math.ceil(cluster.first_gpus) if cluster.first_gpus is not None else default
    worker_gpus = cluster.first_gpus if cluster.first_gpus is not None else float(min(gpus, 1))
    sharing = int(gpus / worker_gpus) if worker_gpus else 1
    cpus = deployment.cpus or max(_CPUS, math.ceil((cluster.cpus or 1) * max(sharing, 1)))
    worker_cpus = cluster.cpus or (1.0 if worker_gpus else float(cpus))
    workers = int(min(gpus / worker_gpus if worker_gpus else math.inf, cpus / worker_cpus))
    if not workers:
        raise SpecError(
            f"a node has {gpus} GPUs and {cpus} CPUs, and a worker takes {worker_gpus:g} and {worker_cpus:g} "
            "(cluster.gpus, cluster.cpus): raise the options gpus and cpus"
        )
    return Node(gpus, cpus, worker_gpus, worker_cpus, workers)


def fleet_of(deployment: Deployment, settings: RunSettings) -> Fleet:
    """How many nodes there may be: the options, or else what `cluster.slots` of the spec needs.

    Raises:
        SpecError: nothing says how many, or they are fewer than the spec needs.
    """
    node = node_of(deployment, settings)
    slots = settings.cluster.slots
    wanted = slot_range(slots)
    spot = Bounds(deployment.spot.min or 0, deployment.spot.max or 0)
    most = deployment.on_demand.max
    if most is None and wanted.most is not None:
        most = max(0, math.ceil(wanted.most / node.workers) - spot.most, deployment.on_demand.min or 0)
    if most is None:
        raise SpecError(
            "nothing says how many nodes there may be: add 'on_demand: {max: 8}' to the options, or give cluster.slots "
            "in the spec as a range such as '1..8'"
        )
    least = deployment.on_demand.min
    if least is None:
        least = min(most, math.ceil(wanted.least / node.workers)) if isinstance(slots, str) and slots != "all" else 0
    fleet = Fleet(node, Bounds(least, most), spot)
    if fleet.most * node.workers < wanted.least:
        raise SpecError(
            f"{fleet.most} nodes hold {fleet.most * node.workers} workers, and cluster.slots of the spec needs "
            f"{wanted.least}: raise on_demand.max or spot.max"
        )
    return fleet


def slots_of(settings: RunSettings, fleet: Fleet) -> int | str:
    """`cluster.slots` with an upper bound: the spec's, or else as many as the nodes hold."""
    slots = settings.cluster.slots
    return f"1..{fleet.most * fleet.node.workers}" if slots is None or slots == "all" else slots


def resources_offered(settings: RunSettings, fleet: Fleet) -> dict[str, int]:
    """Custom resources of Ray that each node must have, so that workers fit on it."""
    offered = {name: math.ceil(each * fleet.node.workers) for name, each in settings.cluster.resources.items()}
    if settings.cluster.accelerator:
        offered[f"accelerator_type:{settings.cluster.accelerator}"] = 1
    return offered


def plain_labels(settings: RunSettings) -> dict[str, str]:
    """Labels of Ray that each node must have; a selector such as `!in(a,b)` says only what it must not have."""
    return {name: value for name, value in settings.cluster.labels.items() if not value.startswith(("!", "in("))}


def travelling_spec(settings: RunSettings, fleet: Fleet | None) -> str:
    """The spec as YAML, for the machines of a fleet; None: for one machine, which takes all that it has.

    The address is left out: the command that starts the run gives it.
    """
    values = settings.model_dump(mode="json", exclude_unset=True)
    cluster = values.pop("cluster", {})
    if fleet:
        cluster.pop("address", None)
        cluster |= {"gpus": fleet.node.worker_gpus, "cpus": fleet.node.worker_cpus}
        values["cluster"] = cluster | {"slots": slots_of(settings, fleet)}
    return dump_spec(values)


def ensure_remote(settings: RunSettings) -> None:
    """Check that the spec names nothing that lies on this machine's disk.

    Raises:
        SpecError: it does; each line of the message is one setting with its remedy.
    """
    named = {name: getattr(settings, name) for name in _LOCATIONS}
    named["metric.captions_uri"] = settings.metric.captions_uri
    named |= {f"controls.{name}": location for name, location in settings.controls.items()}
    local = {name: value for name, value in named.items() if value and value.startswith(("/", "file:", "memory:"))}
    if local:
        raise SpecError("\n".join(_moved(name, value) for name, value in local.items()))


def _moved(name: str, value: str) -> str:
    target = f"s3://bucket/{value.rstrip('/').rpartition('/')[2]}"
    other = ", or give the id of a model on the hub" if name in _MODELS or name.startswith("controls.") else ""
    return (
        f"{name} is {value}, which other machines cannot read: copy it to an object store and set {name} to its "
        f"address, such as {target}{other}"
    )
