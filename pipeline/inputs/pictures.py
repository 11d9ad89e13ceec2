"""Untrusted bytes to photos and masks: the limits, the inspection and the two decoders.

Only JPEG, PNG and WebP are read; the content decides, never the name. Pixels are counted from the header before a
decoder sees the bytes. Every failure is a `RowError` with its own code and a remedy. `decode` decodes everything that
`inspect` accepts.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from pydantic import Field, field_validator

from perfusion_ops.config import Frozen
from pipeline.contract.errors import Code, RowError
from pipeline.inputs.colours import to_srgb
from pipeline.inputs.headers import DepthError, Format, Reading, describe, picture_format, picture_size
from pipeline.inputs.masks import eight_bits, is_deep, mask_of
from pipeline.inputs.opening import load_picture, open_picture, upright
from pipeline.storage.objects import StorageError, absolute_uri

Role = Literal["image", "mask"]

_BOMB_PIXELS = 89_478_485  # above it Pillow warns of a decompression bomb, so no limit may be higher


class InputLimits(Frozen):
    """Limits of photos: where they may lie, and how large they may be."""

    allow: tuple[str, ...] = Field(
        default=(),
        description="folders or schemes (s3://bucket/photos, https://) that photos may come from; "
        "empty: any file, memory, s3, gs or az URI, but neither http nor https",
    )
    presigned: bool = Field(
        default=False,
        description="whether web addresses under `allow` may have a signature, which is never stored or printed",
    )
    max_bytes: int = Field(default=50 * 2**20, ge=1, le=2**31, description="of one photo")
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
        """The same limits with one more allowed folder: the one that keeps photos given as bytes."""
        return self.model_copy(update={"allow": (*self.allow, absolute_uri(prefix))}) if self.allow else self


@dataclass(frozen=True)
class Inspected:
    """A photo or mask that decodes.

    Attributes:
        sha256: of its bytes, hex.
        format: by its content.
        width: pixels as displayed, after the turn that EXIF asks for.
        height: pixels as displayed.
        reading: the rule by which its pixels differ from those of earlier versions; "" if none applies.
    """

    sha256: str
    format: Format
    width: int
    height: int
    reading: Reading = ""


def inspect(data: bytes, limits: InputLimits, role: Role = "image") -> Inspected:
    """Check the bytes of a photo or mask: first the header, then by decoding all of it.

    Raises:
        RowError: IMAGE_EMPTY, IMAGE_TOO_LARGE, IMAGE_FORMAT, IMAGE_TOO_MANY_PIXELS, IMAGE_TOO_SMALL,
            IMAGE_TRUNCATED or IMAGE_CORRUPT; of a mask also MASK_EMPTY.
    """
    kind, _ = _check_header(data, limits)
    picture, reading = _picture(data, limits) if role == "image" else _mask(data, limits)
    return Inspected(hashlib.sha256(data).hexdigest(), kind, picture.width, picture.height, reading)


def decode(data: bytes, limits: InputLimits) -> Image.Image:
    """The photo in sRGB, upright by its EXIF tag, transparent pixels on white; raises as `inspect` does."""
    return _picture(data, limits)[0]


def decode_mask(data: bytes, limits: InputLimits | None = None) -> Image.Image:
    """The mask as 'L' (white: the product), upright by its EXIF tag, as `pipeline.inputs.masks` says.

    Raises:
        RowError: as `inspect` raises, and MASK_EMPTY if no pixel is above black.
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
    """Refuse a photo that has too many or too few pixels.

    Raises:
        RowError: IMAGE_TOO_MANY_PIXELS or IMAGE_TOO_SMALL.
    """
    if width * height > limits.max_pixels:
        raise RowError(
            Code.IMAGE_TOO_MANY_PIXELS,
            f"the picture has {width} x {height} pixels, the limit is {limits.max_pixels:,}: scale it down",
        )
    if min(width, height) < limits.min_side:
        raise RowError(
            Code.IMAGE_TOO_SMALL,
            f"the picture has {width} x {height} pixels, each side needs {limits.min_side}: use a larger photo",
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
            f"the content is {describe(data)}, whatever its name: convert it to JPEG, PNG or WebP",
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
        raise RowError(Code.IMAGE_TRUNCATED, f"the {kind} is cut off: upload it again")
    try:
        if kind == "PNG":
            open_picture(data, kind).verify()  # checks the checksums, which loading ignores
        picture = open_picture(data, kind)
        frames = 1 if kind == "JPEG" else getattr(picture, "n_frames", 1)  # a phone's JPEG may hold previews
        if frames == 1 and picture.size == size:
            return upright(load_picture(data, kind))
    except Exception as error:  # on hostile bytes, decoders raise errors of any type
        # The decoder's message is left out: it holds memory addresses and changes with its version.
        # Pillow's JPEG reader raises IndexError if the bytes end inside a marker.
        if "truncated" in str(error).lower() or (kind == "JPEG" and isinstance(error, IndexError)):
            raise RowError(
                Code.IMAGE_TRUNCATED, f"the {kind} is cut off before its last pixel: export or upload it again"
            ) from error
        raise RowError(
            Code.IMAGE_CORRUPT, f"the {kind} is damaged and does not decode: export or upload it again"
        ) from error
    if frames > 1:
        raise RowError(Code.IMAGE_FORMAT, f"the {kind} is an animation of {frames} frames: export one frame")
    raise RowError(
        Code.IMAGE_CORRUPT, f"the {kind} has {size} pixels in its header, but {picture.size} inside: export it again"
    )
