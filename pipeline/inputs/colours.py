"""Embedded colour profiles: pixels as sRGB, which the base model, the report and browsers without a profile expect.

A profile that cannot be read, or that is not for the picture's kind of pixels, is ignored, as browsers do. So is one
that says sRGB in other words: its pixels stay as they are, bit for bit. Of PNG's chunks only `iCCP` counts; `gAMA`,
`cHRM` and `cICP` are ignored, as most software does.
"""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}  # a picture's mode, and what its profile must be for
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
_ALIKE = 2  # levels of 255: a profile that never moves a colour further is sRGB


def to_srgb(picture: Image.Image) -> Image.Image | None:
    """An 8-bit picture as sRGB by its embedded profile, transparency kept; None when its pixels are to stay."""
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
    """Colours in one of the modes that profiles are for, and the transparency if there is any."""
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
    """Colours from all over the cube, or all greys."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    return Image.fromarray(np.ascontiguousarray(cube.reshape(27, 27, 3)))
