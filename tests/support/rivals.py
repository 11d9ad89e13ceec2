"""A toy base model in the form that the rivals take, and a product to train them on."""

from pathlib import Path

import torch

from perfusion_ops.base.folder import BaseFolder, BaseSettings
from perfusion_ops.config import TrainingConfig
from perfusion_ops.rivals.parts import Parts
from perfusion_ops.training.state import Example
from tests.support.tiny_base import TEMPLATES, small_parts


def small_rival_parts(seed: int = 0) -> Parts:
    """The parts of `tiny_base.small_base`, unmodified and frozen; pictures take two steps."""
    sampling = {"steps": 2, "guidance": 2.0}
    settings = BaseSettings(name="small", templates=TEMPLATES, resolution=16, sampling=sampling)
    found = small_parts(seed=seed)
    for name in ("text_encoder", "unet", "vae"):
        found[name].requires_grad_(False).eval()
    return Parts(BaseFolder(Path("small"), "small", "d" * 64, settings), **found)


def example(seed: int = 0, n: int = 3, config: TrainingConfig | None = None) -> Example:
    """A product of n random latents of the toy base, half of each masked."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.ones(n, 1, 8, 8)
    masks[..., :4] = 0.25
    return Example("mug", torch.randn(n, 4, 8, 8, generator=g), masks, config or TrainingConfig())
