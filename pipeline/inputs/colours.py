"""Embedded colour profiles: converts pixels to sRGB, which the base model and the report expect.

A profile that cannot be read, or that is for another kind of pixels, is ignored, as in browsers. A profile that is
equivalent to sRGB is ignored too, so that its pixels stay the same to the bit. Of PNG's chunks only `iCCP` is used;
`gAMA`, `cHRM` and `cICP` are ignored, as in most software.
"""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageCms

_SPACES = {
    "RGB": b"RGB ",
    "L": b"GRAY",
    "CMYK": b"CMYK",
}  # a picture's mode, and the colour space that its profile must have
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
_ALIKE = 2  # levels of 255: a profile that moves no colour further is equivalent to sRGB


def to_srgb(picture: Image.Image) -> Image.Image | None:
    """An 8-bit picture converted to sRGB by its embedded profile, transparency kept; None if no change is needed."""
    profile = picture.info.get("icc_profile")
    if not profile:
        return None
    colours, alpha = _split(picture)
    transform = _transform(profile, colours.mode)
    if transform is None:
        return None
    if colours.mode != "CMYK" and _changes_little(transform, colours.mode):
        return None
    converted = ImageCms.applyTransform(colours, transform)
    if converted is None:
        return None
    if alpha is not None:
        converted.putalpha(alpha)
    converted.info.clear()
    return converted


def _split(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours in a mode that profiles support, and the transparency, if any."""
    if picture.has_transparency_data:
        grey = picture.mode in ("LA", "L", "1")
        alpha = picture.convert("RGBA").getchannel("A")
        return picture.convert("RGBA").convert("L" if grey else "RGB"), alpha
    if picture.mode in _SPACES:
        return picture, None
    return picture.convert("L" if picture.mode == "1" else "RGB"), None


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if profile[16:20] != _SPACES[mode]:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        return ImageCms.buildTransform(source, target, mode, "RGB", _INTENT, _FLAGS)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_little(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    samples = _samples(mode)
    moved = ImageCms.applyTransform(samples, transform)
    before, after = (np.asarray(each).astype(int) for each in (samples.convert("RGB"), moved))
    return int(np.abs(after - before).max()) <= _ALIKE


@cache
def _samples(mode: str) -> Image.Image:
    """A grid of colours over the whole cube, or all greys."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    return Image.fromarray(np.ascontiguousarray(cube.reshape(27, 27, 3)))
