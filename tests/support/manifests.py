"""Manifests for tests: photos good and bad, a database, rows written and read back."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.database.plandb import EXTRA_ROW
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.manifest.concepts import load_concepts
from pipeline.storage.objects import Storage

LIMITS = InputLimits(max_bytes=100_000, max_images=5)


GOOD = {"concept_id": "mug-1", "superclass": "mug", "images": ["photos/0.png", "photos/1.jpg", "photos/2.webp"]}


P = {"prompt": "a photo of a {product}"}


def picture(seed=0, kind="PNG", size=(40, 32)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def mask(value=255, size=(40, 32)):
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"


def photo_folder(folder):
    """A folder of photos, good and bad."""
    folder.mkdir()
    (folder / "0.png").write_bytes(picture(0))
    (folder / "1.jpg").write_bytes(picture(1, "JPEG"))
    (folder / "2.webp").write_bytes(picture(2, "WEBP"))
    (folder / "mask.png").write_bytes(mask())
    (folder / "tall-mask.png").write_bytes(mask(size=(32, 40)))
    (folder / "black.png").write_bytes(mask(0))
    (folder / "cut.jpg").write_bytes(picture(1, "JPEG")[:-400])
    (folder / "bomb.png").write_bytes(png_header(50_000, 50_000))
    (folder / "bmp.png").write_bytes(picture(3, "BMP"))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"not a picture\n")
    (folder / "tiny.png").write_bytes(picture(4, size=(40, 8)))
    spoilt = bytearray(picture(5))
    spoilt[len(spoilt) // 2] ^= 0xFF
    (folder / "spoilt.png").write_bytes(spoilt)
    (folder / "huge.png").write_bytes(picture(6) + b"\0" * 200_000)
    return folder


def concepts(db, uri, tmp_path, **options):
    storage = Storage(str(tmp_path / "root"))
    options = {"limits": LIMITS, "cache": InputCache(storage), "threads": 3} | options
    return load_concepts(db, str(uri), storage=storage, **options)


def rows(db, table):
    cursor = db.connection.execute(f"SELECT * FROM {table} ORDER BY {EXTRA_ROW if table.endswith('_extra') else 'row'}")
    names = ["row" if column[0] == EXTRA_ROW else column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def write_jsonl(path, table):
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path
