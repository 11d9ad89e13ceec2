"""The kinds of files that `perfusion cluster yaml` renders."""

from collections.abc import Callable

from jobs.deploy.clouds import ray_aws, ray_gcp
from jobs.deploy.host import cron, systemd
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
# They start the command where the spec lies, and hold its path instead of its content.
_BY_PATH: dict[str, Callable[[Deployment, RunSettings, str], str]] = {
    "dagster": dagster,
    "systemd": systemd,
    "cron": cron,
}
BY_PATH = frozenset(_BY_PATH)


def render(kind: str, deployment: Deployment, settings: RunSettings, spec: str) -> str:
    """The text of a file.

    Args:
        kind: a name of `_RENDERERS` or `_BY_PATH`.
        deployment: the options.
        settings: the spec.
        spec: path of the spec.

    Raises:
        SpecError: an option is missing, wrong or not possible for the kind, or the spec names local paths.
    """
    if kind in _BY_PATH:
        return _BY_PATH[kind](deployment, settings, spec)
    return _RENDERERS[kind](deployment, settings)
