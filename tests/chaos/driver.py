"""One attempt at a run on a Ray that is there already: `python -m tests.chaos.driver ADDRESS SPEC`.

Prints what `perfusion run` prints.
"""

import logging
import sys
from contextlib import contextmanager
from functools import partial

import ray

from cluster.fleet import SlotResources
from cluster.ray_executor import RayExecutor
from cluster.signals import stop_on_signals
from jobs.output import complain
from jobs.placement.engine import WORKER_ENVIRONMENT, make_worker
from jobs.run import run
from jobs.spec import load_spec
from pipeline.engine.figures import EngineError
from pipeline.run import Engine
from pipeline.runs.lease import LeaseHeld
from pipeline.storage.objects import StorageError

BUSY, TROUBLE = 5, 6  # another attempt works on the run; something that the next attempt may not meet


def main() -> int:
    address, spec = sys.argv[1:]
    ray.init(address=address, namespace="chaos", log_to_driver=False, logging_level=logging.ERROR)

    @contextmanager
    def engine(worker):
        with stop_on_signals() as stop:
            executor = RayExecutor(
                partial(make_worker, worker),
                slots=int(ray.cluster_resources()["CPU"]),
                resources=SlotResources(num_cpus=1, threads=1),
                env_vars=WORKER_ENVIRONMENT,
            )
            try:
                yield Engine(executor, lambda: "it was asked to end" if stop() else None)
            finally:
                executor.close()

    try:
        return run(load_spec(spec, ()), json=True, make_engine=engine)
    except LeaseHeld as error:
        complain(str(error))
        return BUSY
    except (StorageError, EngineError) as error:
        complain(str(error))
        return TROUBLE
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
