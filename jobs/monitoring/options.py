"""What may be chosen in the files: when alerts fire, and what Prometheus scrapes."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from jobs.spec_file import SpecError, parse_yaml
from perfusion_ops.config import Frozen
from pipeline.runs.lease import HEARTBEAT_S


class Monitoring(Frozen):
    """The options of all kinds of files."""

    stall_min: float = Field(default=15.0, gt=0, description="minutes without a finished unit of work")
    failed_share: float = Field(default=0.05, gt=0, lt=1, description="share of tasks that are not ok")
    failed_least: int = Field(default=20, ge=1, description="tasks that must have ended before the share counts")
    heartbeat_s: float = Field(
        default=3 * HEARTBEAT_S, gt=HEARTBEAT_S, description="seconds since the lease was renewed"
    )
    budget_share: float = Field(default=0.8, gt=0, lt=1, description="share of engine.budget_h that is spent")
    storage_retries: int = Field(default=50, ge=1, description="retries of the storage within 15 minutes")
    targets: tuple[str, ...] = Field(default=(), description="addresses (host:port) that Prometheus scrapes")
    discovery: str = Field(
        default="/tmp/ray/prom_metrics_service_discovery.json",  # noqa: S108 (where the head of a Ray cluster puts it)
        min_length=1,
        description="file in which the head of a Ray cluster lists its nodes",
    )
    rules: str = Field(default="perfusion-alerts.yaml", min_length=1, description="file of the alert rules")
    namespace: str = Field(default="default", min_length=1, description="namespace of the Ray clusters in Kubernetes")
    labels: dict[str, str] = Field(
        default_factory=dict, description="labels by which the Prometheus operator finds its objects"
    )


def read_monitoring(given: Sequence[str]) -> Monitoring:
    """The options from texts `NAME=VALUE`, whose values are YAML.

    Raises:
        SpecError: a text or an option is wrong. Each line of the message is one problem.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise SpecError(f"--option {text!r} is not NAME=VALUE: write it as in --option stall_min=30")
        try:
            values[name] = parse_yaml(value)
        except ValueError as error:
            raise SpecError(f"--option {name}: the value is not valid YAML: {error}; put it in quotes") from error
    try:
        return Monitoring.model_validate(values)
    except ValidationError as error:
        raise SpecError("\n".join(map(_message, error.errors()))) from error


def _message(problem: Any) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"option {name} does not exist; use {', '.join(sorted(Monitoring.model_fields))}"
    text = problem["msg"].removeprefix("Value error, ")
    return f"option {name} is {problem['input']!r}: {text[0].lower()}{text[1:]}"
