"""The cost of a plan, estimated from the times and sizes of the newest run that made something."""

from dataclasses import dataclass

from pipeline.contract.kinds import PlanCounts
from pipeline.storage.objects import Storage
from pipeline.tables.views import connect


@dataclass(frozen=True)
class Estimate:
    """The cost of the keys to do; None if no run has trained, or rendered, anything yet.

    Attributes:
        training_h: accelerator-hours for the concepts.
        rendering_h: accelerator-hours for the renders.
        bytes: storage for both.
        measured_by: the runs that the estimate is based on.
    """

    training_h: float | None
    rendering_h: float | None
    bytes: int | None
    measured_by: tuple[str, ...]


def estimate(storage: Storage, work: PlanCounts) -> Estimate:
    """Means of the newest run that trained and of the newest that rendered, times the keys to do.

    Raises:
        StorageError: the tables cannot be listed.
    """
    with connect(storage) as connection:
        trained = connection.execute(_NEWEST.format(table="concepts", origin="trained")).fetchone()
        rendered = connection.execute(_NEWEST.format(table="renders", origin="rendered")).fetchone()
    training_h, training_bytes = _times(trained, work.concepts.keys_to_do)
    rendering_h, rendering_bytes = _times(rendered, work.renders.keys_to_do)
    size = None if training_bytes is None or rendering_bytes is None else round(training_bytes + rendering_bytes)
    runs = tuple(sorted({row[0] for row in (trained, rendered) if row}))
    return Estimate(training_h, rendering_h, size, runs)


def _times(newest: tuple[str, float, float] | None, keys: int) -> tuple[float | None, float | None]:
    """Hours and bytes for a number of keys, from the run id, seconds and bytes per key of the newest run."""
    if keys == 0:
        return 0.0, 0.0
    return (None, None) if newest is None else (newest[1] * keys / 3600, newest[2] * keys)


_NEWEST = """
SELECT run_id, avg(accelerator_s), avg(bytes) FROM {table} WHERE origin = '{origin}' AND accelerator_s > 0
GROUP BY run_id ORDER BY max(finished_at) DESC, run_id DESC LIMIT 1
"""
