"""A private Ray on this machine, as a context manager.

The Ray is independent of any other Ray on the machine, and only this one is shut down. Its object store is small,
because photos, renders and weights never pass through it.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.errors import ClusterError

_OBJECT_STORE_BYTES = 80 * 2**20  # Ray's minimum is 75 MiB


@dataclass(frozen=True)
class LocalCluster:
    """The resources of a local run.

    Attributes:
        slots: number of workers to start.
        num_cpus: CPUs that Ray reserves for each worker; 0, because nothing else is scheduled here.
        num_gpus: share of a GPU for each worker; 0 on a machine without a GPU.
        threads: that each worker computes with.
    """

    slots: int
    num_cpus: float
    num_gpus: float
    threads: int


def share_out(*, slots: int | None, cpus: int, gpus: int) -> tuple[int, float, int]:
    """Divide a machine: number of slots, GPU share of a slot, and threads of a slot.

    If `slots` is None there is one slot per GPU, or one slot with all cores on a machine without a GPU. If there are
    more slots than GPUs, they share the GPUs evenly.

    Raises:
        ClusterError: `slots` is less than 1.
    """
    count = slots if slots is not None else max(1, gpus)
    if count < 1:
        raise ClusterError(f"slots is {count}: use 1 or more, or leave it out to use every GPU")
    on_one_gpu = -(-count // gpus) if gpus else 0
    return count, 1.0 / on_one_gpu if on_one_gpu else 0.0, max(1, cpus // count)


def _cores() -> int:
    """Cores that this process may use; macOS has no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ensure_free(port: int) -> None:
    """Ray itself would start without metrics, or not at all."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise ClusterError(
                f"port {port} cannot be used for metrics ({error.strerror}): set cluster.metrics_port to a free port, "
                "or leave it out"
            ) from error


@contextlib.contextmanager
def start_local(
    *, slots: int | None = None, cpus: int | None = None, metrics_port: int | None = None
) -> Iterator[LocalCluster]:
    """Start Ray on this machine; shut it down at the end of the block.

    Args:
        slots: number of workers; see `share_out`.
        cpus: cores to use; if None, all that this process may use.
        metrics_port: where Ray serves metrics; if None, on a port that is free.

    Raises:
        ClusterError: Ray already runs in this process, or does not start, or the port is in use.
    """
    # Ray reads these when it starts: no prompt about usage reports, and an actor without a GPU share still sees GPUs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray starts its workers at a niceness of 15: beside another busy program they get a thirtieth of the processor.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if ray.is_initialized():
        raise ClusterError("Ray already runs in this process: call ray.shutdown() first, or use another process")
    if metrics_port is not None:
        _ensure_free(metrics_port)
    cores = cpus if cpus is not None else _cores()
    try:
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _metrics_export_port=metrics_port,
        )
    except Exception as error:
        ray.shutdown()
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"Ray could not start on this machine: {type(error).__name__}: {reason}. Check that its temporary folder "
            "(/tmp/ray, or RAY_TMPDIR) is writable, has free space and a short path, and that ~/.ray is writable"
        ) from error
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count, num_gpus, threads = share_out(slots=slots, cpus=cores, gpus=gpus)
        yield LocalCluster(count, 0.0, num_gpus, threads)
    finally:
        ray.shutdown()
