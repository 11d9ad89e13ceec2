"""Masks as one grey value per pixel: the brightest value is the product, black is the background.

If a picture has transparency anywhere, its alpha channel is the mask; otherwise its brightness is. 8-bit values stay as
they are. 16-bit values stay as they are if all fit into 8 bits; are scaled to the brightest if they use less than a
quarter of the range; and are divided by 256 otherwise. Training divides by the brightest value.
"""

import numpy as np
from PIL import Image

from pipeline.inputs.headers import Reading

_SPARSE = 2**14  # if all values are below, a division by 256 would leave too few levels


def mask_of(picture: Image.Image) -> tuple[Image.Image, Reading]:
    """The mask as 'L', and the rule by which it differs from that of earlier versions, if one applies."""
    before = _brightness(picture)
    alpha = _transparency(picture)
    if alpha is not None:
        return alpha, "" if alpha.tobytes() == before.tobytes() else "alpha"
    if not is_deep(picture):
        return before, ""
    values = np.asarray(picture).clip(0, 65535)
    brightest = int(values.max())
    if brightest <= 255:
        return Image.fromarray(values.astype(np.uint8)), ""
    if brightest < _SPARSE:
        return Image.fromarray((values * (255 / brightest)).round().astype(np.uint8)), "scaled"
    return before, ""


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture has one channel of more than 8 bits."""
    return picture.mode.startswith(("I", "F"))


def eight_bits(picture: Image.Image) -> Image.Image:
    """A 16-bit grey picture with 8 bits; Pillow's own conversion would clip it to white."""
    return Image.fromarray((np.asarray(picture).clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8))


def _brightness(picture: Image.Image) -> Image.Image:
    """Brightness as 'L'; transparent pixels are black."""
    if is_deep(picture):
        return eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture.convert("L")


def _transparency(picture: Image.Image) -> Image.Image | None:
    """The alpha channel; None without one, or if every pixel is opaque."""
    if is_deep(picture):
        clear = picture.info.get("transparency")
        if not isinstance(clear, int):
            return None
        alpha = Image.fromarray(np.where(np.asarray(picture) == clear, 0, 255).astype(np.uint8))
    elif picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
    else:
        return None
    darkest, _ = alpha.getextrema()
    return None if darkest == 255 else alpha
