"""Activations that training keeps for each sample, at the published sizes, on the meta device: no GPU is needed.

    make bench NAME=memory

It counts what lies between the forward and the backward pass, in bfloat16, without the frozen weights, with attention
that saves its inputs and outputs, as fused kernels do. `once` keeps all activations. `twice` keeps the inputs of blocks
(`engine.recompute`); the backward pass then needs one block at a time as well.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measure import finish, show
from perfusion_ops.projection import install
from perfusion_ops.training.attention import checkpointing

_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
BASES: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": _SDXL,
}


def run(_options: argparse.Namespace) -> bool:
    """GiB for each sample; the bars are what docs/bases.md says of computing twice."""
    figures: dict[str, Any] = {}
    for name, config in BASES.items():
        once, twice = (_held(config, checkpointed=checkpointed) / 2**30 for checkpointed in (False, True))
        figures |= {f"once_gib_{name}": once, f"twice_gib_{name}": twice, f"saved_{name}": once / twice}
        show(f"{name}: {once:.2f} GiB a sample, {twice:.2f} GiB with activations computed twice")
    return finish("memory", figures, {"saved_sd15": 4.5, "saved_sdxl": 10.0})


class _Held:
    """The storages that saved tensors hold."""

    def __init__(self, weights: set[int]) -> None:
        self._weights, self._held, self._bytes = weights, Counter[int](), 0
        self.most = 0

    def pack(self, tensor: Tensor) -> "_Box":
        storage = tensor.untyped_storage()
        key = storage._cdata  # the only name of a storage without memory
        if key in self._weights:
            return _Box(tensor, lambda: None)
        if not self._held[key]:
            self._bytes += storage.nbytes()
            self.most = max(self.most, self._bytes)
        self._held[key] += 1
        return _Box(tensor, lambda: self._drop(key, storage.nbytes()))

    def _drop(self, key: int, size: int) -> None:
        self._held[key] -= 1
        if not self._held[key]:
            self._bytes -= size


class _Box:
    """A saved tensor; `dropped` is called when the graph lets go of it."""

    def __init__(self, tensor: Tensor, dropped: Callable[[], None]) -> None:
        self.tensor, self._dropped = tensor, dropped

    def __del__(self) -> None:
        self._dropped()


def _held(config: dict[str, Any], *, checkpointed: bool) -> int:
    """Most bytes that the backward pass of one sample holds."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**config)
        unet = unet.to(dtype=torch.bfloat16).requires_grad_(False).eval()
        stack = install(unet)
        side = config["sample_size"]
        sample = torch.randn(1, 4, side, side, dtype=torch.bfloat16)
        conditioning = torch.randn(1, 77, len(stack.weight), dtype=torch.bfloat16, requires_grad=True)
        added = {"text_embeds": torch.randn(1, 1280).to(sample), "time_ids": torch.randn(1, 6).to(sample)}
        weights = {each.untyped_storage()._cdata for each in unet.parameters()}
        held = _Held(weights)
        with checkpointing(unet, on=checkpointed), torch.autograd.graph.saved_tensors_hooks(held.pack, _unpack):
            step = torch.zeros((), dtype=torch.long)
            with mock.patch("torch.nn.functional.scaled_dot_product_attention", _fused):
                unet(sample, step, conditioning, added_cond_kwargs=added)
    return held.most


class _Fused(torch.autograd.Function):
    """The shapes of attention, and what a fused kernel saves: inputs, output and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, torch.empty(query.shape[:-1], dtype=torch.float32))
        return output


def _fused(query: Tensor, key: Tensor, value: Tensor, **_options: Any) -> Tensor:
    return _Fused.apply(query, key, value)


def _unpack(box: _Box) -> Tensor:
    return box.tensor
