"""Input pictures: what is refused, with which code, and that whatever is accepted decodes."""

import io
import os
import struct
import threading
import time
import tracemalloc
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.contract.errors import Code, RowError, Status
from pipeline.inputs.fetch import (
    InputCache,
    InputLimits,
    check_allowed,
    decode,
    decode_mask,
    examine,
    fetch,
    inspect,
    locate,
    redact,
    resolve,
)
from pipeline.inputs.headers import picture_format, picture_size
from pipeline.storage.objects import Storage
from tests.support import icc

LIMITS = InputLimits()


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed=0, size=(40, 32), mode="RGB"):
    shape = (size[1], size[0]) + ((len(mode),) if len(mode) > 1 else ())
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8), mode=None)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *, body=b"", ihdr=b"\x08\x02\0\0\0"):
    header = chunk(b"IHDR", struct.pack(">II", width, height) + ihdr)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def code_of(act, *arguments):
    with pytest.raises(RowError) as caught:
        act(*arguments)
    assert len(str(caught.value)) > 20
    return caught.value.code


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


BASE = "s3://bucket/shop"


@pytest.mark.parametrize(
    ("uri", "base", "expected"),
    [
        ("a/b.png", BASE, "s3://bucket/shop/a/b.png"),
        ("./a.png", BASE + "/", "s3://bucket/shop/a.png"),
        ("a..b/c...png", BASE, "s3://bucket/shop/a..b/c...png"),
        ("/data/x.png", BASE, "file:///data/x.png"),
        ("file:///data//./x.png", BASE, "file:///data/x.png"),
        ("S3://Other/X.png", BASE, "s3://Other/X.png"),
        ("memory:///x.png", BASE, "memory://x.png"),
        (
            "az://container@account.dfs.core.windows.net/x.png",
            BASE,
            "az://container@account.dfs.core.windows.net/x.png",
        ),
        ("https://cdn.example/x.png?w=5", BASE, "https://cdn.example/x.png?w=5"),
        ("photo one é.png", BASE, "s3://bucket/shop/photo one é.png"),
    ],
)
def test_addresses_become_absolute(uri, base, expected):
    assert resolve(uri, base) == expected
    assert resolve(expected, "file:///elsewhere") == expected


@pytest.mark.parametrize(
    "uri",
    [
        "../x.png",
        "a/../x.png",
        "s3://bucket/../other/x.png",
        "https://cdn.example/a/%2e%2e/x.png",
        "a\\..\\x.png",
        "a\x00.png",
        "a\n.png",
        "ftp://host/x.png",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "file:x.png",
        "file:/data/x.png",
        "file:photos/x.png",
        "s3:/bucket/x.png",
        "s3:bucket/x.png",
        "https:/cdn.example/x.png",
        "S3:/bucket/x.png",
        "%2e%2e/x.png",
        "file:///photos/%2E%2e/x.png",
        "file://host/x.png",
        "zip://x.png::s3://bucket/a.zip",
        "s3://AKIA:hunter2@bucket/x.png",
        "https://user:hunter2@cdn.example/x.png",
        "https://cdn.example/x.png?X-Amz-Signature=hunter2",
        "https://cdn.example/x.png?a=1&sig=hunter2",
    ],
)
def test_addresses_that_are_refused(uri):
    with pytest.raises(RowError) as caught:
        resolve(uri, BASE)
    assert caught.value.code is Code.URI_NOT_ALLOWED
    assert "hunter2" not in str(caught.value)
    assert "\x00" not in str(caught.value)
    assert "hunter2" not in redact(uri)


def test_a_slash_that_is_missing_is_named():
    for uri, words in {
        "file:photos/x.png": "'file:' must be followed by two slashes; write file:///folder/name, or the path alone",
        "file:/x.png": "'file:' must be followed by two slashes",
        "s3:/bucket/x.png": "'s3:' must be followed by two slashes; write s3://bucket/name",
        "mailto:x": "it is neither a path nor a URI",
    }.items():
        with pytest.raises(RowError) as caught:
            resolve(uri, BASE)
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "printed"),
    [
        ("写真/カップ 1.png", "写真/カップ 1.png"),
        ("fotos/Tässchen ß.png", "fotos/Tässchen ß.png"),
        ("emoji 🫖.png", "emoji 🫖.png"),
        ("a\nb\x1b[2J.png", "a\\nb\\x1b[2J.png"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("lone \ud800.png", "lone \\ud800.png"),
        ("it's.png", "it's.png"),
        ("https://user:hunter2@cdn.example/é.png?sig=hunter2", "https://cdn.example/é.png"),
    ],
)
def test_addresses_are_printed_as_people_write_them(uri, printed):
    assert redact(uri) == printed
    redact(uri).encode()


def test_a_percent_sign_is_decoded_only_where_nothing_else_is_there(tmp_path):
    names = ("my photo.png", "50%20off.png", "写真.png", "a%b.png")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path.parent / "outside.png").write_bytes(b"x")
    base = f"file://{tmp_path}"
    cases = {
        f"{base}/my%20photo.png": "my photo.png",
        "my%20photo.png": "my photo.png",  # a plain path, where no file has the name as it is written
        f"{base}/%E5%86%99%E7%9C%9F.png": "写真.png",
        f"{base}/a%b.png": "a%b.png",
        "50%20off.png": "50%20off.png",
        f"{base}/none%20there.png": "none%20there.png",
        f"{base}/x%2F..%2F..%2Foutside.png": "x%2F..%2F..%2Foutside.png",
        f"{base}/my%20photo.png%00": "my%20photo.png%00",
    }
    for uri, name in cases.items():
        assert locate(resolve(uri, base)) == f"{base}/{name}", uri
    (tmp_path / "my%20photo.png").write_bytes(b"y")
    assert locate(f"{base}/my%20photo.png") == f"{base}/my%20photo.png"
    assert locate("s3://bucket/my%20photo.png") == "s3://bucket/my%20photo.png"


SIGNED = [
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20261126&X-Amz-Expires=60&X-Amz-Signature=hunter2",
    "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=a%40b&X-Goog-Signature=hunter2",
    "AWSAccessKeyId=AKIA&Expires=1&Signature=hunter2%2B%3D",
    "GoogleAccessId=a%40b&Expires=1&Signature=hunter2",
    "sv=2024-01-01&sr=b&sp=r&sig=hunter2%2Fa%2B%3D",
    "Expires=1&Signature=hunter2~_&Key-Pair-Id=K1",
    "alt=media&token=hunter2",
]


@pytest.mark.parametrize("query", SIGNED, ids=lambda query: query.partition("=")[0])
def test_a_presigned_address_has_its_own_sentence_and_its_setting(query):
    uri = f"https://cdn.example/img/x y.png?{query}"
    with pytest.raises(RowError, match=r"pre-signed address.*inputs\.presigned") as caught:
        resolve(uri, BASE)
    assert "hunter2" not in str(caught.value)
    assert resolve(uri, BASE, presigned=True) == uri
    check_allowed(uri, ("https://cdn.example/img",))
    assert code_of(check_allowed, uri, ()) is Code.URI_NOT_ALLOWED
    for other in (f"s3://bucket/x.png?{query}", f"https://user:hunter2@cdn.example/x.png?{query}"):
        with pytest.raises(RowError, match="carries credentials") as caught:
            resolve(other, BASE, presigned=True)
        assert "hunter2" not in str(caught.value)


def test_allowed_prefixes_are_whole_folders(tmp_path):
    allow = InputLimits(allow=("s3://bucket/photos/", "https://cdn.example/img", str(tmp_path))).allow
    for uri in ("s3://bucket/photos/x.png", "https://cdn.example/img/x.png", f"file://{tmp_path}/x.png"):
        check_allowed(uri, allow)
    for uri in ("s3://bucket/photos-secret/x.png", "s3://bucket/x", "https://cdn.example.evil/img/x", "file:///etc/x"):
        assert code_of(check_allowed, uri, allow) is Code.URI_NOT_ALLOWED
    check_allowed("s3://root/inputs/ab/x", InputLimits(allow=allow).allowing("s3://root/inputs/").allow)
    assert InputLimits().allowing("s3://root").allow == ()
    check_allowed("gs://anything/x", ())
    assert code_of(check_allowed, "http://cdn.example/x", ()) is Code.URI_NOT_ALLOWED
    check_allowed("http://any.where/x", ("http://",))
    check_allowed("file:///x", ("file://",))


def test_a_link_out_of_an_allowed_folder_is_refused(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "x.png").write_bytes(encode(noise(), "PNG"))
    (inside / "x.png").symlink_to(outside / "x.png")
    (tmp_path / "alias").symlink_to(inside)
    (inside / "own.png").write_bytes(encode(noise(), "PNG"))
    limits = InputLimits(allow=(str(tmp_path / "alias"),))
    assert fetch(f"file://{inside}/own.png", limits)
    assert fetch(f"file://{tmp_path}/alias/own.png", limits)
    assert code_of(fetch, f"file://{inside}/x.png", limits) is Code.URI_NOT_ALLOWED
    assert fetch(f"file://{inside}/x.png", LIMITS)


def test_bytes_are_capped_whatever_the_size_says(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"x" * 100)
    assert len(fetch(f"file://{path}", InputLimits(max_bytes=100))) == 100
    assert code_of(fetch, f"file://{path}", InputLimits(max_bytes=99)) is Code.IMAGE_TOO_LARGE
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte that takes no space
    assert code_of(fetch, f"file://{path}", LIMITS) is Code.IMAGE_TOO_LARGE
    os.mkfifo(tmp_path / "pipe.png")
    assert code_of(fetch, f"file://{tmp_path}/pipe.png", LIMITS) is Code.IMAGE_UNREADABLE
    assert code_of(fetch, "file:///dev/zero", LIMITS) is Code.IMAGE_UNREADABLE
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert code_of(fetch, f"file://{tmp_path}/zero.png", LIMITS) is Code.IMAGE_UNREADABLE
    assert code_of(fetch, f"file://{tmp_path}", LIMITS) is Code.IMAGE_UNREADABLE
    assert code_of(fetch, f"file://{tmp_path}/none.png", LIMITS) is Code.IMAGE_MISSING
    (tmp_path / "empty.png").touch()
    assert code_of(fetch, f"file://{tmp_path}/empty.png", LIMITS) is Code.IMAGE_EMPTY


class Web(BaseHTTPRequestHandler):
    """A server that ignores ranges, hides sizes, redirects and fails."""

    picture = encode(noise(), "PNG")
    sent = 0

    def do_GET(self):
        if self.path.startswith("/img/moved"):
            self.send_response(302)
            self.send_header("Location", "/secret.png")
            self.end_headers()
        elif self.path in ("/img/x.png", "/secret.png"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.picture)
        elif self.path == "/img/endless.png":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(2000):
                    self.wfile.write(b"x" * 100_000)
                    Web.sent += 100_000
            except OSError:
                pass
        elif self.path.startswith("/img/signed.png?"):
            Web.asked = self.path
            self.send_response(200 if "hunter2" in self.path else 403)
            self.end_headers()
            self.wfile.write(self.picture)
        elif self.path.startswith("/img/late.png?"):
            self.send_error(403, "expired")
        else:
            self.send_error(503 if self.path == "/img/busy.png" else 404)

    def log_message(self, *args):
        pass


@pytest.fixture
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_the_web_is_off_until_a_prefix_is_listed_and_then_stays_inside(web):
    assert code_of(fetch, f"{web}/img/x.png", LIMITS) is Code.URI_NOT_ALLOWED
    limits = InputLimits(allow=(f"{web}/img",), max_bytes=1_000_000)
    assert fetch(f"{web}/img/x.png", limits) == Web.picture
    assert code_of(fetch, f"{web}/secret.png", limits) is Code.URI_NOT_ALLOWED
    assert code_of(fetch, f"{web}/img/moved.png", limits) is Code.URI_NOT_ALLOWED
    assert code_of(fetch, f"{web}/img/none.png", limits) is Code.IMAGE_MISSING
    assert code_of(fetch, f"{web}/img/endless.png", limits) is Code.IMAGE_TOO_LARGE
    assert Web.sent < 100_000_000
    with pytest.raises(RowError) as caught:
        fetch(f"{web}/img/busy.png", limits)
    assert (caught.value.code, caught.value.status) == (Code.STORAGE, Status.FAILED)


@pytest.mark.parametrize("query", SIGNED, ids=lambda query: query.partition("=")[0])
def test_a_presigned_address_is_asked_for_as_it_is_and_printed_without_its_signature(web, query, tmp_path):
    limits = InputLimits(allow=(f"{web}/img",), presigned=True)
    cache = InputCache(Storage(str(tmp_path)))
    found = examine(f"{web}/img/signed.png?{query}", "image", limits, cache)
    assert found == inspect(Web.picture, limits)
    assert Web.asked == f"/img/signed.png?{query}"
    assert len(cache) == 0
    for name in ("late.png", "gone.png", "moved"):
        with pytest.raises(RowError) as refused:
            fetch(f"{web}/img/{name}?{query}", limits)
        assert "hunter2" not in str(refused.value)


def test_the_cache_remembers_good_pictures_by_version_and_merges(tmp_path):
    storage = Storage(str(tmp_path / "root"))
    photo, mask, bad = tmp_path / "p.png", tmp_path / "m.png", tmp_path / "b.png"
    photo.write_bytes(encode(noise(), "PNG"))
    mask.write_bytes(encode(Image.new("L", (40, 32)), "PNG"))
    bad.write_bytes(b"junk")
    for path in (photo, mask, bad):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    first, second = InputCache(storage), InputCache(storage)
    found = examine(f"file://{photo}", "image", LIMITS, first)
    # As a picture the black mask is good; as a mask it is not, and the one must not vouch for the other.
    examine(f"file://{mask}", "image", LIMITS, first)
    assert code_of(examine, f"file://{mask}", "mask", LIMITS, first) is Code.MASK_EMPTY
    assert code_of(examine, f"file://{bad}", "image", LIMITS, first) is Code.IMAGE_FORMAT
    examine(f"file://{photo}", "mask", LIMITS, second)
    for cache in (first, second, second):
        cache.save()
    assert sum(path.endswith(".parquet") for path, _ in storage.list("cache")) == 2
    merged = InputCache(storage)
    assert len(merged) == 3
    data = photo.read_bytes()
    photo.write_bytes(bytes(len(data)))
    os.utime(photo, (1_600_000_000, 1_600_000_000))
    assert examine(f"file://{photo}", "image", LIMITS, merged) == found
    assert code_of(examine, f"file://{photo}", "image", InputLimits(min_side=33), merged) is Code.IMAGE_TOO_SMALL
    assert code_of(examine, f"file://{photo}", "image", InputLimits(allow=("s3://b",)), merged) is Code.URI_NOT_ALLOWED
    os.utime(photo, (1_600_000_001, 1_600_000_001))
    assert code_of(examine, f"file://{photo}", "image", LIMITS, merged) is Code.IMAGE_FORMAT


def test_a_picture_written_just_now_is_not_remembered(tmp_path):
    photo = tmp_path / "p.png"
    photo.write_bytes(encode(noise(), "PNG"))
    soon = time.time() + 3600  # young however long this takes
    os.utime(photo, (soon, soon))
    cache = InputCache(Storage(str(tmp_path / "root")))
    examine(f"file://{photo}", "image", LIMITS, cache)
    assert len(cache) == 0


def test_a_cache_of_an_earlier_version_is_left_alone_and_its_pictures_are_inspected_again(tmp_path, caplog):
    storage, photo = Storage(str(tmp_path / "root")), tmp_path / "p.png"
    photo.write_bytes(encode(noise(), "PNG", icc_profile=icc.PROFILES["adobe"][0]))
    os.utime(photo, (1_600_000_000, 1_600_000_000))
    first = InputCache(storage)
    found = examine(f"file://{photo}", "image", LIMITS, first)
    assert found.reading == "srgb"
    first.save()
    [(path, _)] = storage.list("cache")
    table = pq.read_table(io.BytesIO(storage.read(path)))
    assert table["reading"].to_pylist() == ["srgb"]
    old = io.BytesIO()
    pq.write_table(table.drop_columns(["reading"]), old)
    storage.write(path, old.getvalue())
    second = InputCache(storage)
    assert len(second) == 0
    assert not caplog.text
    assert examine(f"file://{photo}", "image", LIMITS, second) == found
    second.save()
    # The earlier version, on the same root, reads the columns that it knows.
    known = ["key", "sha256", "format", "width", "height"]
    for name, _ in storage.list("cache"):
        assert pq.read_table(io.BytesIO(storage.read(name))).select(known).num_rows == 1
    third = InputCache(storage)
    assert examine(f"file://{photo}", "image", LIMITS, third) == found
    assert len(third) == 1


def test_a_spoilt_cache_file_is_reported_and_ignored(tmp_path, caplog):
    storage = Storage(str(tmp_path))
    storage.write("cache/inputs-1.parquet", b"junk")
    storage.write("cache/other.txt", b"junk")
    assert len(InputCache(storage)) == 0
    assert "cache/inputs-1.parquet is not usable" in caplog.text
