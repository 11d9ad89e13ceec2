"""What each kind of mask file marks, and which of them mean something else than they did in earlier versions."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.contract.errors import Code, RowError
from pipeline.inputs.pictures import InputLimits, decode_mask, inspect

LIMITS = InputLimits()
INSIDE, EDGE, OUTSIDE = (2, 2), (12, 2), (30, 2)


def encode(picture, kind="PNG", **options):
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def drawn(inside, edge, outside, dtype=np.uint8):
    """The product on the left, a soft edge, and the background."""
    values = np.full((20, 40), outside, dtype)
    values[:, :10], values[:, 10:15] = inside, edge
    return Image.fromarray(values)


def cutout(colour=(10, 20, 30), edge=128, mode="RGBA"):
    picture = Image.new("RGBA", (40, 20), (*colour, 0))
    picture.paste((*colour, 255), (0, 0, 10, 20))
    picture.paste((*colour, edge), (10, 0, 15, 20))
    return picture.convert(mode)


def palette(transparent):
    picture = Image.new("P", (40, 20), 1)
    picture.putpalette([200, 0, 0, 0, 90, 0])
    picture.paste(0, (0, 0, 10, 20))
    return encode(picture, transparency=transparent)


def keyed(mode, key):
    picture = Image.new(mode, (40, 20), key)
    picture.paste(7 if mode == "L" else (7, 7, 7), (0, 0, 10, 20))
    return encode(picture, transparency=key)


def deep_keyed():
    """16-bit grey whose value 9 is transparent."""
    return encode(drawn(40_000, 40_000, 9, np.uint16), transparency=9)


CASES = {
    "1 bit": (encode(drawn(255, 0, 0).convert("1")), (255, 0, 0), ""),
    "8 bit 0 and 255": (encode(drawn(255, 0, 0)), (255, 0, 0), ""),
    "8 bit 0 and 1": (encode(drawn(1, 0, 0)), (1, 0, 0), ""),
    "8 bit soft": (encode(drawn(255, 128, 0)), (255, 128, 0), ""),
    "16 bit 0 and 1": (encode(drawn(1, 0, 0, np.uint16)), (1, 0, 0), ""),
    "16 bit 0 and 255": (encode(drawn(255, 100, 0, np.uint16)), (255, 100, 0), ""),
    "16 bit 0 and 256": (encode(drawn(256, 128, 0, np.uint16)), (255, 128, 0), "scaled"),
    "16 bit of 12": (encode(drawn(4095, 2048, 0, np.uint16)), (255, 128, 0), "scaled"),
    "16 bit 0 and 65535": (encode(drawn(65535, 0, 0, np.uint16)), (255, 0, 0), ""),
    "16 bit soft": (encode(drawn(65535, 32768, 0, np.uint16)), (255, 128, 0), ""),
    "palette": (encode(drawn(255, 0, 0).convert("P")), (255, 0, 0), ""),
    "colour": (encode(drawn(255, 128, 0).convert("RGB")), (255, 128, 0), ""),
    "JPEG": (encode(drawn(255, 255, 0), "JPEG", quality=100), (255, 255, 0), ""),
    "opaque RGBA": (encode(drawn(255, 128, 0).convert("RGBA")), (255, 128, 0), ""),
    "opaque grey and alpha": (encode(drawn(255, 128, 0).convert("LA")), (255, 128, 0), ""),
    "dark cut-out": (encode(cutout()), (255, 128, 0), "alpha"),
    "black cut-out": (encode(cutout((0, 0, 0))), (255, 128, 0), "alpha"),
    "white cut-out": (encode(cutout((255, 255, 255))), (255, 128, 0), ""),
    "grey cut-out": (encode(cutout(mode="LA")), (255, 128, 0), "alpha"),
    "WebP cut-out": (encode(cutout(), "WEBP", lossless=True, exact=True), (255, 128, 0), "alpha"),
    "palette cut-out": (palette(1), (255, 0, 0), "alpha"),
    "soft palette cut-out": (palette(bytes((255, 128))), (255, 128, 128), "alpha"),
    "grey with a transparent value": (keyed("L", 90), (255, 0, 0), "alpha"),
    "colour with a transparent value": (keyed("RGB", (9, 90, 9)), (255, 0, 0), "alpha"),
    "16 bit with a transparent value": (deep_keyed(), (255, 255, 0), "alpha"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_mask_marks_the_product(name):
    data, values, reading = CASES[name]
    mask = decode_mask(data, LIMITS)
    assert mask.mode == "L"
    assert tuple(mask.getpixel(place) for place in (INSIDE, EDGE, OUTSIDE)) == values
    assert inspect(data, LIMITS, "mask").reading == reading


def test_sixteen_bits_mean_what_their_eight_bit_twin_means():
    for top in (1, 2, 7, 200, 255):
        twins = [encode(drawn(top, top // 2, 0, dtype)) for dtype in (np.uint8, np.uint16)]
        assert len({decode_mask(data, LIMITS).tobytes() for data in twins}) == 1


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.new("RGBA", (40, 20), (255, 255, 255, 0))),
        encode(Image.new("LA", (40, 20), (255, 0))),
        encode(drawn(0, 0, 0)),
        encode(drawn(0, 0, 0, np.uint16)),
    ],
    ids=["clear", "clear grey", "black", "black at 16 bits"],
)
def test_a_mask_that_marks_nothing_is_refused(data):
    for ask in (lambda: decode_mask(data, LIMITS), lambda: inspect(data, LIMITS, "mask")):
        with pytest.raises(RowError) as empty:
            ask()
        assert empty.value.code is Code.MASK_EMPTY
    assert inspect(data, LIMITS).reading == ""
