"""The attention of a denoiser while gradients flow through it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def attention_for_training(unet: Any, device: torch.device) -> Iterator[None]:
    """Use matrix products on a CPU, where the backward pass of fused attention takes twice as long.

    Args:
        unet: a UNet2DConditionModel; afterwards it has the processors that it had before.
        device: where it computes.
    """
    if device.type != "cpu":
        yield
        return
    from diffusers.models.attention_processor import AttnProcessor

    processors = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(processors)
