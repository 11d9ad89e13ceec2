"""The last step in pixels: what stays is copied from the photo."""

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.scenes.scene import Scene


def pasted(drawn: NDArray[np.uint8], scene: Scene) -> NDArray[np.uint8]:
    """A drawn picture (H, W, 3) with the pixels of the photo that stay; where the weight is 1, they are identical.

    A VAE changes every pixel a little, also where the latents are those of the photo.
    """
    share = scene.stays[..., None]
    mixed = np.rint(drawn * (1 - share) + scene.pixels * share).astype(np.uint8)
    return np.where(share == 1, scene.pixels, mixed)
