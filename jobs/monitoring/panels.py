"""What the dashboard shows: panels with their queries."""

from dataclasses import dataclass
from typing import Literal

from cluster import metric_table as table
from jobs.monitoring import promql
from jobs.monitoring.options import Monitoring

RUN = 'run_id=~"$run_id"'
# A worker's process does not know its run: its retries have an empty run_id.
_RUN_OR_WORKER = 'run_id=~"$run_id|"'
_WINDOW = "$__rate_interval"


@dataclass(frozen=True)
class Query:
    """PromQL, and the name of each of its series."""

    expr: str
    legend: str = "{{run_id}}"


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: above it.
        help: what it shows.
        queries: of its series.
        kind: numbers of this moment (stat) or lines over time (timeseries).
        unit: by Grafana's name.
        limit: from where a number is red.
        stacked: whether the areas lie on top of each other.
    """

    title: str
    help: str
    queries: tuple[Query, ...]
    kind: Literal["stat", "timeseries"] = "timeseries"
    unit: str = "short"
    limit: float | None = None
    stacked: bool = False


def panels(options: Monitoring) -> list[Panel]:
    """The panels in reading order: the state first, then work, machines, storage."""
    return [*_state(options), *_work(), *_machines()]


def _state(options: Monitoring) -> list[Panel]:
    left, planned = promql.left(where=RUN), promql.latest(table.TASKS_PLANNED, "run_id, kind", RUN)
    return [
        Panel(
            "Done",
            "Share of the planned tasks of this driver that have ended.",
            (Query(f"1 - {left} / sum by (run_id) ({planned})"),),
            "stat",
            "percentunit",
        ),
        Panel(
            "Tasks left",
            "Planned concepts and renders that have not ended.",
            (Query(promql.left("kind", RUN), "{{kind}}"),),
            "stat",
        ),
        Panel(
            "Not ok",
            "Share of the ended tasks that are invalid or failed.",
            (Query(promql.not_ok_share(RUN)),),
            "stat",
            "percentunit",
            options.failed_share,
        ),
        Panel(
            "Since the last unit",
            "Time since a unit of work ended.",
            (Query(promql.since_last_unit(RUN)),),
            "stat",
            "s",
            options.stall_min * 60,
        ),
        Panel(
            "Heartbeat age",
            "Time since the lease was renewed.",
            (Query(promql.latest(table.HEARTBEAT_AGE, where=RUN)),),
            "stat",
            "s",
            options.heartbeat_s,
        ),
        Panel(
            "Budget spent",
            "Share of engine.budget_h that this driver has spent; empty without a budget.",
            (Query(promql.budget_share(RUN)),),
            "stat",
            "percentunit",
            options.budget_share,
        ),
    ]


def _work() -> list[Panel]:
    made = f'{RUN},outcome="made"'
    fill = " / ".join(promql.rate(each, "kind", _WINDOW, RUN) for each in (table.BATCH_TASKS, table.BATCH_PLACES))
    return [
        Panel(
            "Made per minute",
            "Concepts trained and renders made.",
            (Query(f"60 * {promql.rate(table.TASKS, 'kind', _WINDOW, made)}", "{{kind}}"),),
        ),
        Panel(
            "Tasks left over time",
            "Planned tasks that have not ended.",
            (Query(promql.left("kind", RUN), "{{kind}}"),),
            stacked=True,
        ),
        Panel(
            "Ended otherwise",
            "Tasks whose object existed already, was invalid or failed, by error code, since the driver began.",
            (
                Query(
                    promql.total(table.TASKS, "kind, outcome, code", f'{RUN},outcome!="made"'),
                    "{{kind}} {{outcome}} {{code}}",
                ),
            ),
        ),
        Panel(
            "Batch fill",
            "Tasks in a batch, as a share of engine.group_size or engine.render_batch.",
            (Query(fill, "{{kind}}"),),
            unit="percentunit",
        ),
        Panel(
            "Written",
            "Weights and renders.",
            (Query(promql.rate(table.WRITTEN, "kind", _WINDOW, RUN), "{{kind}}"),),
            unit="Bps",
        ),
        Panel(
            "Storage retries per minute",
            "Transient storage errors that were retried. Those of workers are of all runs.",
            (Query(f"60 * {promql.rate(table.STORAGE_RETRIES, 'process', _WINDOW, _RUN_OR_WORKER)}", "{{process}}"),),
        ),
    ]


def _machines() -> list[Panel]:
    lost = (
        (table.DEATHS, "workers died"),
        (table.OUTAGES, "workers lost to infrastructure"),
        (table.UNIT_RETRIES, "units run again"),
    )
    return [
        Panel(
            "Slots",
            "Worker slots by state.",
            (Query(f"sum by (state) ({promql.latest(table.SLOTS, 'run_id, state', RUN)})", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Busy accelerators",
            "Accelerator seconds per second of units that ended. A long unit shows when it ends.",
            (Query(promql.rate(table.ACCELERATOR, "use", _WINDOW, RUN), "{{use}}"),),
            stacked=True,
        ),
        Panel(
            "Accelerator-hours",
            "What this driver has spent, and its budget.",
            (
                Query(f"{promql.latest(table.SPENT, where=RUN)} / 3600", "spent {{run_id}}"),
                Query(f"{promql.latest(table.BUDGET, where=RUN)} / 3600", "budget {{run_id}}"),
            ),
            unit="h",
        ),
        Panel(
            "Deaths, outages, retries",
            "Since the driver began.",
            tuple(Query(promql.total(metric, where=RUN), f"{name} {{{{run_id}}}}") for metric, name in lost),
        ),
    ]
