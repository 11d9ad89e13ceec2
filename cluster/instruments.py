"""The instruments of Ray behind the list of metrics, and what a worker's process publishes through them."""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.metric_table import OF_WORKER, Metric
from pipeline.engine.executor import Worker

# Prometheus needs a first sample to see an increase, and Ray refuses to add 0. Added to a count this changes nothing.
_NOTHING = sys.float_info.min

_log = logging.getLogger(__name__)


class Instruments:
    """Counters and gauges of the Ray that this process is connected to, made when they are first used."""

    def __init__(self) -> None:
        self._made: dict[Metric, Any] = {}

    def add(self, metric: Metric, values: Sequence[str], amount: float) -> None:
        """Add to a counter; an amount of 0 makes its series appear. `values` are those of the metric's tags."""
        self._of(metric).inc(amount or _NOTHING, dict(zip(metric.tags, values, strict=True)))

    def set(self, metric: Metric, values: Sequence[str], value: float) -> None:
        """Set a gauge. Ray forgets it after two of its report intervals (20 s), so set it repeatedly."""
        self._of(metric).set(value, dict(zip(metric.tags, values, strict=True)))

    @staticmethod
    def if_connected() -> "Instruments | None":
        """New ones if this process is connected to Ray. Does not import Ray: whoever connects has imported it."""
        ray: Any = sys.modules.get("ray")
        return Instruments() if ray is not None and ray.is_initialized() else None

    def _of(self, metric: Metric) -> Any:
        if metric not in self._made:
            from ray.util import metrics

            make = metrics.Counter if metric.kind == "counter" else metrics.Gauge
            self._made[metric] = make(metric.name, metric.help, metric.tags)
        return self._made[metric]


class WorkerMetrics:
    """Publishes what a worker has counted, from its own process. A failure ends the publishing, never the work."""

    def __init__(self) -> None:
        self._instruments: Instruments | None = Instruments()
        self._published: dict[str, float] = {}

    def publish(self, worker: Worker) -> None:
        """Add what the worker has counted since the last call."""
        if self._instruments is None:
            return
        try:
            self._add(self._instruments, worker.counters())
        except Exception as error:  # noqa: BLE001 (whatever is wrong with metrics must not cost a unit of work)
            self._instruments = None
            _log.warning("this worker publishes no more metrics: %s: %s", type(error).__name__, error)

    def _add(self, instruments: Instruments, counters: Mapping[str, float]) -> None:
        for name, total in counters.items():
            risen = total - self._published.get(name, 0.0)
            if risen or name not in self._published:
                instruments.add(OF_WORKER[name], ("", "worker"), risen)
            self._published[name] = total
