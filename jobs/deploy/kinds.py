"""The kinds of files that `perfusion cluster yaml` renders."""

from collections.abc import Callable

from jobs.deploy.clouds import ray_aws, ray_gcp
from jobs.deploy.kubernetes import rayjob
from jobs.deploy.options import Deployment
from jobs.deploy.schedulers import airflow, dagster
from jobs.deploy.schedules import cronjob, raycronjob
from jobs.deploy.sky import skypilot
from pipeline.settings import RunSettings

_RENDERERS: dict[str, Callable[[Deployment, RunSettings], str]] = {
    "rayjob": rayjob,
    "cronjob": cronjob,
    "raycronjob": raycronjob,
    "skypilot": skypilot,
    "airflow": airflow,
    "ray-aws": ray_aws,
    "ray-gcp": ray_gcp,
}


def render(kind: str, deployment: Deployment, settings: RunSettings, spec: str) -> str:
    """The text of a file.

    Args:
        kind: a name of `_RENDERERS`, or `dagster`.
        deployment: the options.
        settings: the spec.
        spec: path of the spec.

    Raises:
        SpecError: an option is missing, wrong or not possible for the kind, or the spec names local paths.
    """
    if kind == "dagster":
        return dagster(deployment, spec)
    return _RENDERERS[kind](deployment, settings)
