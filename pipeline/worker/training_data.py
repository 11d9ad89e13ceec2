"""A concept's photos and masks: from storage to the latents and loss weights of its training."""

from collections.abc import Iterator
from dataclasses import replace

from PIL import Image
from torch import Tensor

from perfusion_ops.base_model import Base
from perfusion_ops.training.examples import EmptyMaskError, make_example
from perfusion_ops.training.start_file import StartFileError, read_start
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
        example = make_example(base, task.superclass, _photos(task, inputs), task.training)
        return replace(example, start=_start(base, task, inputs))
    except EmptyMaskError as error:
        message = f"concept {task.concept_id!r}: {error}, or it is cropped away, which train.fit = 'pad' prevents"
        raise RowError(Code.MASK_EMPTY, message, column="masks") from error


def _start(base: Base, task: ConceptTask, inputs: InputStore) -> Tensor | None:
    """Where the concept's word starts, if the manifest says so.

    Raises:
        RowError: the file is missing, has changed since the plan, or does not fit the base model.
    """
    if task.start is None:
        return None
    remedy = "it was replaced during the run; run again to start from the new file"
    data = inputs.read(task.start.uri, sha256=task.start.sha256, remedy=remedy, column="start")
    try:
        return read_start(data, base.texts.widths, base.folder.family.word_tensors)
    except StartFileError as error:
        raise RowError(Code.BAD_START, f"start: the file {error}", column="start") from error


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
