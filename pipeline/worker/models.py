"""What a worker loads once: the base model, its metric, and the check of superclasses against its tokenizer."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import torch

from perfusion_ops.base.tokenizer import TokenCounter
from perfusion_ops.base_model import Base, load_base
from perfusion_ops.config import Recipe
from perfusion_ops.metric import Metric
from pipeline.bases.find import find_base
from pipeline.bases.metrics import load_metric
from pipeline.bases.superclasses import superclass_check
from pipeline.storage.objects import Storage
from pipeline.worker.settings import WorkerSettings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Models:
    """The loaded models.

    Attributes:
        base: the base model on the worker's device.
        metric: its metric, on the same device.
        superclass_checks: by recipe; raise RowError for a superclass that the tokenizer cannot read, or a long one.
    """

    base: Base
    metric: Metric
    superclass_checks: Mapping[Recipe, Callable[[str], None]]


def load_models(settings: WorkerSettings, storage: Storage, progress: Callable[[int, int], None]) -> Models:
    """Load the base model, check that it is the planned one, and load or estimate its metric.

    Args:
        settings: of the worker.
        storage: the root.
        progress: called with (captions encoded, captions in all) while the metric is estimated.

    Raises:
        BaseError, MetricError: the base model or its metric cannot be used.
        RuntimeError: this machine's copy of the base model is not the one that was planned with.
    """
    folder = find_base(settings.base, settings.storage_options)
    if folder.digest != settings.base_digest:
        raise RuntimeError(
            f"the base model {settings.base!r} on {socket.gethostname()} digests to {folder.digest[:12]}..., "
            f"the run was planned with {settings.base_digest[:12]}...: give every machine the same files"
        )
    gpu = torch.cuda.is_available()
    device = settings.device if settings.device != "auto" else ("cuda" if gpu else "cpu")
    dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")
    base = load_base(folder, device=device, dtype=_DTYPES[dtype])
    counter = TokenCounter(base.tokenizer)
    checks = {recipe: superclass_check(counter, folder.settings.templates, recipe) for recipe in get_args(Recipe)}
    metric = load_metric(storage, base, settings.metric, settings.metric_key, progress=progress)
    return Models(base, metric, checks)
