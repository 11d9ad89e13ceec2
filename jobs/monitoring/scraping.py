"""What makes Prometheus scrape the nodes of Ray: its own configuration, or objects of its operator in Kubernetes."""

from typing import Any

from jobs.deploy.documents import yaml_text
from jobs.monitoring.alerts import group
from jobs.monitoring.options import Monitoring

_NAME = "perfusion"


def prometheus(options: Monitoring) -> str:
    """A configuration of Prometheus for Ray on machines."""
    job: dict[str, Any] = {"job_name": _NAME, "file_sd_configs": [{"files": [options.discovery]}]}
    if options.targets:
        job["static_configs"] = [{"targets": list(options.targets)}]
    return yaml_text(
        (
            [
                "Configuration of Prometheus. Run it on the head of the Ray cluster, which lists the nodes in the file",
                "below. A private Ray of a run has no such file: name its cluster.metrics_port as a target.",
            ],
            {
                "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
                "rule_files": [options.rules],
                "scrape_configs": [job],
            },
        )
    )


def kubernetes(options: Monitoring) -> str:
    """A PodMonitor and a PrometheusRule of the Prometheus operator."""
    about = {"name": _NAME, "namespace": options.namespace, "labels": options.labels}
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": about,
        "spec": {
            "selector": {"matchLabels": {"ray.io/is-ray-node": "yes"}},
            "podMetricsEndpoints": [{"port": "metrics", "interval": "15s"}],
        },
    }
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": about,
        "spec": {"groups": [group(options)]},
    }
    return yaml_text(
        (
            [
                "Needs the Prometheus operator, which finds both objects by their labels (option labels).",
                "KubeRay gives each pod of Ray the port `metrics` (8080).",
            ],
            monitor,
        ),
        ([], rule),
    )
