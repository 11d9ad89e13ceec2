"""What gives a run its workers: a private Ray on this machine, or a cluster that runs already."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

from jobs.spec_file import SpecError
from pipeline.clock import SystemClock
from pipeline.engine.executor import Worker
from pipeline.run import Engine, MakeEngine
from pipeline.settings import RunSettings
from pipeline.worker.settings import WorkerSettings

# libgomp lets an idle thread spin before it sleeps; long spins slow a machine with more threads than cores many times
# over. Other OpenMP libraries ignore the variable.
WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}


_ASKED = "it was asked to end"
_Start = Callable[[WorkerSettings], AbstractContextManager[Engine]]


@contextmanager
def engines(settings: RunSettings) -> Iterator[MakeEngine]:
    """What starts the workers of the runs within the block; the first of them connects to Ray, which the block ends.

    A cluster is tried at once, so that a wrong address costs nothing. The result raises `SpecError` if the root is in
    the memory of one process, and `ClusterError` if Ray does not start or a node is not fit.

    Raises:
        ClusterError: the cluster cannot be used.
    """
    site = _this_machine
    if settings.cluster.remote:
        from cluster.attach import ensure_reachable

        ensure_reachable(str(settings.cluster.address))
        site = _cluster
    connected: list[_Start] = []
    with ExitStack() as stack:

        @contextmanager
        def make_engine(worker: WorkerSettings) -> Iterator[Engine]:
            if worker.root.startswith("memory://"):
                raise SpecError(
                    "root is memory://, which each process has for itself: give a folder or an object store"
                )
            if not connected:
                connected.append(stack.enter_context(site(settings)))
            with connected[0](worker) as engine:
                yield engine

        yield make_engine


@contextmanager
def _this_machine(settings: RunSettings) -> Iterator[_Start]:
    """A private Ray on this machine."""
    from cluster.fleet import SlotResources
    from cluster.local import start_local
    from cluster.ray_executor import RayExecutor
    from cluster.signals import stop_on_signals

    slots, port = settings.cluster.slots, settings.cluster.metrics_port
    with (
        start_local(slots=slots if isinstance(slots, int) else None, metrics_port=port) as local,
        stop_on_signals() as asked,
    ):

        @contextmanager
        def start(worker: WorkerSettings) -> Iterator[Engine]:
            executor = RayExecutor(
                partial(make_worker, worker),
                slots=local.slots,
                resources=SlotResources(local.num_cpus, local.num_gpus, local.threads),
                env_vars=WORKER_ENVIRONMENT,
            )
            try:
                yield Engine(executor, lambda: _ASKED if asked() else None, executor.activities)
            finally:
                executor.close()

        yield start


@contextmanager
def _cluster(settings: RunSettings) -> Iterator[_Start]:
    """The cluster at `settings.cluster.address`, which runs on."""
    from cluster.attach import attached, shipped
    from cluster.fitness import ensure_fit, needs_of
    from cluster.fleet import Fleet, requested
    from cluster.ray_executor import RayExecutor
    from cluster.signals import stop_on_signals

    runtime_env = shipped() if settings.cluster.ship_code else None
    with attached(str(settings.cluster.address), runtime_env), stop_on_signals() as asked:

        @contextmanager
        def start(worker: WorkerSettings) -> Iterator[Engine]:
            fleet = Fleet(settings.cluster, SystemClock())
            with _witness(worker) as files, requested(fleet):
                needs = needs_of(worker, files)
                ensure_fit(needs, fleet.useful_nodes())
                executor = RayExecutor(
                    partial(make_worker, worker),
                    slots=fleet.wanted(),
                    resources=fleet.slot,
                    env_vars=WORKER_ENVIRONMENT,
                    needs=needs,
                    supply=fleet,
                    measured=settings.cluster.gpus == "auto",
                )
                try:
                    yield Engine(executor, lambda: _ASKED if asked() else fleet.lacking(), executor.activities)
                finally:
                    executor.close()

        yield start


@contextmanager
def _witness(worker: WorkerSettings) -> Iterator[tuple[str, ...]]:
    """Local paths that every node must see: some inputs, and a new file under the root, which the block removes."""
    if not worker.root.startswith("file://"):
        yield worker.local_files
        return
    with tempfile.NamedTemporaryFile(prefix=".seen-by-every-node-", dir=worker.root.removeprefix("file://")) as file:
        yield (*worker.local_files, file.name)


def make_worker(settings: WorkerSettings) -> Worker:
    """The worker of a slot; called in the slot's process, which alone imports PyTorch."""
    from pipeline.worker.perfusion_worker import PerfusionWorker

    return PerfusionWorker(settings)
