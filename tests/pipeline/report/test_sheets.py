"""The pictures of the report: copies that keep their shape, a note where one cannot be shown, a stable sample."""

import base64
import io
import re
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.inputs import videos
from pipeline.report.sheets import CRISP_PX, RENDERS_PER_CONCEPT, THUMBNAIL_PX, PictureReader, thumbnail
from pipeline.worker.provenance import encode_render
from pipeline.worker.settings import Encoding
from tests.support.report import Page, concept, encoded, noise, page_of, picture, publish, render


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (None, "The picture is not there any more."),
        (b"", "The picture is no JPEG, PNG or WebP."),
        (b"GIF89a but not really", "The picture is no JPEG, PNG or WebP."),
        (encoded("red")[:-40], "The picture cannot be read (OSError)."),
    ],
)
def test_picture_that_cannot_be_shown_becomes_a_labelled_placeholder(storage, data, note):
    if data is not None:
        storage.write("images/aa/x.png", data)
    publish(storage, [concept(1, "mug-1")], [render(1, 0, ["mug-1"], storage.uri("images/aa/x.png"))])
    page = Page(page_of(storage))
    assert not page.every("img")
    assert note in page.text
    assert [box["aria-label"] for box in page.every("div") if box.get("class") == "absent"] == [
        f"a photo of a {{mug-1}} on the beach: {note}"
    ]


def test_bomb_is_refused_by_its_header(storage):
    bomb = Image.new("1", (9000, 9000))
    buffer = io.BytesIO()
    bomb.save(buffer, "PNG")
    storage.write("images/aa/x.png", buffer.getvalue())
    found = PictureReader(storage).read(storage.uri("images/aa/x.png"))
    assert found.src is None
    assert found.note == "The picture has 9000 x 9000 pixels and is not shown."


@settings(max_examples=25)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    mode=st.sampled_from(["RGB", "RGBA", "L", "P", "1", "LA", "CMYK"]),
)
def test_thumbnail_is_small_and_keeps_shape(width, height, mode):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    shown = thumbnail(buffer.getvalue())
    assert shown.src is not None
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.src.partition(",")[2])))
    assert decoded.size == (shown.width, shown.height)
    assert max(decoded.size) == min(max(width, height), THUMBNAIL_PX)
    assert shown.crisp == (max(width, height) <= CRISP_PX)


def test_small_picture_keeps_every_pixel_and_no_metadata():
    original = Image.open(io.BytesIO(noise(3, 64))).convert("RGB")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    original.save(buffer, "PNG", exif=exif)
    shown = thumbnail(buffer.getvalue())
    assert shown.src is not None
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.src.partition(",")[2])))
    assert decoded.convert("RGB").tobytes() == original.tobytes()
    assert not decoded.getexif()


def test_photo_is_shown_upright():
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    shown = thumbnail(buffer.getvalue())
    assert (shown.width, shown.height) == (20, 40)


def test_sample_stays_when_the_catalogue_grows(storage):
    def shown(count: int) -> set[str]:
        publish(storage, [concept(row, f"mug-{row:03d}") for row in range(1, count + 1)], [])
        return set(re.findall(r'<h3><span class="mono theirs">([^<]+)<', page_of(storage, max_concepts=20)))

    first, second = shown(100), shown(101)
    assert len(first) == len(second) == 20
    assert len(first & second) >= 19


def test_extra_columns_may_bear_the_names_that_a_query_would_give_its_own(storage):
    names = ("total", "nth", "place", "value", "median")
    extra = dict.fromkeys(names, "theirs")
    uri = picture(storage, encoded("red"))
    ways = ("in the snow", "in space")
    renders = [
        render(row, index, ["mug-1"], uri, prompt=f"a {{mug-1}} {way}", **extra)
        for row, way in enumerate(ways, 1)
        for index in range(RENDERS_PER_CONCEPT)
    ]
    publish(storage, [concept(1, "mug-1", **extra)], renders, [pa.field(name, pa.string()) for name in names])
    page = page_of(storage)
    assert page.count("theirs") >= len(names)
    # Every prompt is shown before the second picture of any.
    assert all(page.count(way) > 1 for way in ways)
    assert page.count(ways[0]) == page.count(ways[1])


def test_of_a_video_the_first_frame_is_shown_or_why_not(storage, monkeypatch):
    frames = np.stack([np.full((16, 24, 3), value, np.uint8) for value in (40, 200)])
    encode = partial(encode_render, render_key="a" * 64, weights=(), base_digest="base", fps=8)
    for form in ("webp", "mp4"):
        data = encode(frames, encoding=Encoding(form))
        shown = thumbnail(data)
        assert (shown.width, shown.height, shown.crisp) == (24, 16, True)
        assert shown.src is not None
        decoded = Image.open(io.BytesIO(base64.b64decode(shown.src.partition(",")[2]))).convert("RGB")
        assert abs(decoded.getpixel((8, 8))[0] - 40) <= 2
        storage.write(f"images/aa/x.{form}", data)
        storage.write(f"images/aa/cut.{form}", data[: len(data) // 2])
        cut = PictureReader(storage).read(storage.uri(f"images/aa/cut.{form}"))
        assert cut.src is None or form == "webp"  # its first frame is whole
    assert PictureReader(storage).read(storage.uri("images/aa/cut.mp4")).note.startswith("the video is damaged")
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    assert "pip install 'perfusion-pipeline[video]'" in PictureReader(storage).read(storage.uri("images/aa/x.mp4")).note
    assert PictureReader(storage).read(storage.uri("images/aa/x.webp")).src is not None
