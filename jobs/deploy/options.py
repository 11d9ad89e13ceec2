"""What a person decides about a deployment: the options of `perfusion cluster yaml`.

They hold names of secrets, never values: a rendered file can be committed to a repository.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator, model_validator

from jobs.spec_file import SpecError
from perfusion_ops.config import Frozen

_CRON = re.compile(r"@(hourly|daily|weekly|monthly|yearly)|([0-9A-Za-z*/,?-]+ ){4}[0-9A-Za-z*/,?-]+")
_NUMBER = re.compile(r"[0-9]+")
_LARGEST = (59, 23, 31, 12, 7)  # minute, hour, day, month, weekday
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
Variable = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
Text = Annotated[str, Field(min_length=1, pattern=r"^\S+$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]+$")]
User = Annotated[str, Field(pattern=r"^[a-z_][-a-z0-9_]*$", max_length=31)]
Seconds = Annotated[int, Field(ge=1)]


class Toleration(Frozen):
    """A taint that a pod tolerates, in the terms of Kubernetes."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Pool(Frozen):
    """Nodes of one price: how many there are, and where Kubernetes may put them."""

    min: int | None = Field(default=None, ge=0, description="nodes that always run")
    max: int | None = Field(default=None, ge=0, description="nodes that run at most")
    node_selector: dict[str, str] = Field(default_factory=dict, description="only on nodes with these labels")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="also on nodes with these taints")


class Kueue(Frozen):
    """The queue that admits the job."""

    queue: Name = Field(description="a LocalQueue of the namespace")
    priority_class: Name | None = Field(default=None, description="a WorkloadPriorityClass")


class Sky(Frozen):
    """What only SkyPilot needs."""

    infra: Text | None = Field(
        default=None, description="such as aws/us-east-1; when absent the cheapest that has room"
    )
    secret_env: tuple[Variable, ...] = Field(
        default=(), description="environment variables that `sky jobs launch` passes on with --secret"
    )


class Aws(Frozen):
    """What only the cluster launcher on AWS needs."""

    region: Text = "us-west-2"
    zones: tuple[Text, ...] = Field(default=(), description="when absent, all of the region")
    head_type: Text = "m7i.xlarge"
    worker_type: Text | None = Field(default=None, description="when absent g6.2xlarge, without GPUs m7i.2xlarge")
    image_id: Text | None = Field(default=None, description="AMI with Docker; when absent, the default of Ray")
    instance_profile: Text | None = Field(default=None, description="IAM instance profile that may use the buckets")
    disk_gb: int = Field(default=200, ge=20)


class Gcp(Frozen):
    """What only the cluster launcher on Google Cloud needs."""

    project: Text | None = None
    region: Text = "us-central1"
    zone: Text = "us-central1-a"
    head_type: Text = "n2-standard-4"
    worker_type: Text | None = Field(default=None, description="when absent g2-standard-8, without GPUs n2-standard-8")
    accelerator_type: Text | None = Field(
        default=None, description="such as nvidia-tesla-t4, for a machine type that comes without GPUs"
    )
    source_image: Text = "projects/deeplearning-platform-release/global/images/family/common-cu124"
    disk_gb: int = Field(default=200, ge=20)


class Host(Frozen):
    """The machine whose own clock starts the runs, for systemd and cron. Paths are those of that machine."""

    program: AbsolutePath | None = Field(default=None, description="the perfusion command; when absent, this one")
    spec: AbsolutePath | None = Field(default=None, description="when absent, where the given spec lies")
    user: User | None = Field(default=None, description="who runs it under systemd; when absent, who renders the file")


class Deployment(Frozen):
    """Where and how a spec runs. A node is a pod or a virtual machine with one or more workers."""

    name: str = Field(
        default="perfusion",
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        max_length=35,  # KubeRay allows 47, and a job of a schedule gets a suffix of up to 12
        description="of every object; when absent, the name of the spec file",
    )
    namespace: Name = "default"
    image: Text | None = Field(default=None, description="container image that has this program")
    kubectl_image: Text = Field(default="alpine/k8s:1.34.1", description="has kubectl and a shell, for the CronJob")
    schedule: str | None = Field(default=None, description="cron expression with five fields")
    time_zone: str = Field(default="Etc/UTC", description="of the schedule")
    deadline_s: Seconds = Field(default=86_400, description="an attempt that runs longer is stopped")
    pre_running_deadline_s: Seconds = Field(default=3600, description="an attempt that does not run by then ends")
    starting_deadline_s: Seconds = Field(default=3600, description="a scheduled run that starts later is skipped")
    backoff_limit: int = Field(default=3, ge=0, description="further attempts, each on a new cluster")
    ttl_s: int = Field(default=600, ge=0, description="a finished cluster is kept so long, for its logs")
    service_account: Name | None = Field(default=None, description="of head and workers, for access to the buckets")
    secrets: tuple[Name, ...] = Field(
        default=(),
        description="names of Kubernetes secrets that become environment; systemd and cron read "
        "/etc/perfusion/SECRET.env",
    )
    kueue: Kueue | None = None
    on_demand: Pool = Pool()
    spot: Pool = Pool(max=0)
    gpus: int | None = Field(default=None, ge=0, description="GPUs of a node; when absent, enough for one worker")
    cpus: int | None = Field(
        default=None, ge=1, description="CPUs of a node; when absent 4, or more if workers need it"
    )
    memory: Quantity = Field(default="16Gi", description="of a node")
    head_cpus: int = Field(default=2, ge=1)
    head_memory: Quantity = "8Gi"
    failed_rows: Literal["fail", "accept"] = Field(
        default="accept",
        description="whether a run that finished with rows that are not ok (exit code 3) has failed; fail makes "
        "Kubernetes try again on a new cluster, which helps no row whose input is bad",
    )
    sky: Sky = Sky()
    aws: Aws = Aws()
    gcp: Gcp = Gcp()
    host: Host = Host()

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str | None) -> str | None:
        if value is None:
            return None
        fields = zip(value.split(" "), _LARGEST, strict=False)
        in_range = all(int(number) <= most for field, most in fields for number in _NUMBER.findall(field))
        if not _CRON.fullmatch(value) or not in_range:
            raise ValueError("write minute, hour, day, month and weekday, such as '0 2 * * *', or @daily")
        return value

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        zones = available_timezones()  # empty on a machine without a time zone database
        if zones and value not in zones:
            raise ValueError("use a name of the IANA database, such as Europe/Berlin")
        return ZoneInfo(value).key if zones else value

    @model_validator(mode="after")
    def _pools_in_order(self) -> "Deployment":
        for name, pool in (("on_demand", self.on_demand), ("spot", self.spot)):
            if pool.min is not None and pool.max is not None and pool.min > pool.max:
                raise ValueError(f"{name}.min is {pool.min} and {name}.max {pool.max}: make max the larger one")
        return self

    def require(self, kind: str, names: Sequence[str]) -> None:
        """Check that options that a kind of file needs are given.

        Raises:
            SpecError: one is absent.
        """
        examples = {"image": "registry.example/perfusion:1.0", "schedule": "'0 2 * * *'"}
        absent = [name for name in names if getattr(self, name) is None]
        if absent:
            raise SpecError(
                "\n".join(f"{kind} needs the option {name}: add `{name}: {examples[name]}`" for name in absent)
            )
