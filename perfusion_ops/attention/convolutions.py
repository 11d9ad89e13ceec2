"""A low-rank edit of convolutions where a product is. Not in the paper.

Cross-attention decides what a product is like, and the convolutions of the up path draw its surface. For an edited
convolution W with input h, concept j with its mask M_j and its R pairs of a kernel and a vector gives

    out(x) = (W * h)(x) + sum_j M_j(x) sum_r u_jr (v_jr * h)(x)

v_jr is a kernel of one output channel, and u_jr a vector of the output's channels: a LoRA of a convolution (LoCon),
restricted to the product. Each row of a batch has its own.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# The second convolution of a block alone: the first one also reads the skip connection, has three times the numbers,
# and gains nothing on the embedded base.
_NAME = re.compile(r"up_blocks\.(\d+)\.resnets\.\d+\.conv2")
_LEVELS = 2  # of the up path, the finest ones: coarser levels have most of the numbers and draw no surface
_SIDE = 3


@dataclass(frozen=True)
class Layer:
    """One convolution that is edited, and which columns of the stacked kernels and vectors are its own."""

    module: Any
    reads: slice
    writes: slice


@dataclass(frozen=True)
class ConvolutionEdit:
    """The edit of one concept, of rank R, for the layers of `edited_layers` side by side.

    Attributes:
        reads: the kernels v, (R, sum of 9 C) float32, each (C, 3, 3).
        writes: the vectors u, (R, sum of O) float32.
    """

    reads: Tensor
    writes: Tensor


@dataclass(frozen=True)
class ConvolutionBatch:
    """The edits of the up to J concepts of B rows; zero where there is none.

    Attributes:
        reads: (B, J, R, sum of 9 C).
        writes: (B, J, R, sum of O).
    """

    reads: Tensor
    writes: Tensor

    def rows(self, index: Tensor) -> "ConvolutionBatch":
        """The rows chosen by an index (P,)."""
        return ConvolutionBatch(self.reads[index], self.writes[index])


def edited_layers(denoiser: Any) -> tuple[Layer, ...]:
    """The convolutions that are edited, in the denoiser's order: those of the finest levels of a UNet's up path.

    They keep the side of their input. A denoiser without an up path has none.
    """
    named = [(_NAME.fullmatch(name), module) for name, module in denoiser.named_modules()]
    found = [(int(match[1]), module) for match, module in named if match]
    coarse = max((level for level, _ in found), default=0) - _LEVELS
    layers, read, write = [], 0, 0
    for level, module in found:
        if level > coarse:
            reads, writes = _SIDE**2 * module.in_channels, module.out_channels
            layers.append(Layer(module, slice(read, read + reads), slice(write, write + writes)))
            read, write = read + reads, write + writes
    return tuple(layers)


def widths(layers: Sequence[Layer]) -> tuple[int, int]:
    """The numbers of one rank of all layers: of its kernels, and of its vectors."""
    return (layers[-1].reads.stop, layers[-1].writes.stop) if layers else (0, 0)


def fresh(layers: Sequence[Layer], rank: int, seed: int) -> ConvolutionEdit:
    """An edit that changes nothing yet: random kernels with outputs of the size of their inputs, vectors of zeros."""
    generator = torch.Generator().manual_seed(seed)
    read, write = widths(layers)
    reads = torch.randn(rank, read, generator=generator)
    for layer in layers:
        reads[:, layer.reads] /= (layer.reads.stop - layer.reads.start) ** 0.5
    return ConvolutionEdit(reads, torch.zeros(rank, write))


def added(hidden: Tensor, reads: Tensor, writes: Tensor, masks: Tensor) -> Tensor:
    """The second term of the module's equation for one layer.

    Args:
        hidden: h, (B, C, h, w).
        reads: v, (B, J, R, 9 C).
        writes: u, (B, J, R, O).
        masks: M, (B, J, h, w), or of one position each for the same weight everywhere.

    Returns:
        (B, O, h, w), in the type of `hidden`.
    """
    rows, channels, height, width = hidden.shape
    slots, rank = reads.shape[1:3]
    kernels = reads.to(hidden.dtype).reshape(rows * slots * rank, channels, _SIDE, _SIDE)
    flat = hidden.reshape(1, rows * channels, height, width)
    seen = nn.functional.conv2d(flat, kernels, padding=_SIDE // 2, groups=rows)
    seen = seen.view(rows, slots, rank, height, width) * masks.to(hidden.dtype)[:, :, None]
    return torch.einsum("bjrhw,bjro->bohw", seen, writes.to(hidden.dtype))


@contextlib.contextmanager
def edited(
    layers: Sequence[Layer], batch: ConvolutionBatch | None, masks: Callable[[int, int], Tensor | None]
) -> Iterator[None]:
    """Let the edits of B rows act while a denoiser computes a batch whose last B rows are theirs.

    Args:
        layers: of `edited_layers`.
        batch: the edits; nothing happens without.
        masks: M for a height and a width, as `added` takes it; None if no edit acts in this call.
    """
    if batch is None:
        yield
        return

    def act(layer: Layer) -> Callable[..., Tensor | None]:
        reads, writes = batch.reads[..., layer.reads], batch.writes[..., layer.writes]

        def hook(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            own = arguments[0][-len(reads) :]
            cover = masks(int(own.shape[2]), int(own.shape[3]))
            if cover is None:
                return None
            moved = output[-len(reads) :] + added(own, reads, writes, cover)
            others = output[: -len(reads)]
            return torch.cat([others, moved]) if len(others) else moved

        return hook

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.module.register_forward_hook(act(layer)).remove)
        yield
