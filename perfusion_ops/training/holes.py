"""What a model for inpainting is given in training beside the noisy latents: a mask, and the photo around it.

The product of a photo is the hole, which the model fills; it sees the rest of the photo. A quarter of the rows has a
hole of the whole picture, so that the concept can also be drawn from text alone. The published models for inpainting
were trained with masks of the whole picture in the same share ("in 25 % mask everything": model cards of
stable-diffusion-inpainting and stable-diffusion-xl-1.0-inpainting-0.1).

Latents are the mean of the VAE's posterior, as those of all photos are here. The pipelines draw from the posterior.
"""

import torch
from torch import Tensor, nn

from perfusion_ops.base_model import Base, encode_pictures

WHOLE = 4  # one row of this many has a hole of the whole picture

_ENCODE_BATCH = 8


@torch.no_grad()
def hole_inputs(base: Base, pictures: Tensor, masks: Tensor, known: Tensor) -> Tensor:
    """The further input channels of a denoiser, for each photo and for a hole of the whole picture.

    A hole is every latent that shows a part of the product, and the latents next to them: the product's border is never
    sharp, and no pixel of it must be left to copy from.

    Args:
        base: a base model for inpainting.
        pictures: (n, 3, H, W) in -1..1.
        masks: (n, 1, H, W) in 0..1, how much each pixel shows the product.
        known: (n,) booleans, whether the photo came with a mask; without one, its hole is the whole picture.

    Returns:
        (n + 1, 1 + C, h, w) float32 on the CPU: the mask, 1 in the hole, and the latents of the photo that is grey
        there. The last one has the hole of the whole picture.
    """
    grey = torch.zeros_like(pictures[:1])
    blank = encode_pictures(base, grey).cpu()
    whole = torch.cat([torch.ones_like(blank[:, :1]), blank], 1)
    further = whole.repeat(len(pictures) + 1, 1, 1, 1)
    places = known.nonzero().flatten()
    for part in places.split(_ENCODE_BATCH) if len(places) else ():
        holes = latent_holes(masks[part], base.latent_factor)
        shown = pictures[part] * (nn.functional.interpolate(holes, size=pictures.shape[-2:]) < 0.5)
        further[part] = torch.cat([holes, encode_pictures(base, shown).cpu()], 1)
    return further


def latent_holes(masks: Tensor, factor: int) -> Tensor:
    """Holes (n, 1, h, w), 0 or 1, of masks (n, 1, H, W): latents that show the product, and those next to them.

    Args:
        masks: in 0..1; the product is where a mask has at least half of its largest value.
        factor: pixels per latent along one side.
    """
    shows = (masks >= masks.amax((1, 2, 3), keepdim=True) / 2).float()
    return nn.functional.max_pool2d(nn.functional.max_pool2d(shows, factor), 3, stride=1, padding=1)
