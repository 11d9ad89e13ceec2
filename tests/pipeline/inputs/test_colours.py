"""Photos with a colour profile are trained on as browsers show them, and those that are sRGB stay as they are."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.inputs.pictures import InputLimits, decode, decode_mask, inspect
from pipeline.report.sheets import thumbnail
from tests.support import icc

LIMITS = InputLimits()
PATCH = (60, 180, 75)


def encode(picture, kind="PNG", **options):
    sink = io.BytesIO()
    picture.save(sink, kind, **{"lossless": True, "quality": 100, "subsampling": 0} | options)
    return sink.getvalue()


def colours(seed=0, mode="RGB", size=(40, 32)):
    shape = (size[1], size[0], len(mode))
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def off(data, reference):
    return np.abs(np.asarray(decode(data, LIMITS)).astype(int) - reference).max()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_patch_in_adobe_rgb_has_its_colour(kind):
    profile, matrix, curve = icc.PROFILES["adobe"]
    assert tuple(icc.expected(PATCH, matrix, curve)) == (0, 181, 64)
    data = encode(Image.new("RGB", (32, 32), PATCH), kind, icc_profile=profile)
    assert off(data, (0, 181, 64)) <= 2
    assert inspect(data, LIMITS).reading == "srgb"


@pytest.mark.parametrize("name", icc.PROFILES)
def test_wide_spaces_are_converted_all_over(name):
    profile, matrix, curve = icc.PROFILES[name]
    picture = colours()
    reference = icc.expected(np.asarray(picture), matrix, curve)
    assert off(encode(picture, icc_profile=profile), reference) <= 2
    assert off(encode(picture), reference) > 20


@pytest.mark.parametrize("name", icc.SAME)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_srgb_by_any_name_changes_no_bit_and_no_key(name, mode):
    picture = colours(mode="RGBA" if mode == "RGBA" else "RGB")
    picture = picture.quantize(64) if mode == "P" else picture
    with_profile, without = encode(picture, icc_profile=icc.SAME[name]), encode(picture)
    assert decode(with_profile, LIMITS).tobytes() == decode(without, LIMITS).tobytes()
    assert inspect(with_profile, LIMITS).reading == ""


def test_a_picture_whose_colours_the_profile_does_not_move_keeps_its_key():
    profile = icc.PROFILES["prophoto"][0]
    data = encode(Image.new("RGB", (32, 32), "white"), icc_profile=profile)
    assert (inspect(data, LIMITS).reading, off(data, (255, 255, 255))) == ("", 0)


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"junk",
        bytes(200),
        icc.PROFILES["adobe"][0][:300],
        icc.PROFILES["adobe"][0].replace(b"rXYZ", b"none"),
        icc.PROFILES["adobe"][0].replace(b"acsp", b"none"),
        icc.grey(icc.gamma(1.0)),
        icc.cmyk(),
        icc.PROFILES["adobe"][0].replace(b"RGB ", b"Lab "),
        icc.PROFILES["adobe"][0].replace(b"mntr", b"link"),
    ],
    ids=["empty", "junk", "zeros", "cut off", "a colour missing", "no signature", "grey", "CMYK", "Lab", "a link"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_profile_that_is_broken_or_for_other_pixels_is_ignored(kind, profile):
    picture = colours(1)
    data = encode(picture, kind, icc_profile=profile)
    assert decode(data, LIMITS).tobytes() == decode(encode(picture, kind), LIMITS).tobytes()
    assert inspect(data, LIMITS).reading == ""


def test_grey_profiles_are_for_grey_pictures():
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1)))
    reference = icc.encoded(np.asarray(ramp)[..., None].repeat(3, 2) / 255)
    data = encode(ramp, icc_profile=icc.grey(icc.gamma(1.0)))
    assert off(data, reference) <= 2
    assert inspect(data, LIMITS).reading == "srgb"
    deep = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    assert off(encode(deep, icc_profile=icc.grey(icc.gamma(1.0))), reference) <= 2
    same = encode(ramp, icc_profile=icc.grey(icc.table()))
    assert decode(same, LIMITS).tobytes() == decode(encode(ramp), LIMITS).tobytes()


def test_cmyk_is_converted_by_its_profile_where_it_has_one_that_works():
    for ink, name in (((255, 0, 0, 0), "c"), ((0, 255, 0, 0), "m"), ((0, 0, 255, 0), "y"), ((0, 0, 0, 255), "k")):
        patch = Image.new("CMYK", (32, 32), ink)
        assert off(encode(patch, "JPEG", icc_profile=icc.cmyk()), icc.of_lab(*icc.INKS[name])) <= 3
    plain = encode(patch, "JPEG")
    for profile in (b"junk", icc.PROFILES["adobe"][0]):
        data = encode(patch, "JPEG", icc_profile=profile)
        assert decode(data, LIMITS).tobytes() == decode(plain, LIMITS).tobytes()
        assert inspect(data, LIMITS).reading == ""


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_transparency_stays_where_it_is(mode):
    clear = Image.new("RGBA", (32, 32), (*PATCH, 0))
    clear.paste((*PATCH, 255), (0, 0, 16, 32))
    if mode == "LA":
        profile, inside = (
            icc.grey(icc.gamma(1.0)),
            icc.encoded(np.array([clear.convert("L").getpixel((2, 2)) / 255] * 3)),
        )
        picture = clear.convert("LA")
    else:
        profile, inside = icc.PROFILES["adobe"][0], np.array((0, 181, 64))
        picture = clear if mode == "RGBA" else clear.quantize(8)
    shown = decode(encode(picture, icc_profile=profile), LIMITS)
    assert np.abs(np.array(shown.getpixel((2, 2))) - inside).max() <= 2
    assert shown.getpixel((30, 2)) == (255, 255, 255)


def test_a_turned_photo_is_converted_as_well_and_the_report_shows_the_same():
    picture = Image.new("RGB", (40, 20), PATCH)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture, "JPEG", icc_profile=icc.PROFILES["adobe"][0], exif=exif)
    shown = decode(data, LIMITS)
    assert shown.size == (20, 40)
    assert off(data, (0, 181, 64)) <= 2
    inlined = Image.open(io.BytesIO(base64.b64decode(thumbnail(data).src.partition(",")[2])))
    assert inlined.size == (20, 40)
    assert np.abs(np.asarray(inlined.convert("RGB")).astype(int) - (0, 181, 64)).max() <= 2


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"gAMA", struct.pack(">I", 100_000)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)),
        (b"sRGB", b"\0"),
        (b"cICP", b"\x0c\x0d\0\1"),
    ],
)
def test_other_chunks_about_colour_are_ignored(name, body):
    plain = encode(colours(2))
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    assert decode(plain[:33] + chunk + plain[33:], LIMITS).tobytes() == decode(plain, LIMITS).tobytes()


def test_a_mask_is_data_and_keeps_its_values():
    values = colours(3, "L")
    data = encode(values, icc_profile=icc.grey(icc.gamma(1.0)))
    assert decode_mask(data, LIMITS).tobytes() == values.tobytes()
    assert inspect(data, LIMITS, "mask").reading == ""
