"""Bytes to pictures, trusting nothing: the limits, what inspection finds out, and the two decoders.

JPEG, PNG and WebP only, chosen by content, never by name. Pixels are counted from the header before a decoder sees the
bytes. Every failure is a `RowError` with a code of its own and a sentence with the remedy; what `inspect` accepts,
`decode` decodes.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.contract.errors import Code, RowError
from pipeline.inputs.colours import to_srgb
from pipeline.inputs.headers import DepthError, Format, Reading, describe, picture_format, picture_size
from pipeline.inputs.masks import eight_bits, is_deep, mask_of
from pipeline.inputs.opening import load_picture, open_picture, upright
from pipeline.storage.objects import StorageError, absolute_uri

Role = Literal["image", "mask"]

_BOMB_PIXELS = 89_478_485  # where Pillow starts to warn: no limit may lie above it, so its warning never shows


class InputLimits(BaseModel):
    """What an input picture may be and where it may lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[str, ...] = Field(
        default=(),
        description="folders or schemes (s3://bucket/photos, https://) that pictures may come from; "
        "empty: any file, memory, s3, gs or az URI, but neither http nor https",
    )
    presigned: bool = Field(
        default=False,
        description="whether web addresses under `allow` may carry a signature; it is never stored or printed",
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
    """A picture that decodes.

    Hex sha256 of its bytes, its size in pixels as displayed (EXIF turn applied), and how its pixels are read.
    """

    sha256: str
    format: Format
    width: int
    height: int
    reading: Reading = ""


def inspect(data: bytes, limits: InputLimits, role: Role = "image") -> Inspected:
    """Check the bytes of a picture or a mask by their header, then by decoding all of it.

    Raises:
        RowError: IMAGE_EMPTY, IMAGE_TOO_LARGE, IMAGE_FORMAT, IMAGE_TOO_MANY_PIXELS, IMAGE_TOO_SMALL,
            IMAGE_TRUNCATED or IMAGE_CORRUPT; of a mask also MASK_EMPTY.
    """
    kind, _ = _check_header(data, limits)
    picture, reading = _picture(data, limits) if role == "image" else _mask(data, limits)
    return Inspected(hashlib.sha256(data).hexdigest(), kind, picture.width, picture.height, reading)


def decode(data: bytes, limits: InputLimits) -> Image.Image:
    """The picture as sRGB, upright by its EXIF tag, transparency laid on white; raises as `inspect` does."""
    return _picture(data, limits)[0]


def decode_mask(data: bytes, limits: InputLimits | None = None) -> Image.Image:
    """The mask as 'L' (white: the product), upright by its EXIF tag, as `pipeline.inputs.masks` says.

    Raises:
        RowError: as `inspect` does, and MASK_EMPTY when no pixel is above black.
    """
    return _mask(data, limits or InputLimits())[0]


def _picture(data: bytes, limits: InputLimits) -> tuple[Image.Image, Reading]:
    stored = _load(data, limits)
    picture = stored
    if is_deep(stored):
        picture = eight_bits(stored)
        picture.info["icc_profile"] = stored.info.get("icc_profile")
    plain, converted = _on_white(picture), to_srgb(picture)
    if converted is None:
        return plain, ""
    converted = _on_white(converted)
    return (plain, "") if converted.tobytes() == plain.tobytes() else (converted, "srgb")


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _mask(data: bytes, limits: InputLimits) -> tuple[Image.Image, Reading]:
    mask, reading = mask_of(_load(data, limits))
    if mask.getbbox() is None:
        raise RowError(
            Code.MASK_EMPTY,
            "the mask is all black or transparent: draw the product in white on black, cut it out, or leave masks out",
        )
    return mask, reading


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
    except DepthError as error:
        raise RowError(Code.IMAGE_FORMAT, f"the {kind} cannot be read ({error}): export it with 8 bits") from None
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
            open_picture(data, kind).verify()  # checksums, which loading does not look at
        picture = open_picture(data, kind)
        frames = 1 if kind == "JPEG" else getattr(picture, "n_frames", 1)  # a phone's JPEG may carry previews
        if frames == 1 and picture.size == size:
            return upright(load_picture(data, kind))
    except Exception as error:  # decoders raise whatever they like on hostile bytes; all of it means the same
        # The decoder's own words are left out: they hold memory addresses, and change with its version.
        # Pillow's JPEG reader takes the next byte unasked, also where there is none.
        if "truncated" in str(error).lower() or (kind == "JPEG" and isinstance(error, IndexError)):
            raise RowError(
                Code.IMAGE_TRUNCATED, f"the {kind} ends before its last pixel: export or upload it again"
            ) from error
        raise RowError(
            Code.IMAGE_CORRUPT, f"the {kind} is damaged and does not decode: export or upload it again"
        ) from error
    if frames > 1:
        raise RowError(Code.IMAGE_FORMAT, f"the {kind} is an animation of {frames} frames: export the one to use")
    raise RowError(
        Code.IMAGE_CORRUPT, f"the {kind} says {size} pixels in its header and {picture.size} inside: export it again"
    )
