"""Photos and masks from bytes: what is refused, with which code, and that everything accepted decodes."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.contract.errors import Code, RowError, Status
from pipeline.inputs.pictures import InputLimits, decode, decode_mask, inspect
from tests.support.photos import chunk, code_of, encode, noise, png

LIMITS = InputLimits()


def test_a_bomb_is_refused_before_anything_is_allocated():
    bombs = {
        "png": png(50_000, 50_000),
        "jpeg": b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08\xff\xff\xff\xff" + b"\0" * 20,
        "webp": b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + b"\0" * 40,
    }
    for name, data in bombs.items():
        tracemalloc.start()
        assert code_of(inspect, data, LIMITS) is Code.IMAGE_TOO_MANY_PIXELS, name
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1_000_000
    text = png(64, 64, body=chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 50_000_000)))
    assert code_of(inspect, text, LIMITS) is Code.IMAGE_CORRUPT


def test_a_webp_that_promises_less_than_it_holds_is_refused():
    data = bytearray(encode(noise(1, (400, 300), "RGBA"), "WEBP", icc_profile=b"x" * 200))
    data[24:30] = (31).to_bytes(3, "little") + (31).to_bytes(3, "little")
    assert code_of(inspect, bytes(data), LIMITS) is Code.IMAGE_CORRUPT


def test_a_png_with_two_headers_is_refused():
    rows = b"\0" + bytes(64 * 3)
    second = chunk(b"IHDR", struct.pack(">II", 64, 32) + b"\x08\x02\0\0\0")
    data = png(64, 64, body=second + chunk(b"IDAT", zlib.compress(rows * 32)))
    assert code_of(inspect, data, LIMITS) is Code.IMAGE_CORRUPT


def test_pixels_and_sides_at_their_limits():
    limits = InputLimits(max_pixels=1024, min_side=16)
    assert inspect(encode(noise(0, (64, 16)), "PNG"), limits).width == 64
    assert code_of(inspect, encode(noise(0, (65, 16)), "PNG"), limits) is Code.IMAGE_TOO_MANY_PIXELS
    assert code_of(inspect, encode(noise(0, (15, 16)), "PNG"), limits) is Code.IMAGE_TOO_SMALL
    with pytest.raises(ValidationError):
        InputLimits(max_pixels=10**9)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncation_anywhere_is_found(kind):
    data = encode(noise(2, (60, 50)), kind)
    for keep in sorted(
        {1, 2, 3, 8, 11, 12, 20, 29, 30, len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 13}
    ):
        assert code_of(inspect, data[:keep], LIMITS) in (
            (Code.IMAGE_TRUNCATED,) if keep >= 30 else (Code.IMAGE_TRUNCATED, Code.IMAGE_FORMAT)
        ), keep
    assert code_of(inspect, b"", LIMITS) is Code.IMAGE_EMPTY


@pytest.mark.parametrize("image", [noise(2, (60, 50)), Image.new("RGB", (300, 300), "red")], ids=["noise", "flat"])
def test_one_flipped_bit_in_a_png_is_found(image):
    data = encode(image, "PNG")
    for place in range(41, len(data) - 12, 1 + len(data) // 97):
        spoilt = bytearray(data)
        spoilt[place] ^= 1
        assert code_of(inspect, bytes(spoilt), LIMITS) in (Code.IMAGE_CORRUPT, Code.IMAGE_TRUNCATED), place


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode(noise(), "BMP"), "a BMP"),
        (encode(noise(), "GIF"), "a GIF"),
        (encode(noise(), "TIFF"), "a TIFF"),
        (encode(noise(), "AVIF"), "HEIC, AVIF"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\xef\xbb\xbf  <svg>", "SVG"),
        (b"hello\n", "plain text"),
        (b"\0" * 100, "an unknown format"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_other_formats_are_named(data, words):
    with pytest.raises(RowError, match=words) as caught:
        inspect(data, LIMITS)
    assert caught.value.code is Code.IMAGE_FORMAT


def test_animations_are_refused_and_phone_pictures_with_previews_are_not():
    frames = [noise(seed) for seed in range(3)]
    for kind in ("WEBP", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert code_of(inspect, data, LIMITS) is Code.IMAGE_FORMAT
    phone = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert inspect(phone, LIMITS).format == "JPEG"


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 2500),
)
def test_hostile_bytes_either_decode_or_are_a_row_error(kind, edits, cut):
    data = bytearray(encode(noise(3, (24, 20)), kind))
    for place, value in edits:
        data[place % len(data)] = value
    data = bytes(data[:cut])
    try:
        found = inspect(data, LIMITS)
    except RowError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.code.startswith("image_")
        assert refused.status is Status.INVALID
        return
    picture = decode(data, LIMITS)
    assert picture.mode == "RGB"
    assert picture.size == (found.width, found.height)


def test_decode_turns_upright_and_lays_transparency_on_white():
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    data = encode(image, "PNG", exif=exif.tobytes())
    upright = decode(data, LIMITS)
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 2)) == (0, 0, 255)
    assert (inspect(data, LIMITS).width, inspect(data, LIMITS).height) == (20, 40)
    clear = Image.new("RGBA", (20, 20), (10, 20, 30, 0))
    clear.paste((10, 20, 30, 255), (0, 0, 10, 20))
    flat = decode(encode(clear, "PNG"), LIMITS)
    assert (flat.getpixel((2, 2)), flat.getpixel((15, 2))) == ((10, 20, 30), (255, 255, 255))
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((15, 2))
    indexed = encode(palette, "PNG", transparency=palette.getpixel((15, 2)))
    assert decode(indexed, LIMITS).getpixel((15, 2)) == (255, 255, 255)


def test_deep_grey_and_cmyk_keep_their_tones():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    flat = np.asarray(decode(encode(Image.fromarray(ramp), "PNG"), LIMITS))
    assert np.abs(flat[..., 0].astype(int) - (ramp >> 8)).max() <= 1
    press = decode(encode(Image.new("RGB", (32, 32), (200, 40, 90)).convert("CMYK"), "JPEG", quality=95), LIMITS)
    assert np.abs(np.asarray(press).astype(int) - (200, 40, 90)).max() < 12


def test_masks_are_grey_upright_and_not_empty():
    drawn = Image.new("1", (40, 20))
    drawn.paste(1, (0, 0, 10, 20))
    mask = decode_mask(encode(drawn, "PNG"))
    assert (mask.mode, mask.size) == ("L", (40, 20))
    assert (mask.getpixel((2, 2)), mask.getpixel((30, 2))) == (255, 0)
    cutout = Image.new("RGBA", (40, 20), (255, 255, 255, 0))
    cutout.paste((255, 255, 255, 255), (0, 0, 10, 20))
    mask = decode_mask(encode(cutout, "PNG"))
    assert (mask.getpixel((2, 2)), mask.getpixel((30, 2))) == (255, 0)
    assert code_of(decode_mask, encode(Image.new("L", (40, 20)), "PNG")) is Code.MASK_EMPTY
    assert code_of(decode_mask, b"x") is Code.IMAGE_FORMAT
