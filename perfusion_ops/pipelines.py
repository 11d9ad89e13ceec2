"""Unmodified diffusers pipelines and schedulers over the parts of a base model."""

import contextlib
from collections.abc import Iterator
from inspect import signature
from typing import Any

from perfusion_ops.base.schedules import SCHEDULERS
from perfusion_ops.base_model import Base
from perfusion_ops.config import Scheduler
from perfusion_ops.controls.net import ControlNet


def make_pipeline(
    base: Base, scheduler: Scheduler, task: str = "text", net: ControlNet | None = None, *, compiled: bool = False
) -> Any:
    """An unmodified diffusers pipeline over the base's parts; nothing is copied.

    Args:
        base: the base model.
        scheduler: a name of `perfusion_ops.config.Scheduler`.
        task: which of the family's pipelines.
        net: the ControlNet of the task `control`.
        compiled: draw with the compiled denoiser, if there is one.
    """
    import diffusers

    family = base.folder.family
    kind = getattr(diffusers, family.pipelines[task])
    unused = (*family.text_parts, "feature_extractor", "image_encoder", "motion_adapter")
    absent = {part: None for part in unused if part in signature(kind).parameters}
    options = {name: value for name, value in family.options.items() if name in signature(kind).parameters}
    options |= {name: value for name, value in base.folder.index.items() if value is not None}
    if "requires_safety_checker" in signature(kind).parameters:
        options["requires_safety_checker"] = False
    denoiser = base.compiled if compiled and base.compiled is not None else base.denoiser
    parts = {family.denoiser: denoiser, "vae": base.vae, **({"controlnet": net.module} if net else {})}
    schedule = {**family.schedule, **base.scheduler.config}
    pipe = kind(**absent, **parts, scheduler=make_scheduler(scheduler, schedule), **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_scheduler(name: Scheduler, config: Any) -> Any:
    """A diffusers scheduler on the noise schedule of `config`."""
    import diffusers

    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(config, **options)


@contextlib.contextmanager
def decoding(base: Base, *, one_by_one: bool, tiled: bool) -> Iterator[None]:
    """A VAE that decodes pictures one by one, for equal pixels in less memory, or in tiles; afterwards as before."""
    vae = base.vae
    before = vae.use_slicing, vae.use_tiling
    vae.use_slicing, vae.use_tiling = one_by_one, tiled
    try:
        yield
    finally:
        vae.use_slicing, vae.use_tiling = before
