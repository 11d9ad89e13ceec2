"""A concept's photos and masks: from storage to the latents and loss weights of its training."""

from collections.abc import Iterator

from PIL import Image

from perfusion_ops.base_model import Base
from perfusion_ops.training.examples import EmptyMaskError, make_example
from perfusion_ops.training.state import Example
from pipeline.contract.errors import Code, RowError
from pipeline.contract.units import ConceptTask, InputImage
from pipeline.inputs.pictures import decode, decode_mask
from pipeline.inputs.store import InputStore


def load_example(base: Base, task: ConceptTask, inputs: InputStore) -> Example:
    """Read, check, decode and encode the photos of a concept.

    Raises:
        RowError: a photo is missing, has changed since the plan, or is unusable; a mask is empty at latent size.
    """
    try:
        return make_example(base, task.superclass, _photos(task, inputs), task.training)
    except EmptyMaskError as error:
        message = f"concept {task.concept_id!r}: {error}, or it is cropped away, which train.fit = 'pad' prevents"
        raise RowError(Code.MASK_EMPTY, message, column="masks") from error


def _photos(task: ConceptTask, inputs: InputStore) -> Iterator[tuple[Image.Image, Image.Image | None]]:
    for index, image in enumerate(task.images):
        photo = decode(_read(inputs, image, "images"), inputs.limits)
        mask = None
        if task.masks:
            drawn = _read(inputs, task.masks[index], "masks")
            mask = decode_mask(drawn, inputs.limits).resize(photo.size)
        yield photo, mask


def _read(inputs: InputStore, image: InputImage, column: str) -> bytes:
    remedy = "it was replaced during the run; run again to train on the new photo"
    return inputs.read(image.uri, sha256=image.sha256, remedy=remedy, column=column)
