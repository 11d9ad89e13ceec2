"""A concept task's pictures, from storage to the latents and masks that training takes."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from perfusion_ops.base_model import Base, encode_pictures
from perfusion_ops.training import Example, loss_masks
from pipeline.contract.errors import Code, RowError
from pipeline.contract.units import ConceptTask, InputImage
from pipeline.inputs.pictures import decode, decode_mask
from pipeline.inputs.store import InputStore

_ENCODE_BATCH = 8


def load_example(base: Base, task: ConceptTask, inputs: InputStore) -> Example:
    """Fetch, check, decode, square and encode one concept's pictures.

    Raises:
        RowError: a picture is gone, changed since the plan, or unusable; a mask is empty at the model's size.
    """
    side, config = base.resolution, task.training
    pictures, masks = [], []
    for index, image in enumerate(task.images):
        picture = decode(_read(inputs, image, "images"), inputs.limits)
        mask = Image.new("L", picture.size, 255)
        if task.masks:
            drawn = _read(inputs, task.masks[index], "masks")
            mask = decode_mask(drawn, inputs.limits).resize(picture.size)
        pictures.append(_pixels(square(picture, side, config.fit), scale=127.5, offset=-1.0))
        masks.append(_pixels(square(mask, side, config.fit), scale=255.0, offset=0.0))
    batch, weights = torch.stack(pictures), torch.stack(masks)
    if config.flip:
        batch, weights = torch.cat([batch, batch.flip(3)]), torch.cat([weights, weights.flip(3)])
    latents = torch.cat([encode_pictures(base, part) for part in batch.split(_ENCODE_BATCH)]).cpu()
    try:
        small = loss_masks(weights, *latents.shape[-2:])
    except ValueError as error:
        message = f"concept {task.concept_id!r}: {error}, or it is cropped away, which train.fit = 'pad' prevents"
        raise RowError(Code.MASK_EMPTY, message, column="masks") from error
    return Example(task.superclass, latents, small, config)


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


def _pixels(picture: Image.Image, *, scale: float, offset: float) -> Tensor:
    array = np.asarray(picture, dtype=np.float32) / scale + offset
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _read(inputs: InputStore, image: InputImage, column: str) -> bytes:
    remedy = "it was replaced during the run; run again to train on the new picture"
    return inputs.read(image.uri, sha256=image.sha256, remedy=remedy, column=column)
