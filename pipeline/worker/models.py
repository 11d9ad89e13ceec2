"""What a worker loads once: the base model, its metric, and the check of superclasses against its tokenizer."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch

from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.base.motion import MotionFolder
from perfusion_ops.base.tokenizer import TokenCounter
from perfusion_ops.base_model import Base, load_base, with_compiled
from perfusion_ops.config import Recipe
from perfusion_ops.metric import Metric
from pipeline.bases.find import find_base
from pipeline.bases.metrics import load_metric
from pipeline.bases.motion import find_motion
from pipeline.bases.superclasses import superclass_check
from pipeline.storage.objects import Storage
from pipeline.worker.settings import WorkerSettings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Models:
    """The loaded models.

    Attributes:
        base: the base model on the worker's device.
        drawing: the base model that renders: the same one, or a sibling that shares its text encoders, or with the
            modules of a motion adapter.
        motion: the motion adapter that draws videos.
        metric: the metric of both, on the same device.
        superclass_checks: by recipe; raise RowError for a superclass that the tokenizer cannot read, or a long one.
    """

    base: Base
    drawing: Base
    metric: Metric
    superclass_checks: Mapping[Recipe, Callable[[str], None]]
    motion: MotionFolder | None = None


def load_models(settings: WorkerSettings, storage: Storage, progress: Callable[[int, int], None]) -> Models:
    """Load the base model, check that it is the planned one, and load or estimate its metric.

    Args:
        settings: of the worker.
        storage: the root.
        progress: called with (captions encoded, captions in all) while the metric is estimated.

    Raises:
        BaseError, MetricError: the base model or its metric cannot be used.
        RuntimeError: this machine's copy of the base model or of the motion adapter is not the one that was planned
            with.
    """
    folder = _found(settings.base, settings.base_digest, settings)
    gpu = torch.cuda.is_available()
    device = settings.device if settings.device != "auto" else ("cuda" if gpu else "cpu")
    dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")
    base = load_base(folder, device=device, dtype=_DTYPES[dtype])
    counter = TokenCounter(base.tokenizer)
    checks = {recipe: superclass_check(counter, folder.settings.templates, recipe) for recipe in get_args(Recipe)}
    metric = load_metric(storage, base, settings.metric, settings.metric_key, progress=progress)
    motion = _motion(settings)
    drawing = _drawing(base, settings, device, _DTYPES[dtype], motion)
    return Models(base, with_compiled(drawing) if settings.compile else drawing, metric, checks, motion)


def _found(location: str, digest: str, settings: WorkerSettings) -> BaseFolder:
    folder = find_base(location, settings.storage_options)
    check_digest("base model", location, folder.digest, digest)
    return folder


def _motion(settings: WorkerSettings) -> MotionFolder | None:
    if settings.motion is None:
        return None
    motion = find_motion(settings.motion, settings.storage_options)
    check_digest("motion adapter", settings.motion, motion.digest, settings.motion_digest)
    return motion


def check_digest(what: str, location: str, found: str, planned: str) -> None:
    """Raise RuntimeError if a model on this machine is not the one that was planned with.

    Args:
        what: it is, for the message.
        location: where it is.
        found: digest of its files here.
        planned: the digest that they must have.
    """
    if found != planned:
        raise RuntimeError(
            f"the {what} {location!r} on {socket.gethostname()} digests to {found[:12]}..., "
            f"the run was planned with {planned[:12]}...: give every machine the same files"
        )


def _drawing(
    base: Base, settings: WorkerSettings, device: str, dtype: torch.dtype, motion: MotionFolder | None
) -> Base:
    """The base model that renders; its text encoders, which are equal, are loaded once."""
    if settings.render_base is None and motion is None:
        return base
    folder = base.folder
    if settings.render_base is not None:
        folder = _found(settings.render_base, settings.render_base_digest, settings)
    sibling = load_base(folder, device=device, dtype=dtype, motion=motion.path if motion else None)
    if sibling.stack.widths != base.stack.widths:
        raise BaseError(
            f"the denoiser of {(settings.render_base or settings.base)!r} has other layers than that of "
            f"{settings.base!r}: concepts act only where the attention layers have the same widths"
        )
    return replace(sibling, texts=base.texts)
