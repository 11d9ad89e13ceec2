"""What the pipelines of models for inpainting are given: photos, and masks of what is drawn in them.

These models read the photo around the mask, so nothing is blended: the pipelines of diffusers draw as they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perfusion_ops.scenes.scene import Scene


def filled(scenes: Sequence[Scene | None], width: int, height: int, steps: int) -> dict[str, Any]:
    """Arguments of a pipeline for inpainting, for B rows whose scenes have the same strength.

    A row without a scene has a mask that is white everywhere. Then the pipeline sees nothing of its photo.

    Args:
        scenes: of the rows.
        width: of the renders, in pixels.
        height: of the renders, in pixels.
        steps: denoising steps; at least one of them is taken at any strength.

    Returns:
        `image` (B, 3, H, W) in 0..1, `mask_image` (B, 1, H, W), 1 where is drawn, and `strength`.
    """
    blank = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.float32)
    pixels, stays = zip(*[(each.pixels, each.stays) if each else blank for each in scenes], strict=True)
    photos: Tensor = torch.from_numpy(np.stack(pixels)).movedim(-1, 1).float() / 255
    drawn: Tensor = torch.from_numpy(np.stack(stays))[:, None] < 1
    strength = scenes[0].strength if scenes[0] else 1.0
    if int(steps * strength) < 1:
        strength = min(1.0, 1.5 / steps)  # the pipelines round down
    return {"image": photos, "mask_image": drawn.float(), "strength": strength}
