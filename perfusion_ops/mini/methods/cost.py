"""How many numbers each method would learn at the width of Stable Diffusion 1.5, without its weights."""

from functools import cache
from typing import Any

import torch

from perfusion_ops.compare.methods import Contestant
from perfusion_ops.config import Frozen

_WIDTH = 768  # of word embeddings and of text encodings


@cache
def sd15_unet() -> Any:
    """A denoiser of the shape of Stable Diffusion 1.5 whose weights hold no memory."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=_WIDTH,
            attention_head_dim=8,
        )


def numbers_at_sd15(contestant: Contestant, settings: Frozen) -> int:
    """Learned numbers of a method with these settings."""
    return contestant.numbers(sd15_unet(), _WIDTH, settings)
