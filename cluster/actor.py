"""The process of a slot: makes the worker, runs units, and answers while it runs.

A worker's exception is sent as text, so that the driver needs none of the worker's classes.
"""

import os
from dataclasses import dataclass

import ray
from ray import cloudpickle

from cluster.failures import failure_of_worker, text_of
from cluster.fitness import Needs, problems
from cluster.instruments import WorkerMetrics
from pipeline.contract.units import Activity, Machine, Outcome, Unit
from pipeline.engine.executor import Failure, Worker

WATCH = "watch"  # the concurrency group that answers while a unit runs


@dataclass(frozen=True)
class Ready:
    """A worker that takes units: Ray's id of its node, and what it runs on."""

    node: str
    machine: Machine


class SlotActor:
    """The process of a slot. Its environment is set before the worker's modules are imported."""

    def __init__(self, make_worker: bytes, env_vars: dict[str, str], needs: Needs | None) -> None:
        os.environ.update(env_vars)
        self._make_worker = make_worker
        self._needs = needs
        self._worker: Worker | None = None
        self._metrics = WorkerMetrics()

    def setup(self) -> Ready | Failure:
        """Make the worker if this node is fit for it."""
        try:
            lacks = problems(self._needs) if self._needs else []
            if lacks:
                return Failure("raised", f"node {ray.util.get_node_ip_address()}: {'; '.join(lacks)}")
            worker: Worker = cloudpickle.loads(self._make_worker)()
            self._worker = worker
            worker.setup()
            self._metrics.publish(worker)
            return Ready(ray.get_runtime_context().get_node_id(), worker.machine())
        except Exception as error:  # noqa: BLE001 (the boundary of the process: any exception becomes text)
            return Failure("raised", text_of(error))

    def run(self, unit: Unit) -> tuple[Outcome, ...] | Failure:
        """Run one unit."""
        assert self._worker is not None
        try:
            return tuple(self._worker.run(unit))
        except Exception as error:  # noqa: BLE001 (as above)
            return failure_of_worker(error)
        finally:
            self._metrics.publish(self._worker)

    @ray.method(concurrency_group=WATCH)
    def activity(self) -> Activity | None:
        """What the worker is doing; answered while `setup` or `run` is in progress."""
        return self._worker.activity() if self._worker is not None else None

    @ray.method(concurrency_group=WATCH)
    def machine(self) -> Machine:
        """What the worker runs on, with the most memory that it has had so far."""
        assert self._worker is not None
        return self._worker.machine()

    def close(self) -> None:
        """Close the worker."""
        if self._worker is not None:
            self._worker.close()
