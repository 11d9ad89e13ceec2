"""Which machines run the work: section `cluster` of a spec."""

import math
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AllowInfNan, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from perfusion_ops.config import Frozen

_RANGE = re.compile(r"([1-9]\d*)\.\.([1-9]\d*)")
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):([1-9]\d{0,4})")
_Slots = Annotated[
    int | str | None,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^(all|[1-9]\d*\.\.[1-9]\d*)$"},
                {"type": "null"},
            ]
        }
    ),
]
_Gpus = Annotated[
    Annotated[float, AllowInfNan(True)] | str | None,
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"const": "auto"}, {"type": "null"}]}),
]
_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class SlotRange:
    """How many workers a run needs at least and uses at most; `most` is None for all that the cluster has room for."""

    least: int
    most: int | None


class ClusterSettings(Frozen):
    """The Ray cluster that runs the work, and what each worker gets of it. No field is part of a key."""

    model_config = ConfigDict(allow_inf_nan=False)

    address: str | None = Field(
        default=None,
        description="local: a private Ray on this machine; auto: the cluster that this machine is a node of; "
        "host:port: the head of that cluster; when absent RAY_ADDRESS, else local",
    )
    slots: _Slots = Field(
        default=None,
        description="workers: a number, 'all' (also of nodes that join later) or a range such as '4..32'; when absent "
        "all of a cluster; on this machine one per GPU, or one in all without a GPU",
    )
    join_s: float = Field(
        default=1800.0,
        gt=0,
        description="seconds for nodes with room for the least number of workers to join; then the run stops with exit "
        "code 4",
    )
    gpus: _Gpus = Field(
        default=None,
        description="GPUs of a worker on a cluster: a share such as 0.5 puts two workers on one GPU; 'auto' puts as "
        "many on each GPU but the first as fit, by the memory that the first unit takes; when absent 1 if any node has "
        "a GPU, else 0",
    )
    cpus: float | None = Field(
        default=None,
        gt=0,
        description="CPUs of a worker on a cluster, and the threads that it computes with; when absent 1 beside a GPU, "
        "else all cores of the smallest node",
    )
    accelerator: str | None = Field(
        default=None, min_length=1, description="only nodes with GPUs of this type, by Ray's name (A100, H100, L4)"
    )
    resources: dict[str, _Positive] = Field(
        default_factory=dict, description="custom resources of Ray that a worker takes"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="only nodes with these labels of Ray; a value may be '!in(a,b)' and the like"
    )
    ship_code: bool = Field(
        default=False,
        description="send this program's code to the nodes, which need only the packages that it depends on; when "
        "false, every node must have the same version installed",
    )
    shared_filesystem: bool = Field(
        default=False,
        description="every node mounts the same folders at the same paths, so that local paths may be used",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="port of this machine on which a private Ray serves metrics; when absent one that is free; a "
        "cluster has its own",
    )

    @field_validator("address")
    @classmethod
    def _known_address(cls, value: str | None) -> str | None:
        if value is None or value in ("local", "auto"):
            return value
        if value.startswith("ray://"):
            raise ValueError(
                "Ray Client (ray://) loses the run when the connection breaks: start the run on a node of the cluster "
                "and use 'auto' or the head's host:port"
            )
        if value.startswith(("http://", "https://")):
            raise ValueError("this is the address of Ray's Job API: use 'auto' or the head's host:port")
        found = _HOST_AND_PORT.fullmatch(value)
        if not found or int(found[2]) > 65535:
            raise ValueError("use 'local', 'auto' or host:port, such as 10.0.0.5:6379")
        return value

    @field_validator("gpus")
    @classmethod
    def _known_gpus(cls, value: float | str | None) -> float | str | None:
        if value is None or value == "auto":
            return value
        if isinstance(value, str) or not 0 <= value < math.inf:
            raise ValueError("use a number from 0, or 'auto'")
        if value > 1 and value != int(value):
            raise ValueError("a worker can have a share of one GPU or a whole number of them")
        return value

    @field_validator("slots")
    @classmethod
    def _known_slots(cls, value: int | str | None) -> int | str | None:
        slot_range(value)
        return value

    @model_validator(mode="after")
    def _auto_decides(self) -> "ClusterSettings":
        if self.gpus == "auto" and self.slots not in (None, "all"):
            raise ValueError(
                "gpus is 'auto', which decides the number of workers: leave slots out, or give gpus a number"
            )
        return self

    @property
    def first_gpus(self) -> float | None:
        """GPUs of the first worker; None to find out from the nodes."""
        return 1.0 if isinstance(self.gpus, str) else self.gpus

    @property
    def remote(self) -> bool:
        """Whether workers may run on other machines."""
        return self.address not in (None, "local")


def slot_range(value: int | str | None) -> SlotRange:
    """What `cluster.slots` means.

    Raises:
        ValueError: not a number from 1, 'all' or a range.
    """
    if value is None or value == "all":
        return SlotRange(1, None)
    if isinstance(value, int):
        if value < 1:
            raise ValueError("use 1 or more, or leave it out")
        return SlotRange(1, value)
    found = _RANGE.fullmatch(value)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError("use a number, 'all', or a range such as '4..32'")
    return SlotRange(int(found[1]), int(found[2]))
