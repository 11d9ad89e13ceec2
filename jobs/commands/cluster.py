"""`perfusion cluster yaml`: files that run a spec on Kubernetes, on clouds or under a scheduler."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Set, Spec
from jobs.output import say

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


class Kind(StrEnum):
    """What a file is for."""

    RAYJOB = "rayjob"
    CRONJOB = "cronjob"
    RAYCRONJOB = "raycronjob"
    SKYPILOT = "skypilot"
    AIRFLOW = "airflow"
    DAGSTER = "dagster"
    RAY_AWS = "ray-aws"
    RAY_GCP = "ray-gcp"


Wanted = Annotated[Kind, typer.Option("--kind", help="what the file is for", show_default=False)]
File = Annotated[
    str | None, typer.Option("--options", metavar="FILE", help="file of deployment options", show_default=False)
]
Given = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="override one deployment option")
]


@app.callback()
def _cluster() -> None:
    """Render files that run a spec elsewhere."""


@app.command("yaml")
def yaml(spec: Spec, kind: Wanted, options: File = None, option: Given = None, set_: Set = None) -> None:
    """Print a file that runs a spec on Kubernetes, on a cloud or under a scheduler.

    Nothing is applied or started. Secrets are named, never printed.
    """
    from jobs.deploy.kinds import render
    from jobs.deploy.reading import read_options
    from jobs.spec import load_spec

    settings = load_spec(spec, set_ or ())
    deployment = read_options(options, option or (), name=Path(spec).stem)
    say(render(kind, deployment, settings, spec).rstrip("\n"))
