"""The metrics of a run: the one list from which instruments, dashboard, alerts and documentation are made or checked.

Ray adds labels of its own to each series (`SessionName`, `NodeAddress`, `WorkerId` and others), so each process has
series of its own. Therefore `run_id` as a tag adds no series. No tag holds a key or an id of the manifests.
"""

from dataclasses import dataclass
from typing import Literal

PREFIX = "ray_"  # Ray puts it before each name


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric, equal to itself alone.

    Attributes:
        name: as it is given to Ray; it ends in the unit, and a counter in `_total`.
        kind: counter or gauge. A histogram of Ray reports an approximate sum, so there is none.
        unit: of its values.
        help: what it counts or shows.
        tags: names of the labels that this program sets, with their values if they are few.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    tags: tuple[str, ...] = ("run_id",)

    @property
    def exposed(self) -> str:
        """Its name at the endpoint and in PromQL."""
        return PREFIX + self.name


TASKS = Metric(
    "perfusion_tasks_total",
    "counter",
    "tasks",
    "concepts and renders that ended; outcome: made, reused, invalid or failed; code: the error code, or empty",
    ("run_id", "kind", "outcome", "code"),
)
TASKS_PLANNED = Metric(
    "perfusion_tasks_planned", "gauge", "tasks", "tasks that were to do when this driver began", ("run_id", "kind")
)
TASKS_LEFT = Metric("perfusion_tasks_left", "gauge", "tasks", "planned tasks that have not ended", ("run_id", "kind"))
LAST_UNIT = Metric(
    "perfusion_last_unit_timestamp_seconds",
    "gauge",
    "seconds since 1970",
    "when a unit of work last ended; until the first one ends, when the work began",
)
SLOTS = Metric(
    "perfusion_slots",
    "gauge",
    "slots",
    "worker slots; state: running, idle, leaving, starting or quarantined",
    ("run_id", "state"),
)
BATCH_TASKS = Metric(
    "perfusion_batch_tasks_total",
    "counter",
    "tasks",
    "tasks that a worker spent time on; divided by the places it is the mean fill of a batch",
    ("run_id", "kind"),
)
BATCH_PLACES = Metric(
    "perfusion_batch_places_total",
    "counter",
    "tasks",
    "room in the batches of these tasks: engine.group_size for each batch of concepts, engine.render_batch for each of "
    "renders",
    ("run_id", "kind"),
)
ACCELERATOR = Metric(
    "perfusion_accelerator_seconds_total",
    "counter",
    "seconds",
    "accelerator time of units that ended; use: useful, or wasted if the unit gave no outcome",
    ("run_id", "use"),
)
SPENT = Metric(
    "perfusion_accelerator_spent_seconds",
    "gauge",
    "seconds",
    "accelerator time that this driver counts against its budget, running units included",
)
BUDGET = Metric(
    "perfusion_accelerator_budget_seconds", "gauge", "seconds", "engine.budget_h in seconds; absent without a budget"
)
WRITTEN = Metric(
    "perfusion_written_bytes_total", "counter", "bytes", "size of the weights and renders made", ("run_id", "kind")
)
STORAGE_RETRIES = Metric(
    "perfusion_storage_retries_total",
    "counter",
    "retries",
    "transient storage errors that were retried; process: driver or worker; a worker has an empty run_id",
    ("run_id", "process"),
)
UNIT_RETRIES = Metric("perfusion_unit_retries_total", "counter", "units", "units whose tasks had to run again")
DEATHS = Metric("perfusion_worker_deaths_total", "counter", "workers", "workers that died, hung or did not start")
OUTAGES = Metric("perfusion_outages_total", "counter", "workers", "workers lost to infrastructure")
HEARTBEAT_AGE = Metric(
    "perfusion_lease_heartbeat_age_seconds", "gauge", "seconds", "time since the driver last renewed the run's lease"
)
RUN = Metric(
    "perfusion_run_info",
    "gauge",
    "1",
    "always 1 while a driver works on a run; attempt: the number of its lease",
    ("run_id", "run_date", "attempt"),
)

METRICS = (
    *(RUN, TASKS, TASKS_PLANNED, TASKS_LEFT, LAST_UNIT, SLOTS),
    *(BATCH_TASKS, BATCH_PLACES, ACCELERATOR, SPENT, BUDGET),
    *(WRITTEN, STORAGE_RETRIES, UNIT_RETRIES, DEATHS, OUTAGES, HEARTBEAT_AGE),
)
# What `pipeline.engine.executor.Worker.counters` counts.
OF_WORKER = {"storage_retries": STORAGE_RETRIES}
