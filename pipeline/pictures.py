"""Bytes to pictures, trusting nothing: the limits, what inspection finds out, and the two decoders.

JPEG, PNG and WebP only, chosen by content, never by name. Pixels are counted from the header before a decoder sees the
bytes. Every failure is a `RowError` with a code of its own and a sentence with the remedy; what `inspect` accepts,
`decode` decodes.
"""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.errors import Code, RowError
from pipeline.headers import Format, describe, picture_format, picture_size
from pipeline.storage import StorageError, absolute_uri

_BOMB_PIXELS = 89_478_485  # where Pillow starts to warn: no limit may lie above it, so its warning never shows


class InputLimits(BaseModel):
    """What an input picture may be and where it may lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[str, ...] = Field(
        default=(),
        description="folders or schemes (s3://bucket/photos, https://) that pictures may come from; "
        "empty: any file, memory, s3, gs or az URI, but neither http nor https",
    )
    max_bytes: int = Field(default=50 * 2**20, ge=1, le=2**31, description="of one picture")
    max_pixels: int = Field(default=50_000_000, ge=1, le=_BOMB_PIXELS, description="width times height")
    min_side: int = Field(default=16, ge=1, le=4096, description="pixels of the shorter side")
    max_images: int = Field(default=64, ge=1, le=10_000, description="of one concept")

    @field_validator("allow")
    @classmethod
    def _absolute(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(prefix if prefix.endswith("://") else absolute_uri(prefix) for prefix in allow)
        except StorageError as error:
            raise ValueError(str(error)) from error

    def allowing(self, prefix: str) -> "InputLimits":
        """The same limits with one more folder allowed: where pictures are kept that a manifest carried as bytes."""
        return self.model_copy(update={"allow": (*self.allow, absolute_uri(prefix))}) if self.allow else self


@dataclass(frozen=True)
class Inspected:
    """A picture that decodes: hex sha256 of its bytes, and its size in pixels as displayed (EXIF turn applied)."""

    sha256: str
    format: Format
    width: int
    height: int


def inspect(data: bytes, limits: InputLimits) -> Inspected:
    """Check a picture's bytes by their header, then by decoding all of it.

    Raises:
        RowError: IMAGE_EMPTY, IMAGE_TOO_LARGE, IMAGE_FORMAT, IMAGE_TOO_MANY_PIXELS, IMAGE_TOO_SMALL,
            IMAGE_TRUNCATED or IMAGE_CORRUPT.
    """
    kind, _ = _check_header(data, limits)
    picture = decode(data, limits)
    return Inspected(hashlib.sha256(data).hexdigest(), kind, picture.width, picture.height)


def decode(data: bytes, limits: InputLimits) -> Image.Image:
    """The picture as RGB, upright by its EXIF tag, transparency laid on white; raises as `inspect` does."""
    picture = _load(data, limits)
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def decode_mask(data: bytes, limits: InputLimits | None = None) -> Image.Image:
    """The mask as 'L' (white: the product), upright by its EXIF tag, transparency laid on black.

    Raises:
        RowError: as `inspect` does, and MASK_EMPTY when no pixel is above black.
    """
    mask = _load(data, limits or InputLimits())
    if mask.mode.startswith(("I", "F")):
        mask = _eight_bits(mask)
    elif mask.has_transparency_data:
        mask = mask.convert("RGBA")
        mask = Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask)
    mask = mask.convert("L")
    if not np.asarray(mask).any():
        raise RowError(Code.MASK_EMPTY, "the mask is all black: draw the product in white on black, or leave masks out")
    return mask


def check_size(width: int, height: int, limits: InputLimits) -> None:
    """Refuse a picture by its size in pixels alone."""
    if width * height > limits.max_pixels:
        raise RowError(
            Code.IMAGE_TOO_MANY_PIXELS,
            f"the picture has {width} x {height} pixels and may have {limits.max_pixels:,}: scale it down",
        )
    if min(width, height) < limits.min_side:
        raise RowError(
            Code.IMAGE_TOO_SMALL,
            f"the picture has {width} x {height} pixels and each side needs {limits.min_side}: use a larger photo",
        )


def _check_header(data: bytes, limits: InputLimits) -> tuple[Format, tuple[int, int]]:
    if not data:
        raise RowError(Code.IMAGE_EMPTY, "the picture has no bytes: upload it again")
    if len(data) > limits.max_bytes:
        raise RowError(
            Code.IMAGE_TOO_LARGE,
            f"the picture has more than the {limits.max_bytes:,} bytes allowed: save it with stronger compression",
        )
    kind = picture_format(data)
    if kind is None:
        raise RowError(
            Code.IMAGE_FORMAT,
            f"the content is {describe(data)}, whatever the name says: convert it to JPEG, PNG or WebP",
        )
    try:
        size = picture_size(data, kind)
    except ValueError as error:
        code = Code.IMAGE_TRUNCATED if "cut off" in str(error) else Code.IMAGE_CORRUPT
        raise RowError(code, f"the {kind} cannot be read ({error}): export or upload it again") from None
    check_size(*size, limits)
    return kind, size


def _load(data: bytes, limits: InputLimits) -> Image.Image:
    """Decode every pixel of a checked picture and turn it upright."""
    kind, size = _check_header(data, limits)
    if (kind == "PNG" and b"IEND" not in data) or (
        kind == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    ):
        raise RowError(Code.IMAGE_TRUNCATED, f"the {kind} ends before its end: upload it again")
    try:
        if kind == "PNG":
            Image.open(io.BytesIO(data), formats=[kind]).verify()  # checksums, which loading does not look at
        picture = Image.open(io.BytesIO(data), formats=[kind])
        frames = 1 if kind == "JPEG" else getattr(picture, "n_frames", 1)  # a phone's JPEG may carry previews
        if frames == 1 and picture.size == size:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except Exception as error:  # decoders raise whatever they like on hostile bytes; all of it means the same
        truncated = "truncated" in str(error).lower()
        code = Code.IMAGE_TRUNCATED if truncated else Code.IMAGE_CORRUPT
        raise RowError(code, f"the {kind} does not decode ({error}): export or upload it again") from error
    if frames > 1:
        raise RowError(Code.IMAGE_FORMAT, f"the {kind} is an animation of {frames} frames: export the one to use")
    raise RowError(
        Code.IMAGE_CORRUPT, f"the {kind} says {size} pixels in its header and {picture.size} inside: export it again"
    )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A 16-bit grey picture at 8 bits; Pillow's own conversion would clip it to white."""
    return Image.fromarray((np.asarray(picture).clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8))
