"""The process of a slot: makes the worker, runs units, and answers while it runs.

Each unit is two calls: `compute` and `finish`. Each of them has a thread of its own, which takes its calls in order. So
one unit is computed at a time, and the objects of the one before are written meanwhile. A worker's exception is sent as
text, so that the driver needs none of the worker's classes.
"""

import os
import queue
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import cloudpickle

from cluster.failures import failure_of_worker, text_of
from cluster.fitness import Needs, problems
from cluster.instruments import WorkerMetrics
from pipeline.contract.units import Activity, Machine, Outcome, Unit
from pipeline.engine.executor import Failure, Worker

# Concurrency groups of one thread each.
WATCH = "watch"  # answers while a unit runs
FINISH = "finish"  # ends units


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
        # At most one computed unit waits beside the one that is finished, whatever the number of calls.
        self._computed = queue.Queue[Callable[[], list[Outcome]] | Failure](maxsize=1)

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

    def compute(self, unit: Unit) -> None:
        """Do what a unit needs the accelerator for; the call of `finish` with the same number has its result."""
        assert self._worker is not None
        try:
            result = self._worker.compute(unit)
        except Exception as error:  # noqa: BLE001 (as above)
            result = failure_of_worker(error)
        self._computed.put(result)

    @ray.method(concurrency_group=FINISH)
    def finish(self) -> tuple[Outcome, ...] | Failure:
        """Wait until the next unit is computed, write its objects, and give its outcomes."""
        assert self._worker is not None
        computed = self._computed.get()
        try:
            return computed if isinstance(computed, Failure) else tuple(computed())
        except Exception as error:  # noqa: BLE001 (as above)
            return failure_of_worker(error)
        finally:
            self._metrics.publish(self._worker)

    @ray.method(concurrency_group=WATCH)
    def activity(self) -> Activity | None:
        """What the worker is doing; answered while `setup` or a unit is in progress."""
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
