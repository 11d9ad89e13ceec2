"""A loaded ControlNet, and what one row of a batch asks of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from perfusion_ops.controls.folder import ControlFolder


@dataclass(frozen=True, eq=False)
class ControlNet:
    """A loaded ControlNet of one base model.

    It has cross-attentions of its own. Their keys and values are columns of the conditioning behind the R columns of
    the base model, so that both take the same `encoder_hidden_states` (B, N, R + R_c).

    Attributes:
        folder: where it comes from.
        module: a ControlNetModel of diffusers whose projections are replaced, frozen.
        weight: its stacked key and value projections, (R_c, D), in the denoiser's type; R_c may be zero.
    """

    folder: ControlFolder
    module: Any
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Control:
    """What a ControlNet is shown for one picture.

    Attributes:
        net: the ControlNet.
        pixels: (H, W, 3) uint8, RGB, at the size of the render; see `prepared`.
        strength: factor of what it adds to the denoiser, above 0; `controlnet_conditioning_scale` of diffusers.
    """

    net: ControlNet
    pixels: NDArray[np.uint8]
    strength: float = 1.0


def prepared(picture: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """A picture as a ControlNet is shown it: stretched to the size of the render, as the pipelines of diffusers do.

    Args:
        picture: edges, a depth map or a pose, ready made, of any size.
        width: of the render, in pixels.
        height: of the render, in pixels.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS).convert("RGB"))
