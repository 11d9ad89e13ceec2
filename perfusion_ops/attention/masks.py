"""Where each product of a picture is: masks from the attention that the prompt's own nouns get. Not in the paper.

With D_j the attention of concept j's noun, divided by its mean over the picture,

    M_j = softmax_j(6 log D_j) sigmoid(4 log max_j D_j)

The first factor divides the picture among the concepts. The second one leaves out what none of them is looked at for
more than on average.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_DIVIDING, _AGAINST_BACKGROUND = 6.0, 4.0  # see the module
_BLUR = 1 / 16  # standard deviation of the masks' blur, as a share of the picture's side
_LEAST = 1e-6


def density(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """D: where nouns are looked at, relative to the mean over the picture.

    Args:
        maps: per layer (B, J, h, w), the attention of each concept's noun.
        size: height and width of the result.

    Returns:
        (B, J, *size): the layers' geometric mean, blurred, with a mean of one.
    """
    relative = [each / _mean(each).clamp_min(_LEAST) for each in maps]
    resized = [nn.functional.interpolate(each, size=size, mode="bilinear") for each in relative]
    together = torch.stack([each.clamp_min(_LEAST).log() for each in resized]).mean(0).exp()
    blurred = _blurred(together)
    return blurred / _mean(blurred).clamp_min(_LEAST)


def masks(seen: Tensor, used: Tensor) -> Tensor:
    """M of D (B, J, h, w) and of the slots that hold a concept, (B, J); zero in the others."""
    logs = seen.clamp_min(_LEAST).log().masked_fill(~used[..., None, None], -math.inf)
    peak = logs.amax(1, keepdim=True)
    shares = (_DIVIDING * (logs - peak.clamp_min(math.log(_LEAST)))).softmax(1).nan_to_num(0.0)
    return shares * torch.sigmoid(_AGAINST_BACKGROUND * peak)


def _mean(maps: Tensor) -> Tensor:
    return maps.mean((2, 3), keepdim=True)


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian blur of (B, J, h, w); the border repeats."""
    for axis, side in ((2, maps.shape[2]), (3, maps.shape[3])):
        sigma = _BLUR * side
        reach = min(math.ceil(2 * sigma) + 1, side)
        at = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-(at**2) / (2 * sigma**2))
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded = nn.functional.pad(maps.flatten(0, 1)[:, None], padding, mode="replicate")
        smooth = nn.functional.conv2d(padded, (kernel / kernel.sum()).reshape(shape))
        maps = smooth[:, 0].unflatten(0, maps.shape[:2])
    return maps
