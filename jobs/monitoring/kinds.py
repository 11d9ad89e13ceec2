"""The kinds of files that `perfusion cluster monitoring` prints."""

from collections.abc import Callable

from jobs.monitoring.alerts import rules
from jobs.monitoring.dashboard import dashboard
from jobs.monitoring.options import Monitoring
from jobs.monitoring.scraping import kubernetes, prometheus

RENDERERS: dict[str, Callable[[Monitoring], str]] = {
    "grafana": dashboard,
    "alerts": rules,
    "prometheus": prometheus,
    "kubernetes": kubernetes,
}
