"""Ray on this machine for as long as a block lasts, and signals as a question.

Starts quietly a Ray of its own, whatever else runs here, and ends exactly that one. Ray's object store is kept small:
pictures and weights never go through it.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from perfusion_ops.errors import PerfusionError

_OBJECT_STORE_BYTES = 80 * 2**20  # Ray's least is 75 MiB
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ClusterError(PerfusionError):
    """Ray could not be started or reached; the message is a sentence with the remedy."""


@dataclass(frozen=True)
class LocalCluster:
    """What a local run has to share out.

    Attributes:
        slots: workers to start.
        num_cpus: CPUs that Ray reserves for each; 0, since nothing else is scheduled here.
        num_gpus: share of a GPU for each; 0 on a machine without one.
        threads: threads for each to compute with.
        stop: whether someone asked the run to end.
    """

    slots: int
    num_cpus: float
    num_gpus: float
    threads: int
    stop: Callable[[], bool]


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Within the block SIGINT and SIGTERM only turn the yielded function true; a second one acts as it did before.

    Enter it after Ray has started, which installs a handler of its own. Outside the main thread, where Python allows no
    handlers, the function stays false.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def ask(number: int, _: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[number])

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def share_out(*, slots: int | None, cpus: int, gpus: int) -> tuple[int, float, int]:
    """Slots, GPU share of a slot and threads of a slot.

    Without `slots`: one a GPU, or one with every core where there is no GPU. More slots than GPUs share them evenly.
    """
    count = slots if slots is not None else max(1, gpus)
    if count < 1:
        raise ClusterError(f"slots is {count}: use 1 or more, or leave it out to use every GPU")
    on_one_gpu = -(-count // gpus) if gpus else 0
    return count, 1.0 / on_one_gpu if on_one_gpu else 0.0, max(1, cpus // count)


def _cores() -> int:
    """Cores that this process may use; macOS knows no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def start_local(*, slots: int | None = None, cpus: int | None = None) -> Iterator[LocalCluster]:
    """Start Ray on this machine, with what it has; shut it down at the end of the block.

    Args:
        slots: workers to plan for; see `share_out`.
        cpus: cores to use; all that this process may use when absent.

    Raises:
        ClusterError: Ray is running in this process already, or does not start.
    """
    # Read by Ray when it starts: no question about usage reports, and no reset of the GPUs that a 0-GPU actor sees.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        raise ClusterError("Ray is running in this process already: call ray.shutdown() first, or run perfusion alone")
    cores = cpus if cpus is not None else _cores()
    try:
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    except Exception as error:
        ray.shutdown()
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"Ray could not start on this machine: {type(error).__name__}: {reason}. Check that its temporary folder "
            "(/tmp/ray, or what RAY_TMPDIR names) is writable, has space and a short path, and that ~/.ray is writable"
        ) from error
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count, num_gpus, threads = share_out(slots=slots, cpus=cores, gpus=gpus)
        with stop_on_signals() as stop:
            yield LocalCluster(count, 0.0, num_gpus, threads, stop)
    finally:
        ray.shutdown()
