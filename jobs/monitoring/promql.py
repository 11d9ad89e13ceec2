"""PromQL over the metrics of a run.

A gauge has one series per driver. While a resumed run has two, the old one not yet forgotten, the larger value is
taken. A counter stays as long as the node that served it, so a count is summed over all drivers of the run.
"""

from cluster import metric_table as table
from cluster.metric_table import Metric

_OK = "made|reused"


def selected(metric: Metric, where: str = "") -> str:
    """The series of a metric, with matchers such as `kind="render"`."""
    return metric.exposed + (f"{{{where}}}" if where else "")


def latest(metric: Metric, by: str = "run_id", where: str = "") -> str:
    """The value of a gauge."""
    return f"max by ({by}) ({selected(metric, where)})"


def total(metric: Metric, by: str = "run_id", where: str = "") -> str:
    """The value of a counter."""
    return f"sum by ({by}) ({selected(metric, where)})"


def rate(metric: Metric, by: str, window: str, where: str = "") -> str:
    """How much a counter rises per second."""
    return f"sum by ({by}) (rate({selected(metric, where)}[{window}]))"


def increase(metric: Metric, by: str, window: str, where: str = "") -> str:
    """How much a counter has risen within the window."""
    return f"sum by ({by}) (increase({selected(metric, where)}[{window}]))"


def left(by: str = "run_id", where: str = "") -> str:
    """Tasks that have not ended."""
    return f"sum by ({by}) ({latest(table.TASKS_LEFT, 'run_id, kind', where)})"


def not_ok_share(where: str = "") -> str:
    """The share of ended tasks that are not ok; 0 before the first one has failed."""
    good = ",".join(filter(None, (where, f'outcome=~"{_OK}"')))
    return f"1 - {total(table.TASKS, where=good)} / {total(table.TASKS, where=where)}"


def since_last_unit(where: str = "") -> str:
    """Seconds since a unit of work ended."""
    return f"time() - {latest(table.LAST_UNIT, where=where)}"


def budget_share(where: str = "") -> str:
    """The share of the budget that is spent; nothing without a budget."""
    return f"{latest(table.SPENT, where=where)} / {latest(table.BUDGET, where=where)}"
