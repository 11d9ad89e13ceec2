"""The cache of inspections: keyed by version, merged over planners, and never trusted when damaged."""

import io
import os
import time

import pyarrow.parquet as pq
from PIL import Image

from pipeline.contract.errors import Code
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.storage.objects import Storage
from tests.support import icc
from tests.support.photos import code_of, encode, noise

LIMITS = InputLimits()


def test_the_cache_remembers_good_pictures_by_version_and_merges(tmp_path):
    storage = Storage(str(tmp_path / "root"))
    photo, mask, bad = tmp_path / "p.png", tmp_path / "m.png", tmp_path / "b.png"
    photo.write_bytes(encode(noise(), "PNG"))
    mask.write_bytes(encode(Image.new("L", (40, 32)), "PNG"))
    bad.write_bytes(b"junk")
    for path in (photo, mask, bad):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    first, second = InputCache(storage), InputCache(storage)
    found = InputStore(LIMITS, cache=first).examine(f"file://{photo}", "image")
    # As a picture the black mask is good; as a mask it is not, and the one must not vouch for the other.
    InputStore(LIMITS, cache=first).examine(f"file://{mask}", "image")
    assert code_of(InputStore(LIMITS, cache=first).examine, f"file://{mask}", "mask") is Code.MASK_EMPTY
    assert code_of(InputStore(LIMITS, cache=first).examine, f"file://{bad}", "image") is Code.IMAGE_FORMAT
    InputStore(LIMITS, cache=second).examine(f"file://{photo}", "mask")
    for cache in (first, second, second):
        cache.save()
    assert sum(path.endswith(".parquet") for path, _ in storage.list("cache")) == 2
    merged = InputCache(storage)
    assert len(merged) == 3
    data = photo.read_bytes()
    photo.write_bytes(bytes(len(data)))
    os.utime(photo, (1_600_000_000, 1_600_000_000))
    assert InputStore(LIMITS, cache=merged).examine(f"file://{photo}", "image") == found
    for limits, code in (
        (InputLimits(min_side=33), Code.IMAGE_TOO_SMALL),
        (InputLimits(allow=("s3://b",)), Code.URI_NOT_ALLOWED),
    ):
        assert code_of(InputStore(limits, cache=merged).examine, f"file://{photo}", "image") is code
    os.utime(photo, (1_600_000_001, 1_600_000_001))
    assert code_of(InputStore(LIMITS, cache=merged).examine, f"file://{photo}", "image") is Code.IMAGE_FORMAT


def test_a_picture_written_just_now_is_not_remembered(tmp_path):
    photo = tmp_path / "p.png"
    photo.write_bytes(encode(noise(), "PNG"))
    soon = time.time() + 3600  # young however long this takes
    os.utime(photo, (soon, soon))
    cache = InputCache(Storage(str(tmp_path / "root")))
    InputStore(LIMITS, cache=cache).examine(f"file://{photo}", "image")
    assert len(cache) == 0


def test_a_cache_of_an_earlier_version_is_left_alone_and_its_pictures_are_inspected_again(tmp_path, caplog):
    storage, photo = Storage(str(tmp_path / "root")), tmp_path / "p.png"
    photo.write_bytes(encode(noise(), "PNG", icc_profile=icc.PROFILES["adobe"][0]))
    os.utime(photo, (1_600_000_000, 1_600_000_000))
    first = InputCache(storage)
    found = InputStore(LIMITS, cache=first).examine(f"file://{photo}", "image")
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
    assert InputStore(LIMITS, cache=second).examine(f"file://{photo}", "image") == found
    second.save()
    # The earlier version, on the same root, reads the columns that it knows.
    known = ["key", "sha256", "format", "width", "height"]
    for name, _ in storage.list("cache"):
        assert pq.read_table(io.BytesIO(storage.read(name))).select(known).num_rows == 1
    third = InputCache(storage)
    assert InputStore(LIMITS, cache=third).examine(f"file://{photo}", "image") == found
    assert len(third) == 1


def test_a_spoilt_cache_file_is_reported_and_ignored(tmp_path, caplog):
    storage = Storage(str(tmp_path))
    storage.write("cache/inputs-1.parquet", b"junk")
    storage.write("cache/other.txt", b"junk")
    assert len(InputCache(storage)) == 0
    assert "cache/inputs-1.parquet is not usable" in caplog.text
