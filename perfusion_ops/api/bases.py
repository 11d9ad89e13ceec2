"""Base models for programs and notebooks: loaded from a folder, or taken from a diffusers pipeline that exists."""

import copy
from pathlib import Path
from typing import Any

import torch

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.base_model import Base, base_from_parts
from perfusion_ops.base_model import load_base as load_folder
from perfusion_ops.mini import base_folder


def load_base(source: str | Path = "mini", *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Base:
    """Load a base model.

    Args:
        source: "mini", the model that is part of the package, or a local diffusers folder of SD 1.x, SD 2.x or SDXL.
        device: a torch device.
        dtype: of the denoiser and the VAE; bfloat16 or float16 on a GPU. The text encoder stays in float32.

    Raises:
        BaseError: the folder is not a base model that can be used.

    >>> import perfusion_ops
    >>> base = perfusion_ops.load_base("mini")
    >>> base.folder.name, base.resolution
    ('mini', 64)
    """
    return load_folder(describe(_folder(source)), device=device, dtype=dtype)


def attach(pipeline: Any, source: str | Path = "mini") -> Base:
    """Let an existing diffusers pipeline draw concepts: it then takes the result of `prompt_embeds`.

    The pipeline's denoiser is changed in place. Text prompts give the same pictures as before. Move the pipeline to its
    device first. A ControlNet or an IP-Adapter does not work with concepts: it has projections of its own.

    Args:
        pipeline: one of the folder's family, or one with the same parts, such as StableDiffusionImg2ImgPipeline.
        source: what it was loaded from, "mini" or a local folder. Concepts are bound to the digest of this folder.

    Returns:
        The base model for the other functions; it shares the pipeline's weights.

    Raises:
        BaseError: the folder is not a base model that can be used, or fuses LoRAs.
        TypeError: the denoiser was changed before.

    >>> import perfusion_ops, torch
    >>> from diffusers import StableDiffusionPipeline
    >>> from perfusion_ops.mini import base_folder
    >>> pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), dtype=torch.float32)
    >>> base = perfusion_ops.attach(pipeline, base_folder())
    >>> base.denoiser is pipeline.unet
    True
    """
    folder = describe(_folder(source))
    if folder.settings.loras:
        raise BaseError(f"perfusion.json of {folder.path} has loras, which a pipeline may not have: use load_base")
    family = folder.family
    parts = {text.tokenizer: getattr(pipeline, text.tokenizer) for text in family.texts}
    for text in family.texts:
        encoder = getattr(pipeline, text.encoder)
        # The pipeline keeps its own: it takes the type of its embeddings from it.
        usable = encoder.dtype == torch.float32 and not folder.settings.clip_skip
        parts[text.encoder] = encoder if usable else copy.deepcopy(encoder).float()
    parts[family.denoiser] = getattr(pipeline, family.denoiser)
    return base_from_parts(folder, vae=pipeline.vae, scheduler=pipeline.scheduler, keep_projections=True, **parts)


def _folder(source: str | Path) -> Path:
    return base_folder() if source == "mini" else Path(source).expanduser().resolve()
