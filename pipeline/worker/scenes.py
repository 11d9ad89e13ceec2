"""The scenes of renders: from storage to pixels of the render's size, and which of them stay."""

from perfusion_ops.scenes.scene import EmptyRegionError, Scene, around_product, box_region, into_scene
from pipeline.contract.errors import Code, RowError
from pipeline.contract.units import InputImage, InputScene
from pipeline.inputs.pictures import decode, decode_mask
from pipeline.inputs.store import InputStore


def load_scene(
    scene: InputScene, inputs: InputStore, *, width: int, height: int, factor: int, strength: float
) -> Scene:
    """Read, check and decode a scene.

    Args:
        scene: as planned.
        inputs: reads photos.
        width: of the render, in pixels.
        height: of the render, in pixels.
        factor: pixels per latent along one side.
        strength: see `perfusion_ops.scenes.scene.Scene`.

    Raises:
        RowError: a photo is missing, has changed since the plan, or is unusable; nothing is to be drawn or to stay.
    """
    column, mask_column = ("keep", "keep") if scene.keep else ("scene", "scene_mask" if scene.mask else "scene_box")
    photo = decode(_read(inputs, scene.photo, column), inputs.limits)
    if scene.mask is not None:
        region = decode_mask(_read(inputs, scene.mask, mask_column), inputs.limits).resize(photo.size)
    else:
        assert scene.box is not None
        region = box_region(*photo.size, scene.box)
    try:
        if scene.keep:
            return around_product(photo, region, width, height, strength=strength)
        return into_scene(photo, region, width, height, factor=factor, strength=strength)
    except EmptyRegionError as error:
        message = (
            f"{mask_column}: {error}; the render has {width} x {height} pixels: draw a larger product, or give the row "
            "a width and a height with the shape of the photo"
        )
        raise RowError(Code.MASK_EMPTY, message, column=mask_column) from error


def _read(inputs: InputStore, image: InputImage, column: str) -> bytes:
    remedy = "it was replaced during the run; run again to draw with the new photo"
    return inputs.read(image.uri, sha256=image.sha256, remedy=remedy, column=column)
