"""The engine of local runs: Ray on this machine, with one worker per slot."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from jobs.spec_file import SpecError
from pipeline.engine.executor import Worker
from pipeline.run import Engine, MakeEngine
from pipeline.settings import RunSettings
from pipeline.worker.settings import WorkerSettings

# libgomp lets an idle thread spin before it sleeps; long spins slow a machine with more threads than cores many times
# over. Other OpenMP libraries ignore the variable.
WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}


@contextmanager
def local_engines(settings: RunSettings) -> Iterator[MakeEngine]:
    """What starts the workers of the runs within the block, on a Ray that the first of them starts; both end with it.

    The result raises `SpecError` if the root is in the memory of one process, and `ClusterError` if Ray does not start.
    """
    from cluster.local import LocalCluster, start_local
    from cluster.ray_executor import RayExecutor, SlotResources

    started: list[LocalCluster] = []
    with ExitStack() as stack:

        @contextmanager
        def make_engine(worker: WorkerSettings) -> Iterator[Engine]:
            if worker.root.startswith("memory://"):
                raise SpecError(
                    "root is memory://, which each process has for itself: give a folder or an object store"
                )
            if not started:
                started.append(stack.enter_context(start_local(slots=settings.engine.slots)))
            [local] = started
            executor = RayExecutor(
                partial(make_worker, worker),
                slots=local.slots,
                resources=SlotResources(local.num_cpus, local.num_gpus, local.threads),
                env_vars=WORKER_ENVIRONMENT,
            )
            try:
                yield Engine(executor, local.stop, executor.activities)
            finally:
                executor.close()

        yield make_engine


@contextmanager
def local_engine(settings: RunSettings, worker: WorkerSettings) -> Iterator[Engine]:
    """Start Ray and the workers of one run on this machine; end both with the block.

    Raises:
        SpecError: the root is in the memory of one process.
        ClusterError: Ray does not start.
    """
    with local_engines(settings) as make_engine, make_engine(worker) as engine:
        yield engine


def make_worker(settings: WorkerSettings) -> Worker:
    """The worker of a slot; called in the slot's process, which alone imports PyTorch."""
    from pipeline.worker.perfusion_worker import PerfusionWorker

    return PerfusionWorker(settings)
