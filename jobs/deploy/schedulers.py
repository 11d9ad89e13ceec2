"""A spec as a nightly job of Airflow or Dagster: one Python file each, made from a template."""

import json
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

from jobs.deploy.options import Deployment
from jobs.deploy.sizing import ensure_remote, node_of, travelling_spec
from jobs.output import FAILED_ROWS
from pipeline.settings import RunSettings

_MARGIN_S = 20  # between the end of the time that a run has to stop and the kubelet's kill of the pod


def airflow(deployment: Deployment, settings: RunSettings) -> str:
    """A DAG of Airflow 3 that runs `perfusion rerender` in a pod, nightly and never twice at a time.

    The pod is one machine with all GPUs of a node; section `cluster` of the spec does not apply to it.

    Raises:
        SpecError: an option is missing or too small, or the spec names local paths.
    """
    deployment.require("airflow", ["image", "schedule"])
    ensure_remote(settings)
    node = node_of(deployment, settings)
    pool = deployment.spot if deployment.spot.max else deployment.on_demand
    size = {"cpu": str(node.cpus), "memory": deployment.memory}
    if node.gpus:
        size["nvidia.com/gpu"] = str(node.gpus)
    tolerations = [each.model_dump(exclude_none=True) for each in pool.tolerations]
    return _filled(
        "airflow.txt",
        name=deployment.name,
        namespace=deployment.namespace,
        image=deployment.image,
        schedule=deployment.schedule,
        time_zone=deployment.time_zone,
        spec=_Raw(_block(travelling_spec(settings, None))),
        size=size,
        secrets=list(deployment.secrets),
        service_account=deployment.service_account,
        node_selector=pool.node_selector,
        tolerations=tolerations,
        startup_s=deployment.pre_running_deadline_s,
        deadline_s=deployment.deadline_s,
        stop_s=settings.policy.stop_s + _MARGIN_S,
        skip_on_exit_code=FAILED_ROWS if deployment.failed_rows == "accept" else None,
    )


def dagster(deployment: Deployment, settings: RunSettings, spec: str) -> str:  # noqa: ARG001 (as of all by path)
    """An asset of Dagster that runs `perfusion rerender`, with a schedule if the options have one.

    Args:
        deployment: the options.
        settings: the spec.
        spec: path of the spec, as the machine of the code location finds it.
    """
    return _filled(
        "dagster.txt",
        asset=f"renders_{deployment.name.replace('-', '_')}",
        spec=spec,
        schedule=deployment.schedule,
        time_zone=deployment.time_zone,
        retries=deployment.backoff_limit,
    )


class _Raw(str):
    """Text that is Python already."""

    __slots__ = ()


def _filled(template: str, **values: Any) -> str:
    text = files("jobs.deploy").joinpath("templates", template).read_text(encoding="utf-8")
    return Template(text).substitute({name: _python(value) for name, value in values.items()})


def _python(value: Any) -> str:
    """A value as Python source with double quotes."""
    match value:
        case _Raw():
            return value
        case str():
            return json.dumps(value, ensure_ascii=False)
        case Mapping():
            return "{" + ", ".join(f"{_python(key)}: {_python(inner)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_python, value)) + "]"
        case _:
            return repr(value)


def _block(text: str) -> str:
    """Text of several lines as a Python literal of several lines."""
    escaped = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return f'"""\\\n{escaped}"""'
