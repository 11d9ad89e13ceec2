"""Renders as files: pixels are lossless, provenance is readable, and an incomplete file is not accepted."""

import hashlib
import io
import zlib
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pipeline.contract.keys import digest
from pipeline.inputs.headers import picture_format, picture_size
from pipeline.worker.provenance import answers, encode_render
from pipeline.worker.settings import Encoding

KEY, OTHER = "a" * 64, "b" * 64
PNG, WEBP, LOSSY = Encoding(), Encoding("webp"), Encoding("webp", 80)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encoded(pixels=PIXELS, key=KEY, weights=("w1", "w2"), base="base", encoding=PNG):
    return encode_render(pixels, render_key=key, weights=weights, base_digest=base, encoding=encoding)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pixels_come_back(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = encoded(pixels)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (width, height))
        assert np.array_equal(np.asarray(picture), pixels)
    assert answers(data, KEY)


def test_metadata_says_what_made_it():
    with Image.open(io.BytesIO(encoded())) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        assert picture.text["perfusion:render_key"] == KEY
        assert picture.text["perfusion:weights_sha256"] == "w1,w2"
        assert picture.text["perfusion:base_sha256"] == "base"
        packet = ET.fromstring(picture.info["xmp"])
    namespace = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
    [source_type] = packet.iter(f"{namespace}DigitalSourceType")
    assert source_type.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_equal_input_gives_equal_bytes_and_every_input_counts():
    assert encoded() == encoded(PIXELS.copy())
    changed = [encoded(key=OTHER), encoded(weights=("w1",)), encoded(base="other"), encoded(PIXELS[:, ::-1])]
    assert len({encoded(), *changed}) == 5


def test_digest_is_that_of_the_bytes():
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_another_render_does_not_answer():
    assert not answers(encoded(key=OTHER), KEY)
    assert not answers(encoded(), KEY[:-1])
    foreign = io.BytesIO()
    Image.fromarray(PIXELS).save(foreign, "PNG")
    assert not answers(foreign.getvalue(), KEY)
    jpeg = io.BytesIO()
    Image.fromarray(PIXELS).save(jpeg, "JPEG", comment=KEY)
    assert not answers(jpeg.getvalue(), KEY)
    assert not answers(b"", KEY)
    assert not answers(b"no picture at all", KEY)


def test_no_part_of_a_render_answers():
    data = encoded()
    assert not [length for length in range(len(data)) if answers(data[:length], KEY)]


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_render_does_not_answer_as_another(data):
    """Flipping a bit of the pixels' stream is seen; the file either answers whole or not at all."""
    whole = encoded()
    start, end = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 8
    place = data.draw(st.integers(start, end - 1))
    damaged = bytearray(whole)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    assert not answers(bytes(damaged), KEY)


def test_a_render_whose_text_was_forged_is_found_by_its_digest():
    """`answers` trusts the storage: what can write there can write anything. Digests in tables differ."""
    forged = encoded().replace(KEY.encode(), OTHER.encode())
    assert digest(forged) != digest(encoded())


def test_a_text_bomb_does_not_answer():
    chunk = b"zTXt" + b"k\0\0" + zlib.compress(bytes(70 * 2**20), level=1)
    whole = encoded()
    place = whole.index(b"IDAT") - 4
    bomb = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    assert not answers(whole[:place] + bomb + whole[place:], OTHER)


# WebP


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pixels_come_back_from_lossless_webp(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = encoded(pixels, encoding=WEBP)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("WEBP", "RGB", (width, height))
        assert np.array_equal(np.asarray(picture), pixels)
    assert picture_size(data, picture_format(data)) == (width, height)
    assert answers(data, KEY, "webp")


def test_lossy_webp_is_small_and_its_quality_counts():
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    best, good, poor = (encoded(ramp, encoding=Encoding("webp", quality)) for quality in (100, 80, 1))
    assert len(best) > len(good) > len(poor)
    with Image.open(io.BytesIO(good)) as picture:
        off = np.abs(np.asarray(picture).astype(int) - ramp)
        assert 0 < off.mean() < 4
    assert answers(good, KEY, "webp")


@pytest.mark.parametrize("encoding", [WEBP, LOSSY])
def test_metadata_of_webp_says_what_made_it(encoding):
    data = encoded(encoding=encoding)
    with Image.open(io.BytesIO(data)) as picture:
        packet = ET.fromstring(picture.info["xmp"])
    [source_type] = packet.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert source_type.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    [facts] = packet.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    ours = {name: value for name, value in facts.items() if name.startswith("{urn:perfusion:render}")}
    assert {name.partition("}")[2]: value for name, value in ours.items()} == {
        "render_key": KEY,
        "weights_sha256": "w1,w2",
        "base_sha256": "base",
        "image_sha256": hashlib.sha256(data[30 : data.index(b"XMP ")]).hexdigest(),
    }


@pytest.mark.parametrize("encoding", [WEBP, LOSSY])
def test_of_webp_as_well_equal_input_gives_equal_bytes_and_every_input_counts(encoding):
    same = encoded(encoding=encoding)
    assert same == encoded(PIXELS.copy(), encoding=encoding)
    other = [{"key": OTHER}, {"weights": ("w1",)}, {"base": "other"}, {"pixels": PIXELS[:, ::-1]}]
    assert len({same, *(encoded(encoding=encoding, **change) for change in other)}) == 5


@pytest.mark.parametrize("encoding", [WEBP, LOSSY])
def test_another_webp_file_does_not_answer(encoding):
    data = encoded(encoding=encoding)
    assert not answers(data, OTHER, "webp")
    assert not answers(data, KEY[:-1], "webp")
    assert not answers(data, KEY, "png")
    assert not answers(encoded(), KEY, "webp")
    foreign = io.BytesIO()
    Image.fromarray(PIXELS[::-1]).save(foreign, "WEBP", xmp=data[data.index(b"XMP ") + 8 :])
    assert not answers(foreign.getvalue(), KEY, "webp")
    assert not [length for length in range(len(data)) if answers(data[:length], KEY, "webp")]
    assert not answers(data + b"more", KEY, "webp")


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_webp_file_does_not_answer(data):
    """WebP has no checksums: most flipped bits of its stream give another picture, without an error."""
    whole = encoded(encoding=WEBP)
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(30, whole.index(b"XMP ") - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not answers(bytes(damaged), KEY, "webp")


def test_the_level_of_png_changes_bytes_and_no_pixels():
    smooth = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    files = [encoded(smooth, encoding=Encoding(png_level=level)) for level in (0, 1, 9)]
    assert len(files[0]) > len(files[1]) > len(files[2])
    assert all(answers(data, KEY) for data in files)
    assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(data))), smooth) for data in files)
