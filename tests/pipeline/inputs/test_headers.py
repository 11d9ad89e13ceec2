"""What a photo's first bytes say: format and size, as the decoder has them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.inputs.headers import picture_format, picture_size
from pipeline.inputs.pictures import InputLimits, inspect
from tests.support.photos import encode, noise

LIMITS = InputLimits()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(16, 16), (17, 300), (640, 31)])
@pytest.mark.parametrize("options", [{}, {"quality": 30, "lossless": True, "progressive": True}])
def test_the_header_says_what_the_decoder_says(kind, size, options):
    data = encode(noise(1, size), kind, **options)
    assert picture_format(data) == kind
    assert picture_size(data, kind) == size
    found = inspect(data, LIMITS)
    assert (found.format, found.width, found.height) == (kind, *size)
    assert len(found.sha256) == 64


def test_a_webp_with_alpha_and_metadata_has_its_size_in_another_place():
    data = encode(noise(1, (50, 20), "RGBA"), "WEBP", exif=Image.Exif().tobytes() or b"Exif\0\0", lossless=True)
    assert picture_size(data, "WEBP") == (50, 20)
    extended = encode(noise(1, (50, 20), "RGBA"), "WEBP", icc_profile=b"x" * 200)
    assert extended[12:16] == b"VP8X"
    assert picture_size(extended, "WEBP") == (50, 20)


@settings(max_examples=200)
@given(
    start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\0\0\0WEBPVP8 "]),
    rest=st.binary(max_size=80),
)
def test_headers_of_anything_never_do_worse_than_a_value_error(start, rest):
    data = start + rest
    kind = picture_format(data)
    if kind is not None:
        try:
            width, height = picture_size(data, kind)
        except ValueError:
            return
        assert width > 0
        assert height > 0
