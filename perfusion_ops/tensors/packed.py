"""Numbers in eight bits each: int8, and a float16 scale for each 128 of them."""

import torch
from torch import Tensor

from perfusion_ops.tensors.tensor_file import TensorFileError

_BLOCK = 128  # numbers that share a scale


def pack(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values (n,) as int8 (n,) and their scales (ceil(n / 128),) float16.

    Raises:
        OverflowError: a value is not finite, or too large for its scale.
    """
    blocks = _in_blocks(values.detach().cpu().float())
    scales = (blocks.abs().amax(1) / 127).half()
    # Rounding to float16 must not make a scale smaller than its block needs.
    short = scales.float() * 127 < blocks.abs().amax(1)
    scales = torch.where(short, torch.nextafter(scales, torch.full_like(scales, torch.inf)), scales)
    if not bool(torch.isfinite(scales).all()):
        raise OverflowError("a value is not finite, or too large for a scale in float16")
    whole = (blocks / scales.float().clamp(min=torch.finfo(torch.float16).tiny / 1024)[:, None]).round()
    return whole.clamp(-127, 127).to(torch.int8).flatten()[: len(values)].clone(), scales


def unpack(name: str, values: Tensor, scales: Tensor, width: int) -> Tensor:
    """What `pack` was given, (width,) float32, within half a step of eight bits.

    Args:
        name: of the tensor in its file, for the error's message.
        values: int8 (width,).
        scales: float16 (ceil(width / 128),).
        width: how many values there must be.

    Raises:
        TensorFileError: one of them has another type or shape, or a scale is not finite.
    """
    blocks = -(-width // _BLOCK)
    if values.dtype != torch.int8 or values.shape != (width,) or scales.shape != (blocks,):
        raise TensorFileError(
            f"is damaged: {name} is {values.dtype} of shape {tuple(values.shape)} with {tuple(scales.shape)} scales, "
            f"expected int8 of ({width},) with ({blocks},)"
        )
    if scales.dtype != torch.float16 or not bool(torch.isfinite(scales).all()):
        raise TensorFileError(
            f"is damaged: {name}_scale is {scales.dtype} or has values that are not finite, expected float16"
        )
    return (_in_blocks(values.float()) * scales.float()[:, None]).flatten()[:width].clone()


def _in_blocks(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, -len(values) % _BLOCK)).view(-1, _BLOCK)
