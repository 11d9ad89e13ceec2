"""Where a denoiser looks: the cross-attention that its pixels give to groups of a prompt's positions."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


def cross_attentions(unet: Any) -> list[tuple[str, Any]]:
    """The cross-attentions of a denoiser to its text with their names, in its order.

    Some blocks, such as the motion modules of AnimateDiff, have an `attn2` that attends to the pixels themselves.
    """
    return [
        (name, module)
        for name, module in unet.named_modules()
        if name.rsplit(".", 1)[-1] == "attn2" and getattr(module, "is_cross_attention", True)
    ]


def grid(places: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer with this number of positions, for latents of a size (height, width)."""
    height, width = size
    reduced = max(1, round(math.sqrt(height * width / places)))
    return -(-height // reduced), -(-width // reduced)


def attention_to(query: Tensor, key: Tensor, nouns: Tensor, heads: int, scale: float) -> Tensor:
    """The attention that queries give to groups of positions, mean over heads.

    Args:
        query: (., Q, C); its last B rows are taken.
        key: (., N, C), the same.
        nouns: (B, J, N): the weight of each position in each of J groups.
        heads: of the attention.
        scale: of the products.

    Returns:
        (B, J, Q), float32 or float64.
    """
    rows = len(nouns)
    exact = torch.promote_types(query.dtype, torch.float32)
    q, k = (each[-rows:].to(exact).unflatten(2, (heads, -1)).transpose(1, 2) for each in (query, key))
    weights = (q @ k.mT * scale).softmax(-1).mean(1)
    return nouns.to(exact) @ weights.mT


@contextmanager
def watching(unet: Any, groups: Tensor) -> Iterator[dict[str, Tensor]]:
    """Collect the attention to groups of positions, (B, G, Q) by the layer's name, while the denoiser runs once.

    Args:
        unet: the denoiser.
        groups: (B, G, N): the weight of each position in each group.
    """
    maps: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, layer in cross_attentions(unet):
            queries: list[Tensor] = []

            def keep(_module: Any, _inputs: Any, query: Tensor, queries: list[Tensor] = queries) -> None:
                queries[:] = [query]

            def look(
                _module: Any,
                _inputs: Any,
                key: Tensor,
                queries: list[Tensor] = queries,
                name: str = name,
                layer: Any = layer,
            ) -> None:
                maps[name] = attention_to(queries[0], key, groups, layer.heads, layer.scale)

            for handle in (layer.to_q.register_forward_hook(keep), layer.to_k.register_forward_hook(look)):
                hooks.callback(handle.remove)
        yield maps
