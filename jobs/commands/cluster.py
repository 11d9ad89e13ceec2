"""`perfusion cluster`: files that run a spec on Kubernetes, on clouds or under a scheduler, and that monitor runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Set, Spec
from jobs.output import refuse, say

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


class Kind(StrEnum):
    """What a file is for."""

    RAYJOB = "rayjob"
    CRONJOB = "cronjob"
    RAYCRONJOB = "raycronjob"
    SKYPILOT = "skypilot"
    AIRFLOW = "airflow"
    DAGSTER = "dagster"
    SYSTEMD = "systemd"
    CRON = "cron"
    RAY_AWS = "ray-aws"
    RAY_GCP = "ray-gcp"


class Monitor(StrEnum):
    """What a file for Prometheus or Grafana is."""

    GRAFANA = "grafana"
    ALERTS = "alerts"
    PROMETHEUS = "prometheus"
    KUBERNETES = "kubernetes"


Wanted = Annotated[
    Kind,
    typer.Option("--kind", metavar="KIND", help=f"what the file is for: {', '.join(Kind)}", show_default=False),
]
File = Annotated[
    str | None, typer.Option("--options", metavar="FILE", help="file of deployment options", show_default=False)
]
Given = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="override one deployment option")
]

Monitored = Annotated[
    Monitor,
    typer.Option("--kind", metavar="KIND", help=f"what the file is: {', '.join(Monitor)}", show_default=False),
]
Chosen = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="override one option (docs/monitoring.md)"),
]


@app.callback()
def _cluster() -> None:
    """Render files that run a spec elsewhere."""


@app.command("yaml")
def yaml(spec: Spec, kind: Wanted, options: File = None, option: Given = None, set_: Set = None) -> None:
    """Print a file that runs a spec on Kubernetes, on a cloud or under a scheduler.

    Nothing is applied or started. Secrets are named, never printed.
    """
    from jobs.deploy.kinds import BY_PATH, render
    from jobs.deploy.reading import read_options
    from jobs.spec import load_spec

    if set_ and kind in BY_PATH:
        refuse(f"{kind} reads {spec} when it starts, so --set would have no effect: change the spec")
    settings = load_spec(spec, set_ or ())
    deployment = read_options(options, option or (), name=Path(spec).stem)
    say(render(kind, deployment, settings, spec).rstrip("\n"))


@app.command("monitoring")
def monitoring(kind: Monitored, option: Chosen = None) -> None:
    """Print a Grafana dashboard, alert rules, a Prometheus configuration, or objects for its operator."""
    from jobs.monitoring.kinds import RENDERERS
    from jobs.monitoring.options import read_monitoring

    say(RENDERERS[kind](read_monitoring(option or ())).rstrip("\n"))
