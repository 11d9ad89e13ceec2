"""Videos as files: their frames and times come back, equal frames give equal bytes, and each file says what made it."""

import hashlib
import io
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from fractions import Fraction
from itertools import accumulate

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.contract.errors import Code, RowError
from pipeline.contract.keys import digest
from pipeline.inputs import videos as reading
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.videos import VideoError, ensure_mp4, frames_of, is_video, poster, spaced
from pipeline.worker.provenance import answers, encode_render
from pipeline.worker.settings import Encoding
from pipeline.worker.videos import durations_ms, mp4

KEY, OTHER = "a" * 64, "b" * 64
WEBP, LOSSY, MP4 = Encoding("webp"), Encoding("webp", 80), Encoding("mp4")
EVERY = pytest.mark.parametrize("encoding", [WEBP, LOSSY, MP4], ids=["webp", "lossy webp", "mp4"])
LIMITS = InputLimits(min_side=1)
NOISE = np.random.default_rng(0).integers(0, 256, (5, 24, 40, 3), dtype=np.uint8)


def smooth(frames=16, height=64, width=96):
    """Colours that drift over the frames."""
    y, x = np.mgrid[0:height, 0:width]
    drawn = [
        np.stack([np.sin(x / 20 + at / 5), np.cos(y / 15 - at / 7), np.sin((x + y) / 30 + at / 9)], -1)
        for at in range(frames)
    ]
    return (127.5 + 110 * np.stack(drawn)).round().astype(np.uint8)


def encoded(pixels=NOISE, *, encoding=WEBP, fps=8, key=KEY, weights=("w1", "w2"), base="base", motion="motion"):
    return encode_render(
        pixels, render_key=key, weights=weights, base_digest=base, fps=fps, motion=motion, encoding=encoding
    )


def decoded(data, most=1000):
    return np.stack([np.asarray(frame) for frame in frames_of(data, LIMITS, most)])


def psnr(one, other):
    """Of each frame, in dB."""
    error = ((one.astype(float) - other) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-9))


# Frames and times


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_frames_come_back_from_lossless_webp_bit_for_bit(frames, height, width, fps, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    data = encoded(pixels, fps=fps)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size, picture.n_frames, picture.info["loop"]) == (
            "WEBP",
            (width, height),
            frames,
            0,
        )
        for number in range(frames):
            picture.seek(number)
            picture.load()
            assert np.array_equal(np.asarray(picture.convert("RGB")), pixels[number])
    assert np.array_equal(decoded(data), pixels)
    assert answers(data, KEY, "webp")


@pytest.mark.parametrize("fps", [1, 7, 8, 24, 25, 30, 60])
def test_times_of_webp_are_exact_to_a_millisecond_in_total(fps):
    frames = 256
    assert all(abs(total - Fraction(1000 * (at + 1), fps)) <= 0.5 for at, total in
               enumerate(accumulate(durations_ms(frames, fps))))  # fmt: skip
    # libwebp's decoder gives the end of each frame.
    data = encoded(smooth(frames, 8, 8), fps=fps)
    times = []
    with Image.open(io.BytesIO(data)) as picture:
        for number in range(frames):
            picture.seek(number)
            picture.load()
            times.append(picture.info["duration"])
    assert sum(times) == pytest.approx(1000 * frames / fps, abs=1)
    assert max(times) - min(times) <= 1


def test_equal_frames_stay_frames_of_their_own():
    still = np.repeat(smooth(1), 6, axis=0)
    for encoding in (WEBP, LOSSY, MP4):
        assert len(decoded(encoded(still, encoding=encoding))) == 6


@pytest.mark.parametrize(("frames", "fps"), [(2, 1), (16, 8), (24, 24), (33, 30), (256, 60)])
def test_mp4_has_the_frames_the_rate_and_the_size(frames, fps):
    pixels = smooth(frames)
    data = encoded(pixels, fps=fps, encoding=MP4)
    with av.open(io.BytesIO(data)) as container:
        [stream] = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.average_rate, stream.width, stream.height) == (frames, fps, 96, 64)
        assert stream.duration * stream.time_base == Fraction(frames, fps)
        assert [frame.time for frame in container.decode(stream)] == pytest.approx([at / fps for at in range(frames)])
    assert psnr(decoded(data), pixels).min() > 35


def test_mp4_keeps_colours():
    colours = [(230, 0, 40), (0, 200, 60), (20, 30, 240), (250, 240, 10), (255, 255, 255), (0, 0, 0)]
    for colour in colours:
        plain = np.broadcast_to(np.array(colour, np.uint8), (2, 32, 32, 3))
        found = decoded(encoded(np.ascontiguousarray(plain), encoding=MP4))
        assert np.abs(found.astype(int) - plain).max() <= 4


def test_a_player_can_begin_before_it_has_all_of_an_mp4_file():
    data = encoded(smooth(), encoding=MP4)
    assert data.index(b"moov") < data.index(b"mdat") < data.index(b"uuid")


# Equal bytes


@EVERY
def test_equal_input_gives_equal_bytes_and_every_input_counts(encoding):
    same = encoded(smooth(), encoding=encoding)
    assert same == encoded(smooth(), encoding=encoding)
    changes = [{"key": OTHER}, {"weights": ("w1",)}, {"base": "other"}, {"motion": "other"}, {"fps": 9}]
    changed = [encoded(smooth(), **{"encoding": encoding, **change}) for change in changes]
    changed.append(encoded(smooth()[::-1], encoding=encoding))
    assert len({same, *changed}) == 7


def test_bytes_of_mp4_do_not_depend_on_what_was_in_memory():
    """x264 reads memory that it has not set, with some of its settings."""
    code = (
        "import hashlib, numpy as np; from pipeline.worker.videos import mp4; "
        "y, x = np.mgrid[0:64, 0:96]; "
        "p = np.stack([np.stack([x * 2 + at, y * 3 - at, x + y], -1) for at in range(16)]).astype(np.uint8); "
        "print(hashlib.sha256(mp4(p, 8)).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "MALLOC_PERTURB_": filling},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for filling in ("0", "1", "77", "200")
    }
    assert len(found) == 1
    y, x = np.mgrid[0:64, 0:96]
    pixels = np.stack([np.stack([x * 2 + at, y * 3 - at, x + y], -1) for at in range(16)]).astype(np.uint8)
    assert {digest(mp4(pixels, 8)) for _ in range(5)} == {next(iter(found)).strip()}


# Provenance


@EVERY
def test_metadata_says_what_made_it(encoding):
    data = encoded(smooth(), encoding=encoding)
    start = data.index(b"<x:xmpmeta")
    packet = ET.fromstring(data[start : data.index(b"</x:xmpmeta>") + 12].decode())
    [source_type] = packet.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert source_type.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    [facts] = packet.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    image = data[30 : data.index(b"XMP ")] if encoding != MP4 else data[: data.index(b"uuid") - 4]
    ours = {name: value for name, value in facts.items() if name.startswith("{urn:perfusion:render}")}
    assert {name.partition("}")[2]: value for name, value in ours.items()} == {
        "render_key": KEY,
        "weights_sha256": "w1,w2",
        "base_sha256": "base",
        "motion_sha256": "motion",
        "frames": "16",
        "fps": "8",
        "image_sha256": hashlib.sha256(image).hexdigest(),
    }


@EVERY
def test_only_the_whole_file_of_the_key_answers(encoding):
    data, form = encoded(encoding=encoding), encoding.format
    assert answers(data, KEY, form)
    assert not answers(data, OTHER, form)
    assert not answers(data, KEY[:-1], form)
    assert not any(answers(data, KEY, other) for other in {"png", "webp", "mp4"} - {form})
    assert not [length for length in range(len(data)) if answers(data[:length], KEY, form)]
    assert not answers(data + b"more", KEY, form)


def test_foreign_files_do_not_answer():
    stream = io.BytesIO()
    frames = [Image.fromarray(frame) for frame in NOISE]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], duration=125, lossless=True)
    assert not answers(stream.getvalue(), KEY, "webp")
    assert not answers(mp4(NOISE, 8), KEY, "mp4")
    ours = encoded(smooth(), encoding=MP4)
    packet = ours[ours.index(b"uuid") - 4 :]
    assert not answers(mp4(NOISE, 8) + packet, KEY, "mp4")  # the packet of another video
    assert not answers(packet, KEY, "mp4")
    assert not answers(bytes(16), KEY, "mp4")


@pytest.mark.parametrize("encoding", [WEBP, MP4], ids=["webp", "mp4"])
@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_video_does_not_answer(encoding, data):
    whole = encoded(smooth(4, 16, 16), encoding=encoding)
    end = whole.index(b"XMP ") if encoding == WEBP else whole.index(b"uuid")
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(30, end - 5))] ^= 1 << data.draw(st.integers(0, 7))
    assert not answers(bytes(damaged), KEY, encoding.format)


# Reading


@EVERY
def test_the_poster_is_the_first_frame_and_frames_are_evenly_spaced(encoding):
    pixels = smooth(40)
    data = encoded(pixels, encoding=encoding)
    assert is_video(data)
    assert psnr(np.asarray(poster(data, LIMITS))[None], pixels[:1]).min() > 30
    some = decoded(data, most=5)
    assert psnr(some, pixels[[0, 10, 20, 29, 39]]).min() > 30


def test_numbers_are_evenly_spaced_with_both_ends():
    assert spaced(3, 5) == [0, 1, 2]
    assert spaced(16, 16) == list(range(16))
    assert spaced(256, 3) == [0, 128, 255]


def test_a_picture_is_a_video_of_one_frame():
    data = encode_render(NOISE[0], render_key=KEY, weights=(), base_digest="base")
    assert not is_video(data)
    assert np.array_equal(decoded(data)[0], NOISE[0])


@pytest.mark.parametrize("encoding", [WEBP, MP4], ids=["webp", "mp4"])
def test_what_cannot_be_read_says_why(encoding):
    data = encoded(smooth(), encoding=encoding)
    for broken in (data[:500], data[:12] + bytes(200)):
        with pytest.raises(RowError) as caught:
            frames_of(broken if encoding == MP4 else data[:31] + broken[31:], LIMITS, 16)
        assert caught.value.code in (Code.IMAGE_CORRUPT, Code.IMAGE_TRUNCATED)
    with pytest.raises(RowError) as caught:
        frames_of(data, InputLimits(max_pixels=64 * 96 - 1), 16)
    assert caught.value.code == Code.IMAGE_TOO_MANY_PIXELS


def test_without_the_package_mp4_is_refused_with_the_remedy(monkeypatch):
    data = encoded(smooth(2), encoding=MP4)
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    for call in (ensure_mp4, lambda: mp4(NOISE, 8), lambda: poster(data, LIMITS), lambda: frames_of(data, LIMITS, 2)):
        with pytest.raises(VideoError, match=r"pip install 'perfusion-pipeline\[video\]'"):
            call()
    assert len(decoded(encoded())) == 5  # WebP needs no package
