"""The alert rules: when each fires, and what to try first.

They speak of runs that are under way. How a run ended is the business of whatever started it: the exit code says it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from cluster import metric_table as table
from jobs.deploy.documents import yaml_text
from jobs.monitoring import promql
from jobs.monitoring.options import Monitoring

_RUN = "run {{ $labels.run_id }}"
_UNDER_WAY = f"and on (run_id) {promql.latest(table.RUN)}"


@dataclass(frozen=True)
class Alert:
    """One rule.

    Attributes:
        name: of the alert.
        expr: PromQL; fires for each series of its result.
        lasting: how long the result must exist before the alert fires, such as 5m.
        severity: critical if the run may lose its time, else warning.
        summary: one line; may name labels of the series.
        first: what to try first.
    """

    name: str
    expr: str
    lasting: str
    severity: Literal["critical", "warning"]
    summary: str
    first: str


def alerts(options: Monitoring) -> list[Alert]:
    """The rules, most urgent first."""
    return [
        Alert(
            "PerfusionNoUnitFinished",
            f"{promql.since_last_unit()} > {options.stall_min * 60:g} and on (run_id) {promql.left()} > 0",
            "1m",
            "critical",
            f"{_RUN}: no unit of work has ended for {{{{ $value | humanizeDuration }}}}, and tasks are left",
            "Look at the slots on the dashboard. If none runs, the cluster has no room: see `ray status`. If some run, "
            "the units are long or hang: read the driver's log; hanging workers are replaced after policy.hang_factor "
            "times the longest unit. If units are this long by design, write the rules with a larger stall_min.",
        ),
        Alert(
            "PerfusionHeartbeatOld",
            f"{promql.latest(table.HEARTBEAT_AGE)} > {options.heartbeat_s:g}",
            "0m",
            "critical",
            f"{_RUN}: the lease was last renewed {{{{ $value | humanizeDuration }}}} ago; after a minute another "
            "driver may take the run over",
            "Check that the driver's machine reaches the storage of the root, and that it is not out of memory or CPU.",
        ),
        Alert(
            "PerfusionTasksNotOk",
            f"{promql.not_ok_share()} > {options.failed_share:g} "
            f"and on (run_id) {promql.total(table.TASKS)} >= {options.failed_least} {_UNDER_WAY}",
            "5m",
            "warning",
            f"{_RUN}: {{{{ $value | humanizePercentage }}}} of the tasks that ended are not ok",
            "The dashboard shows the error codes. docs/manifests.md says what each code means and what to do.",
        ),
        Alert(
            "PerfusionSlotsQuarantined",
            promql.latest(table.SLOTS, where='state="quarantined"') + " > 0",
            "1m",
            "warning",
            f"{_RUN}: {{{{ $value }}}} slots were given up after repeated failures",
            "The driver's log names the slots and the last failure of each. Drain the machine that they were on.",
        ),
        Alert(
            "PerfusionBudgetNearlySpent",
            f"{promql.budget_share()} > {options.budget_share:g}",
            "0m",
            "warning",
            f"{_RUN}: {{{{ $value | humanizePercentage }}}} of the accelerator-hours of engine.budget_h are spent",
            "If the tasks left need more, the run will stop with exit code 4. The same command resumes it with the "
            "whole budget; to finish in one go, raise engine.budget_h before the next run.",
        ),
        Alert(
            "PerfusionStorageRetries",
            f"{promql.increase(table.STORAGE_RETRIES, 'SessionName', '15m')} > {options.storage_retries}",
            "0m",
            "warning",
            "Ray session {{ $labels.SessionName }}: {{ $value | humanize }} storage operations were retried in 15 "
            "minutes",
            "The object store throttles or fails: look at its request limits and its status page. Fewer workers "
            "(cluster.slots) make fewer requests.",
        ),
    ]


def group(options: Monitoring) -> dict[str, Any]:
    """The rules as one group of Prometheus."""
    rules = [
        {
            "alert": each.name,
            "expr": each.expr,
            "for": each.lasting,
            "labels": {"severity": each.severity},
            "annotations": {"summary": each.summary, "description": each.first},
        }
        for each in alerts(options)
    ]
    return {"name": "perfusion", "rules": rules}


def rules(options: Monitoring) -> str:
    """A file of rules for Prometheus."""
    comment = [
        "Alert rules of perfusion runs, for rule_files of Prometheus. Check: promtool check rules FILE",
        "A run whose driver is gone has no metrics: let its scheduler alert on the exit code.",
    ]
    return yaml_text((comment, {"groups": [group(options)]}))
