"""What Pillow, libjpeg and browsers open is opened, upright by its orientation tag and nothing else."""

import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin

from pipeline.contract.errors import Code, RowError
from pipeline.inputs.headers import jpeg_segments, picture_format
from pipeline.inputs.opening import load_picture, upright
from pipeline.inputs.pictures import InputLimits, decode, decode_mask, inspect
from pipeline.report.sheets import thumbnail

LIMITS = InputLimits()
KINDS = ("JPEG", "PNG", "WEBP")
# A picture as stored, whose corner patch tells how it was turned: where the patch is after each orientation.
CORNERS = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
# Values that cameras write and that Pillow cannot write back: (tag, TIFF type, count, inline value or data).
UNWRITABLE = {
    "XResolution as ASCII": (0x011A, 2, 4, b"300\0"),
    "XResolution as an empty text": (0x011A, 2, 1, b"\0\0\0\0"),
    "XResolution as a signed rational": (0x011A, 10, 1, struct.pack("<ii", -72, 1)),
    "XResolution over zero": (0x011A, 5, 1, struct.pack("<II", 72, 0)),
    "a SLONG of -1": (0x0128, 9, 1, struct.pack("<i", -1)),
    "a signed byte": (0x0128, 6, 1, b"\xff\0\0\0"),
    "a type that does not exist": (0x0128, 99, 1, b"\1\0\0\0"),
    "a text beyond the end": (0x0131, 2, 5000, struct.pack("<I", 60000)),
}


def exif(orientation, *others, kind=3, count=1):
    """A little-endian EXIF block with an orientation of any TIFF type and further raw entries."""
    value = struct.pack("<I", orientation) if kind == 4 else struct.pack("<HH", orientation, 0)
    entries = sorted([(0x0112, kind, count, value), *others], key=lambda entry: entry[0])
    start = 8 + 2 + 12 * len(entries) + 4
    directory, heap = b"", b""
    for tag, of, number, data in entries:
        inline = data if len(data) <= 4 else struct.pack("<I", start + len(heap))
        heap += data if len(data) > 4 else b""
        directory += struct.pack("<HHI", tag, of, number) + inline.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + heap


def patched():
    picture = Image.new("RGB", (48, 32), (40, 90, 200))
    picture.paste((220, 60, 40), (0, 0, 16, 16))
    return picture


def encode(picture, kind, **options):
    sink = io.BytesIO()
    picture.save(sink, kind, **{"quality": 95, "lossless": True} | options)
    return sink.getvalue()


def corner(picture):
    """Which corner the patch is in."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    red = pixels[..., 0] > pixels[..., 2]
    height, width = red.shape
    rows, columns = red.nonzero()
    return ("t" if rows.mean() < height / 2 else "b") + ("l" if columns.mean() < width / 2 else "r")


def ways(data):
    """The picture as training, scoring and the report read it, and as a mask."""
    found = inspect(data, LIMITS)
    picture, mask, shown = decode(data, LIMITS), decode_mask(data, LIMITS), thumbnail(data)
    assert (found.width, found.height) == picture.size == mask.size == (shown.width, shown.height)
    return picture


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", CORNERS)
def test_each_orientation_is_turned_everywhere_alike(kind, orientation):
    picture = ways(encode(patched(), kind, exif=exif(orientation)))
    assert picture.size == ((48, 32) if orientation < 5 else (32, 48))
    assert corner(picture) == CORNERS[orientation]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("block", "turned"),
    [
        (exif(6, kind=4), True),
        (exif(0), False),
        (exif(9), False),
        (exif(6, kind=3, count=2), True),
        (exif(6, kind=77), False),
        (b"Exif\0\0", False),
        (b"Exif\0\0junk", False),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
        (exif(6)[:24], False),
    ],
    ids=["LONG", "0", "9", "two values", "no such type", "empty", "junk", "offset beyond", "cut off"],
)
def test_an_orientation_that_makes_no_sense_turns_nothing(kind, block, turned):
    picture = ways(encode(patched(), kind, exif=block))
    assert picture.size == ((32, 48) if turned else (48, 32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", UNWRITABLE)
def test_exif_that_cannot_be_written_back_is_no_damage(kind, name):
    picture = ways(encode(patched(), kind, exif=exif(6, UNWRITABLE[name])))
    assert (picture.size, corner(picture)) == ((32, 48), "tr")


def test_a_phone_with_previews_shows_its_first_picture_even_if_their_index_is_broken():
    frames = [patched(), Image.new("RGB", (48, 32), "lime")]
    sink = io.BytesIO()
    frames[0].save(sink, "MPO", save_all=True, append_images=frames[1:], exif=exif(8), quality=95)
    data = sink.getvalue()
    assert corner(ways(data)) == "bl"
    index = data.index(b"MPF\0") + 4
    assert corner(ways(data[:index] + b"\xff" * 20 + data[index + 20 :])) == "bl"


JPEG = encode(patched(), "JPEG", exif=exif(6))
TABLES = JPEG.index(b"\xff\xdb")
STRAY = {
    "zeros": b"\0" * 7,
    "text": b"stray bytes",
    "an escaped 0xff": b"\xff\0ab",
    "fill bytes": b"\xff" * 9,
    "a restart marker": b"\xff\xd3",
    "a segment of length 0": b"\xff\xe5\0\0",
    "a segment of length 1": b"\xff\xfe\0\1",
    "a JFIF that is too short": b"\xff\xe0\0\x06JFIF",
    "an Adobe that is too short": b"\xff\xee\0\x07Adobe",
    "a Photoshop block that is cut off": b"\xff\xed\0\x16Photoshop 3.0\0" + b"8BIM\1\1",
    "a profile that is too short": b"\xff\xe2\0\x0eICC_PROFILE\0",
    "a second EXIF block": b"\xff\xe1\0\x0cExif\0\0junk",
    "JFIF behind EXIF": b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
    "a comment that is no text": b"\xff\xfe\0\x06\xff\xd8\xff\xd9",
}


@pytest.mark.parametrize("name", STRAY)
@pytest.mark.parametrize("place", ["first", "later"])
def test_what_lies_between_segments_does_not_matter(name, place):
    # The first marker must follow the signature: without it no decoder knows the file.
    at = TABLES if place == "first" else JPEG.index(b"\xff\xc0")
    data = JPEG[:at] + STRAY[name] + JPEG[at:]
    assert np.array_equal(np.asarray(ways(data)), np.asarray(ways(JPEG)))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_end_marker_is_whole_and_one_with_less_is_cut_off(options, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, len(mode)), dtype=np.uint8)
    data = encode(Image.frombytes(mode, (60, 50), pixels.tobytes()), "JPEG", **options)
    whole = np.asarray(decode(data, LIMITS))
    for trailer in (b"", b"\0" * 100, b"trailing garbage"):
        assert np.array_equal(np.asarray(decode(data + trailer, LIMITS)), whole)
    for end in (data[:-2], data[:-1]):
        assert np.array_equal(np.asarray(decode(end, LIMITS)), whole)
    for missing in (5, 12, 100, len(data) // 2):
        with pytest.raises(RowError) as cut:
            inspect(data[:-missing], LIMITS)
        assert cut.value.code is Code.IMAGE_TRUNCATED, missing


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_garbage_behind_the_end_of_a_png_or_webp_does_not_matter(mode):
    for kind in ("PNG", "WEBP"):
        data = encode(patched().convert(mode), kind)
        assert np.array_equal(np.asarray(ways(data + b"\0garbage" * 9)), np.asarray(ways(data)))


def test_twelve_bits_are_refused_for_what_they_are():
    at = JPEG.index(b"\xff\xc0") + 4
    with pytest.raises(RowError, match="12 bits per channel") as deep:
        inspect(JPEG[:at] + b"\x0c" + JPEG[at + 1 :], LIMITS)
    assert deep.value.code is Code.IMAGE_FORMAT


def test_a_frame_hidden_behind_stray_bytes_is_counted_before_a_decoder_sees_it():
    bomb = b"\xff\xd8\xff\xfe\0\4ab" + b"junk\0\xff\0" + b"\xff" * 5 + b"\xc2\0\x11\x08\xff\xff\xff\xff\3" + bytes(40)
    with pytest.raises(RowError) as large:
        inspect(bomb, LIMITS)
    assert large.value.code is Code.IMAGE_TOO_MANY_PIXELS
    at = JPEG.index(b"\xff\xc0")
    second = bytearray(JPEG[at : at + 19])
    second[5:9] = b"\xff\xff\xff\xff"
    for data in (JPEG[:at] + bytes(second) + JPEG[at:], JPEG[: at + 19] + bytes(second) + JPEG[at + 19 :]):
        with pytest.raises(RowError):
            inspect(data, LIMITS)


def test_segments_are_those_that_pillow_sees():
    for options in ({}, {"progressive": True}, {"icc_profile": bytes(70000)}, {"comment": b"x" * 300}):
        data = encode(patched(), "JPEG", **options)
        seen = [(0xE0 + int(name[3:]), text) for name, text in JpegImagePlugin.JpegImageFile(io.BytesIO(data)).applist
                if name != "COM"]  # fmt: skip
        found = [(it.marker, data[it.start : it.end]) for it in jpeg_segments(data) if 0xE0 <= it.marker <= 0xEF]
        assert found == seen


def test_pillow_never_turns_what_upright_does_not():
    """Keys of concepts trained before name the same pixels still: on writable EXIF both say the same."""
    for kind, orientation in itertools.product(KINDS, range(10)):
        data = encode(patched(), kind, exif=exif(orientation))
        ours = upright(load_picture(data, picture_format(data)))
        theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert ours.tobytes() == theirs.tobytes()
