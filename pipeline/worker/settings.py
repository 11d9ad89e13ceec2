"""What a worker is told; apart from the worker, because a driver knows it without loading a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from perfusion_ops.config import MetricConfig
from pipeline.inputs.pictures import InputLimits


@dataclass(frozen=True)
class WorkerSettings:
    """All a worker needs to know; travels to other machines by value.

    Attributes:
        root: where objects are written.
        storage_options: fsspec options, for one filesystem or grouped by scheme.
        base: where the base model comes from.
        base_digest: what it must digest to.
        metric: how the metric is estimated, and under which key it is kept.
        limits: what input pictures may be.
        device: a torch device, or `auto` for the slot's GPU if it has one.
        dtype: the denoiser's type, or `auto`: bfloat16 on a GPU, float32 elsewhere.
        micro_batch: rows that training puts through the denoiser at once; halved by itself when memory runs out.
        checkpoint_s: seconds between training checkpoints.
        edit_unconditional: whether concepts act on unconditional rows as well.
    """

    root: str
    storage_options: Mapping[str, object] | None
    base: str
    base_digest: str
    metric: MetricConfig
    metric_key: str
    limits: InputLimits
    device: str = "auto"
    dtype: str = "auto"
    micro_batch: int = 128
    checkpoint_s: float = 60.0
    edit_unconditional: bool = False
