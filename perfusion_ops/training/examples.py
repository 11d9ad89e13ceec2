"""From photos to what a concept is trained on: square pictures, their latents and their masks."""

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from perfusion_ops.base_model import Base, encode_pictures
from perfusion_ops.config import TrainingConfig
from perfusion_ops.errors import PerfusionError
from perfusion_ops.training.holes import hole_inputs
from perfusion_ops.training.state import Example

_ENCODE_BATCH = 8


class EmptyMaskError(PerfusionError, ValueError):
    """A mask is zero everywhere at the size of the latents."""


def make_example(
    base: Base, superclass: str, photos: Iterable[tuple[Image.Image, Image.Image | None]], config: TrainingConfig
) -> Example:
    """Square and encode the photos of one product.

    Args:
        base: the base model.
        superclass: one or more words, such as "teddy bear".
        photos: each an RGB picture of any size, and None or a mask of the same size in mode L, white where the product
            is. They are taken one at a time, so that only one is in memory at its full size.
        config: the concept's training settings; `fit` and `flip` change what is encoded.

    Raises:
        EmptyMaskError: see its docstring.
        ValueError: there is no photo.
    """
    side = base.resolution
    squared: list[tuple[Tensor, Tensor]] = []
    masked: list[bool] = []
    time_ids: list[tuple[int, ...]] = []
    for picture, mask in photos:
        time_ids.append((picture.height, picture.width, *crop_corner(picture, side, config.fit), side, side))
        masked.append(mask is not None)
        weight = mask or Image.new("L", picture.size, 255)
        squared.append(
            (
                _pixels(square(picture, side, config.fit), scale=127.5, offset=-1.0),
                _pixels(square(weight, side, config.fit), scale=255.0, offset=0.0),
            )
        )
    if not squared:
        raise ValueError("there is no photo: give at least one of the product")
    batch, weights = (torch.stack(parts) for parts in zip(*squared, strict=True))
    if config.flip:
        # Mirrored pictures follow the others. They are encoded because mirroring a latent is not the same.
        batch, weights = torch.cat([batch, batch.flip(3)]), torch.cat([weights, weights.flip(3)])
    latents = torch.cat([encode_pictures(base, part) for part in batch.split(_ENCODE_BATCH)]).cpu()
    times = 2 if config.flip else 1
    ids = torch.tensor(time_ids * times, dtype=torch.float32)
    further = None
    if base.folder.inpaints:
        further = hole_inputs(base, batch, weights, torch.tensor(masked * times))
    return Example(superclass, latents, loss_masks(weights, *latents.shape[-2:]), config, ids, further)


def square(picture: Image.Image, side: int, fit: str) -> Image.Image:
    """Resize to side x side: `crop` cuts the longer side about its middle, `pad` adds black, which a mask hides."""
    if fit == "crop":
        return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    squared = Image.new(picture.mode, (side, side))
    squared.paste(
        picture.resize((width, height), Image.Resampling.LANCZOS), ((side - width) // 2, (side - height) // 2)
    )
    return squared


def crop_corner(picture: Image.Image, side: int, fit: str) -> tuple[int, int]:
    """Top and left of the part that `square` cuts out, in pixels of the resized picture; 0, 0 where nothing is cut."""
    if fit != "crop":
        return 0, 0
    shortest = min(picture.size)
    top, left = ((length * side / shortest - side) / 2 for length in (picture.height, picture.width))
    return round(top), round(left)


def loss_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Soft masks (n, 1, H, W) reduced by area to (n, 1, height, width), each divided by its own maximum.

    Raises:
        EmptyMaskError: a mask is zero everywhere at that size.
    """
    small = nn.functional.interpolate(masks.float(), size=(height, width), mode="area")
    peaks = small.amax(dim=(1, 2, 3), keepdim=True)
    if bool((peaks <= 1e-3).any()):
        raise EmptyMaskError("a mask is empty at the size the model works at: the product in it is too small")
    return small / peaks


def _pixels(picture: Image.Image, *, scale: float, offset: float) -> Tensor:
    array = np.asarray(picture, dtype=np.float32) / scale + offset
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
