"""What an enemy would put into a manifest, and the code that each of it ends with; a good row among it stays good."""

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion_ops.config import SamplingConfig, TrainingConfig
from pipeline.contract.errors import Code
from pipeline.database.plandb import PlanDB
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.manifest.concepts import load_concepts
from pipeline.manifest.prompts import load_prompts
from pipeline.plan.expand import plan_concepts, plan_requests
from pipeline.storage.objects import Storage

LIMITS = InputLimits(max_bytes=2_000_000)


def encoded(kind, size=(48, 40), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def chunk(name, data, crc=None):
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(width, height, *chunks, depth=8, kind=2):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def idat(count):
    return chunk(b"IDAT", zlib.compress(bytes(count)))


def archive():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("x.png", encoded("PNG"))
    return sink.getvalue()


def frames(kind):
    pictures = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    sink = io.BytesIO()
    pictures[0].save(sink, kind, save_all=True, append_images=pictures[1:])
    return sink.getvalue()


WHOLE = encoded("PNG")
JPEG = encoded("JPEG")
WEBP = encoded("WEBP")
PICTURES = {
    # of other kinds, whatever their name says
    "gif": (encoded("GIF"), Code.IMAGE_FORMAT),
    "gif-that-is-a-script": (b"GIF89a/*" + bytes(64) + b"*/=1;alert(1)", Code.IMAGE_FORMAT),
    "tiff": (encoded("TIFF"), Code.IMAGE_FORMAT),
    "icon": (encoded("ICO"), Code.IMAGE_FORMAT),
    "svg-with-a-script": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", Code.IMAGE_FORMAT),
    "xml-bomb": (b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><svg>&b;</svg>", Code.IMAGE_FORMAT),
    "pdf-before-a-png": (b"%PDF-1.7\n" + WHOLE, Code.IMAGE_FORMAT),
    "zip": (archive(), Code.IMAGE_FORMAT),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(x) (w) file", Code.IMAGE_FORMAT),
    "pickle": (b"\x80\x04cposix\nsystem\n(S'id'\ntR.", Code.IMAGE_FORMAT),
    "heif": (b"\0\0\0\x18ftypheic" + bytes(200), Code.IMAGE_FORMAT),
    "executable": (b"\x7fELF" + bytes(500), Code.IMAGE_FORMAT),
    "one-byte": (b"\x89", Code.IMAGE_FORMAT),
    "animated-png": (frames("PNG"), Code.IMAGE_FORMAT),
    "animated-webp": (frames("WEBP"), Code.IMAGE_FORMAT),
    # lies about their size
    "bomb.png": (png(60_000, 60_000, idat(100)), Code.IMAGE_TOO_MANY_PIXELS),
    "bomb.jpg": (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + bytes(30), Code.IMAGE_TOO_MANY_PIXELS),
    "bomb.webp": (b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + bytes(40), Code.IMAGE_TOO_MANY_PIXELS),
    "largest-sides": (png(2**31 - 1, 2**31 - 1, idat(1)), Code.IMAGE_TOO_MANY_PIXELS),
    "one-row-of-a-million": (png(1_000_000, 1, idat(10)), Code.IMAGE_TOO_SMALL),
    "no-width": (png(0, 64, idat(64)), Code.IMAGE_CORRUPT),
    "two-headers": (png(64, 64, png(9, 9)[8:33], idat(64 * 193)), Code.IMAGE_CORRUPT),
    "depth-that-does-not-exist": (png(64, 64, idat(64 * 193), depth=7), Code.IMAGE_CORRUPT),
    "text-bomb": (png(64, 64, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000)))), Code.IMAGE_CORRUPT),
    "profile-bomb": (
        png(64, 64, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(80_000_000))), idat(64 * 193)),
        Code.IMAGE_CORRUPT,
    ),
    "wrong-checksum": (png(64, 64, chunk(b"IDAT", zlib.compress(bytes(64 * 193)), crc=1)), Code.IMAGE_CORRUPT),
    "no-pixels": (png(64, 64), Code.IMAGE_CORRUPT),
    # damaged
    "cut.png": (WHOLE[: len(WHOLE) // 2], Code.IMAGE_TRUNCATED),
    "cut.jpg": (JPEG[: len(JPEG) // 2], Code.IMAGE_TRUNCATED),
    "cut.webp": (WEBP[: len(WEBP) // 2], Code.IMAGE_TRUNCATED),
    "header-alone.jpg": (JPEG[:3], Code.IMAGE_TRUNCATED),
    "nothing": (b"", Code.IMAGE_EMPTY),
    "too-many-bytes": (WHOLE + bytes(2_000_000), Code.IMAGE_TOO_LARGE),
}
ADDRESSES = {
    "http://169.254.169.254/latest/meta-data/": Code.URI_NOT_ALLOWED,
    "http://127.0.0.1:8265/api/jobs/": Code.URI_NOT_ALLOWED,
    "http://[::1]/x.png": Code.URI_NOT_ALLOWED,
    "https://user:password@shop.example/x.png": Code.URI_NOT_ALLOWED,
    "ftp://shop.example/x.png": Code.URI_NOT_ALLOWED,
    "gopher://shop.example/x": Code.URI_NOT_ALLOWED,
    "data:image/png;base64,iVBORw0KGgo=": Code.URI_NOT_ALLOWED,
    "javascript:alert(1)": Code.URI_NOT_ALLOWED,
    "zip://x.png::http://shop.example/x.zip": Code.URI_NOT_ALLOWED,
    "github://someone:repository@main/x.png": Code.URI_NOT_ALLOWED,
    "file://elsewhere/share/x.png": Code.URI_NOT_ALLOWED,
    "../secret.png": Code.URI_NOT_ALLOWED,
    "photos/%2e%2e/%2e%2e/secret.png": Code.URI_NOT_ALLOWED,
    "photos\\..\\..\\secret.png": Code.URI_NOT_ALLOWED,
    "photos/good.png\n": Code.URI_NOT_ALLOWED,
    "s3://bucket/x.png?X-Amz-Signature=abc": Code.URI_NOT_ALLOWED,
    "/etc/passwd": Code.URI_NOT_ALLOWED,
    "/proc/self/environ": Code.URI_NOT_ALLOWED,
    "photos/link-out.png": Code.URI_NOT_ALLOWED,
    "photos/link-to-a-folder/secret.png": Code.URI_NOT_ALLOWED,
    "photos/link-to-itself.png": Code.IMAGE_MISSING,
    "photos/link-to-nothing.png": Code.IMAGE_MISSING,
    "photos/pipe": Code.IMAGE_UNREADABLE,
    "photos/socket": Code.IMAGE_UNREADABLE,
    "photos/folder": Code.IMAGE_UNREADABLE,
    "photos/" + "x" * 300 + ".png": Code.IMAGE_MISSING,
}
IDS = {
    **dict.fromkeys(
        (
            "../../etc/passwd", "a/b", "a\\b", ".hidden", "-rf", "a b", "m\u00fcg", "a\x00b", "a\r\nb", "${HOME}",
            "<script>alert(1)</script>", "'; DROP TABLE concepts; --", "{product}", "a\u202eb", "x" * 129,
        ),
        Code.BAD_ID,
    ),
}  # fmt: skip
PROMPTS = {
    "a {product.__class__.__mro__}": Code.BAD_PLACEHOLDER,
    "a {product!r}": Code.BAD_PLACEHOLDER,
    "a {product:>1000000000}": Code.BAD_PLACEHOLDER,
    "a {0}": Code.UNKNOWN_CONCEPT,
    "a {../../etc/passwd}": Code.BAD_PLACEHOLDER,
    "a {product} \x1b[2J": Code.BAD_CHARACTER,
    "a {product} " + "x" * 100_000: Code.TEXT_TOO_LONG,
}
CONDITIONS = (
    "1=1; DROP TABLE concepts",
    "concept_id IN (SELECT content FROM read_text('/etc/passwd'))",
    "(SELECT count(*) FROM glob('/**')) > 0",
    "getenv('HOME') = ''",
    "concept_id = 'good' UNION SELECT 1",
)


TRAINS = (
    "{",
    "[" * 100_000,
    "7" * 5000,
    '{"steps": 0}',
    '{"steps": "7"}',
    '{"lock": "all"}',
    '{"flip": 1}',
    '{"x": 1}',
)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(WHOLE)
    (folder / "good.png").write_bytes(WHOLE)
    for name, (data, _) in PICTURES.items():
        (folder / name).write_bytes(data)
    (folder / "link-out.png").symlink_to(tmp_path / "secret.png")
    (folder / "link-to-a-folder").symlink_to(tmp_path)
    (folder / "link-to-itself.png").symlink_to(folder / "link-to-itself.png")
    (folder / "link-to-nothing.png").symlink_to(folder / "nothing-there")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)  # a socket's path may not be long
        listening.bind("socket")
        yield folder


def loaded(db, folder, rows):
    (folder / "concepts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    storage = Storage(str(folder / "root"))
    limits = LIMITS.model_copy(update={"allow": (f"file://{folder}/photos",)})
    load_concepts(
        db, str(folder / "concepts.jsonl"), storage=storage, limits=limits, cache=InputCache(storage), threads=2
    )
    return db.connection.execute("SELECT error_code, error_message FROM concepts ORDER BY row").fetchall()


def test_the_corpus_is_large():
    assert len(PICTURES) + len(ADDRESSES) + len(IDS) + len(PROMPTS) + len(CONDITIONS) >= 60


def test_each_concept_ends_with_its_code(tmp_path, photos):
    good = {"concept_id": "good", "superclass": "mug", "images": ["photos/good.png"]}
    pictures = [(f"photos/{name}", code) for name, (_, code) in PICTURES.items()] + list(ADDRESSES.items())
    rows = [good] + [good | {"concept_id": f"c{n}", "images": [uri]} for n, (uri, _) in enumerate(pictures)]
    rows += [good | {"concept_id": name} for name in IDS]
    with PlanDB(memory_limit="256MB", threads=1) as db:
        found = loaded(db, tmp_path, rows)
    asked = [(uri, code) for uri, code in pictures] + list(IDS.items())
    assert found[0] == (None, None)
    wrong = [
        (what, expected.value, code, message)
        for (what, expected), (code, message) in zip(asked, found[1:], strict=True)
        if code != expected
    ]
    assert not wrong
    assert all(len(message) > 20 and "password@" not in message and "\n" not in message for _, message in found[1:])
    assert not any((tmp_path / "root" / "inputs").glob("**/*"))


def messages(folder):
    """Codes and messages of everything hostile."""
    names = [f"photos/{name}" for name in PICTURES] + list(ADDRESSES)
    rows = [{"concept_id": f"c{n}", "superclass": "mug", "images": [name]} for n, name in enumerate(names)]
    rows += [{"concept_id": name, "superclass": "mug", "images": ["photos/good.png"]} for name in IDS]
    rows += [{"concept_id": "t", "superclass": "mug", "images": [], "train": train} for train in TRAINS]
    with PlanDB(memory_limit="256MB", threads=1) as db:
        return loaded(db, folder, rows)


def test_messages_are_the_same_in_every_process(tmp_path, photos):
    (photos / "text-checksum.png").write_bytes(
        png(64, 64, chunk(b"tEXt", b"Comment\0x", crc=1), chunk(b"IDAT", zlib.compress(bytes(64 * 193))))
    )
    script = (
        "import json, pathlib; import tests.behaviour.test_hostile as t\n"
        "t.PICTURES['text-checksum.png'] = (b'', None)\n"
        f"print(json.dumps(t.messages(pathlib.Path({str(tmp_path)!r}))))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    found = json.loads(told[0])
    assert len(found) == len(PICTURES) + 1 + len(ADDRESSES) + len(IDS) + len(TRAINS)
    doubtful = re.compile(r"0x[0-9a-f]|object at|Pillow|PIL|pydantic|Input should|broken PNG|Errno")
    assert not [message for code, message in found if not code or doubtful.search(message)]


def test_each_prompt_ends_with_its_code(tmp_path, photos):
    good = {"prompt": "a {product}"}
    rows = [good, *({"prompt": prompt} for prompt in PROMPTS), *(good | {"where": each} for each in CONDITIONS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with PlanDB(memory_limit="256MB", threads=1) as db:
        loaded(db, tmp_path, [{"concept_id": "good", "superclass": "mug", "images": ["photos/good.png"]}])
        load_prompts(db, str(tmp_path / "prompts.jsonl"))
        plan_concepts(db, base_digest="b", metric_key="m", training=TrainingConfig())
        plan_requests(db, base_digest="b", sampling=SamplingConfig(), seed=0)
        found = db.connection.execute("SELECT prompt_row, error_code FROM requests ORDER BY 1").fetchall()
    expected = [None, *(code.value for code in PROMPTS.values()), *([Code.BAD_WHERE.value] * len(CONDITIONS))]
    assert found == list(enumerate(expected, 1))
