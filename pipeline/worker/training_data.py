"""A concept task's pictures, from storage to the latents and masks that training takes."""

from collections.abc import Iterator, Mapping

from PIL import Image

from perfusion_ops.base_model import Base
from perfusion_ops.examples import EmptyMaskError, make_example
from perfusion_ops.training import Example
from pipeline.contract.errors import Code, RowError, Status
from pipeline.contract.keys import digest
from pipeline.contract.units import ConceptTask, InputImage
from pipeline.inputs.fetch import InputLimits, decode, decode_mask, fetch, redact


def load_example(
    base: Base, task: ConceptTask, limits: InputLimits, storage_options: Mapping[str, object] | None
) -> Example:
    """Fetch, check, decode, square and encode one concept's pictures.

    Raises:
        RowError: a picture is gone, changed since the plan, or unusable; a mask is empty at the model's size.
    """
    try:
        return make_example(base, task.superclass, _photos(task, limits, storage_options), task.training)
    except EmptyMaskError as error:
        message = f"concept {task.concept_id!r}: {error}, or it is cropped away, which train.fit = 'pad' prevents"
        raise RowError(Code.MASK_EMPTY, message, column="masks") from error


def _photos(
    task: ConceptTask, limits: InputLimits, storage_options: Mapping[str, object] | None
) -> Iterator[tuple[Image.Image, Image.Image | None]]:
    for index, image in enumerate(task.images):
        picture = decode(_fetch(image, "images", limits, storage_options), limits)
        mask = None
        if task.masks:
            drawn = _fetch(task.masks[index], "masks", limits, storage_options)
            mask = decode_mask(drawn, limits).resize(picture.size)
        yield picture, mask


def _fetch(image: InputImage, column: str, limits: InputLimits, storage_options: Mapping[str, object] | None) -> bytes:
    data = fetch(image.uri, limits, storage_options)
    if digest(data) != image.sha256:
        raise RowError(
            Code.IMAGE_CHANGED,
            f"{redact(image.uri)} was replaced during the run: run again to train on the new picture",
            column=column,
            status=Status.FAILED,
        )
    return data
