"""All cross-attention key and value projections of a denoiser as one stacked matrix.

Text encodings enter every `attn2` layer unchanged, so the rows of all `to_k` and `to_v` form one matrix W (R x D), keys
first. `install` replaces each projection by one that takes its columns out of conditioning that was multiplied by W
beforehand. The denoiser's own code is unmodified, and keys and values are computed once per prompt, not once per step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perfusion_ops.attention.maps import cross_attentions


class ColumnSlice(nn.Module):
    """Replaces one `to_k` or `to_v`: takes its own columns out of pre-projected conditioning.

    Args:
        start, stop: its columns.
        width: R, the number of columns of pre-projected conditioning.
        projection: the layer replaced. If it is given, text encodings of its own width are projected as before.
        bias: of the layer replaced. It is added here, behind the edit, which is linear.
    """

    bias: Tensor | None

    def __init__(
        self, start: int, stop: int, width: int, projection: nn.Linear | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.start = start
        self.stop = stop
        self.width = width
        self.projection = projection
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, conditioning: Tensor) -> Tensor:
        """(B, N, R) -> (B, N, stop - start), a view; with `projection` also (B, N, D) -> (B, N, stop - start)."""
        if self.projection is not None and conditioning.shape[-1] != self.width:
            return self.projection(conditioning)
        return self.take(conditioning)

    def take(self, conditioning: Tensor) -> Tensor:
        """Its columns of pre-projected conditioning (..., R), with its bias."""
        columns = conditioning[..., self.start : self.stop]
        return columns if self.bias is None else columns + self.bias


@dataclass(frozen=True)
class KeyValueStack:
    """The stacked projections of one denoiser.

    Attributes:
        weight: W, (R, D), rows of every to_k in module order, then of every to_v in the same order.
        widths: output width of each layer, so that R = 2 * sum(widths).
    """

    weight: Tensor
    widths: tuple[int, ...]

    @property
    def key_rows(self) -> int:
        """Number of rows that are keys: the first half."""
        return sum(self.widths)

    @property
    def keys(self) -> Tensor:
        """W_K, (R / 2, D), a view."""
        return self.weight[: self.key_rows]

    @property
    def values(self) -> Tensor:
        """W_V, (R / 2, D), a view."""
        return self.weight[self.key_rows :]


def install(denoiser: nn.Module, *, keep: bool = False, behind: int = 0) -> KeyValueStack:
    """Replace the key and value projections of every text cross-attention of a diffusers denoiser, in place.

    Args:
        denoiser: a denoiser whose cross-attentions to text `perfusion_ops.attention.maps.cross_attentions` finds.
        keep: keep the projections beside the stack, so that the denoiser takes text encodings (B, N, D) as well.
        behind: columns of another model that lie before this one's in the conditioning that both are given.

    Returns:
        The stack, detached, in the denoiser's type and on its device.

    Raises:
        ValueError: there is no cross-attention, or text widths differ between layers.
        TypeError: a projection is not a plain linear layer, for example because `install` was called before.
    """
    layers = cross_attentions(denoiser)
    if not layers:
        raise ValueError(f"{type(denoiser).__name__} has no cross-attention (attn2) to edit")
    pairs: list[tuple[nn.Linear, nn.Linear]] = []
    for name, module in layers:
        to_k, to_v = module.to_k, module.to_v
        if not (isinstance(to_k, nn.Linear) and isinstance(to_v, nn.Linear)):
            raise TypeError(
                f"{name} has a {type(to_k).__name__} where an nn.Linear is expected: the denoiser was changed before "
                "(by perfusion, a LoRA or a quantisation); load it again"
            )
        if to_k.weight.shape != to_v.weight.shape:
            raise ValueError(f"{name} has keys and values of different shapes")
        pairs.append((to_k, to_v))
    if len({to_k.in_features for to_k, _ in pairs}) != 1:
        raise ValueError("the cross-attention layers expect text encodings of different widths")
    widths = tuple(to_k.out_features for to_k, _ in pairs)
    weight = torch.cat([to_k.weight for to_k, _ in pairs] + [to_v.weight for _, to_v in pairs]).detach().clone()
    start, whole = behind, behind + len(weight)
    for name in ("to_k", "to_v"):
        for (_, module), width in zip(layers, widths, strict=True):
            layer: nn.Linear = getattr(module, name)
            bias = None if layer.bias is None else layer.bias.detach().clone()
            setattr(module, name, ColumnSlice(start, start + width, whole, layer if keep else None, bias))
            start += width
    return KeyValueStack(weight, widths)
