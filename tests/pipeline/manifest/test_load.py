"""Manifests: a corpus of bad rows with their codes, the same rows in three formats, and memory that stays flat."""

import csv
import hashlib
import io
import json
import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perfusion_ops.config import TrainingConfig
from pipeline.contract.errors import Code, ManifestError
from pipeline.contract.keys import concept_key
from pipeline.contract.layout import input_path
from pipeline.database.plandb import EXTRA_ROW, PlanDB
from pipeline.inputs import store
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.manifest.load import bounded_map, load_concepts, load_prompts
from pipeline.plan.expand import plan_concepts
from pipeline.storage.objects import Storage
from tests.support import icc


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


@pytest.fixture
def photos(tmp_path):
    """A folder of photos, good and bad, beside the manifests."""
    folder = tmp_path / "photos"
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


@pytest.fixture
def db():
    with PlanDB(memory_limit="256MB", threads=1) as database:
        yield database


LIMITS = InputLimits(max_bytes=100_000, max_images=5)


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


GOOD = {"concept_id": "mug-1", "superclass": "mug", "images": ["photos/0.png", "photos/1.jpg", "photos/2.webp"]}

# What is changed in a good row, and the codes that may be expected of it, in order.
BAD_CONCEPTS = [
    ({"images": ["photos/none.png"]}, Code.IMAGE_MISSING),
    ({"images": ["photos/0.png/below.png"]}, Code.IMAGE_MISSING),
    ({"images": ["photos/cut.jpg"]}, Code.IMAGE_TRUNCATED),
    ({"images": ["photos/bomb.png"]}, Code.IMAGE_TOO_MANY_PIXELS),
    ({"images": ["photos/bmp.png"]}, Code.IMAGE_FORMAT),
    ({"images": ["photos/empty.jpg"]}, Code.IMAGE_EMPTY),
    ({"images": ["photos/text.jpg"]}, Code.IMAGE_FORMAT),
    ({"images": ["photos/tiny.png"]}, Code.IMAGE_TOO_SMALL),
    ({"images": ["photos/spoilt.png"]}, Code.IMAGE_CORRUPT),
    ({"images": ["photos/huge.png"]}, Code.IMAGE_TOO_LARGE),
    ({"images": ["photos"]}, Code.IMAGE_UNREADABLE),
    ({"images": ["/dev/zero"]}, Code.IMAGE_UNREADABLE),
    ({"images": ["http://example.invalid/x.png"]}, Code.URI_NOT_ALLOWED),
    ({"images": ["ftp://example.invalid/x.png"]}, Code.URI_NOT_ALLOWED),
    ({"images": ["../secret.png"]}, Code.URI_NOT_ALLOWED),
    ({"images": ["s3://key:secret@bucket/x.png"]}, Code.URI_NOT_ALLOWED),
    ({"images": ["photos/0.png\x00.jpg"]}, Code.URI_NOT_ALLOWED),
    ({"images": ["simplecache::photos/0.png"]}, Code.URI_NOT_ALLOWED),
    ({"images": [""]}, Code.MISSING_VALUE),
    ({"images": [None]}, Code.MISSING_VALUE),
    ({"images": [7]}, Code.WRONG_TYPE),
    ({"images": {"uri": "x"}}, Code.WRONG_TYPE),
    ({"images": None}, Code.MISSING_VALUE),
    ({"images": []}, Code.NO_IMAGES),
    ({"images": ["photos/0.png"] * 6}, Code.TOO_MANY_IMAGES),
    ({"masks": ["photos/mask.png"]}, Code.MASKS_MISMATCH),
    ({"masks": []}, Code.MASKS_MISMATCH),
    ({"images": "photos/0.png", "masks": "photos/tall-mask.png"}, Code.MASKS_MISMATCH),
    ({"images": "photos/0.png", "masks": "photos/black.png"}, Code.MASK_EMPTY),
    ({"concept_id": ".."}, Code.BAD_ID),
    ({"concept_id": "a/../b"}, Code.BAD_ID),
    ({"concept_id": ""}, Code.BAD_ID),
    ({"concept_id": "product"}, Code.BAD_ID),
    ({"concept_id": "x" * 200}, Code.BAD_ID),
    ({"concept_id": "mug\n"}, Code.BAD_ID),
    ({"concept_id": None}, Code.MISSING_VALUE),
    ({"concept_id": 12}, Code.WRONG_TYPE),
    ({"concept_id": "mug-1"}, Code.DUPLICATE_ID),
    ({"superclass": None}, Code.MISSING_VALUE),
    ({"superclass": "  "}, Code.EMPTY_SUPERCLASS),
    ({"superclass": "mug\ud800"}, Code.BAD_CHARACTER),
    ({"superclass": "{mug}"}, Code.BAD_CHARACTER),
    ({"superclass": "m" * 201}, Code.TEXT_TOO_LONG),
    ({"train": {"stepz": 5}}, Code.BAD_TRAIN_OVERRIDE),
    ({"train": {"steps": 0}}, Code.BAD_TRAIN_OVERRIDE),
    ({"train": {"steps": "many"}}, Code.BAD_TRAIN_OVERRIDE),
    ({"train": {"bias": float("nan")}}, Code.BAD_TRAIN_OVERRIDE),
    ({"train": "{steps: 5}"}, Code.BAD_TRAIN_OVERRIDE),
    ({"train": 5}, Code.BAD_TRAIN_OVERRIDE),
]


def test_every_kind_of_bad_concept_has_its_code_and_the_good_ones_stay_good(db, photos, tmp_path):
    table, expected = [GOOD], [None]
    for number, (change, code) in enumerate(BAD_CONCEPTS):
        table += [GOOD | {"concept_id": f"bad-{number}"} | change, GOOD | {"concept_id": f"good-{number}"}]
        expected += [code.value, None]
    summary = concepts(db, write_jsonl(tmp_path / "c.jsonl", table), tmp_path)
    found = rows(db, "concepts")
    assert [row["row"] for row in found] == list(range(1, len(table) + 1))
    assert [(row["row"], row["error_code"]) for row in found] == list(enumerate(expected, 1))
    assert (summary.rows, summary.good) == (len(table), len(BAD_CONCEPTS) + 1)
    assert sum(summary.bad.values()) == len(BAD_CONCEPTS)
    assert summary.bad["bad_id"] == 6
    for row in found:
        if row["error_code"] is None:
            assert (row["error_message"], row["error_column"]) == (None, None)
            assert [Path(image["uri"].removeprefix("file://")).name for image in row["images"]] == [
                "0.png",
                "1.jpg",
                "2.webp",
            ]
        else:
            assert row["error_column"] in row["error_message"]
            assert len(row["error_message"]) > 20
            assert "hunter2" not in row["error_message"]
            assert "secret@" not in row["error_message"]
    duplicate = next(row for row in found if row["error_code"] == "duplicate_id")
    assert "row 1 already" in duplicate["error_message"]


def test_all_problems_of_a_row_are_told_and_the_first_gives_the_code(db, photos, tmp_path):
    row = {"concept_id": "a b", "superclass": " ", "images": ["photos/none.png", "photos/0.png", "photos/text.jpg"]}
    concepts(db, write_jsonl(tmp_path / "c.jsonl", [row]), tmp_path)
    (found,) = rows(db, "concepts")
    assert (found["error_code"], found["error_column"], found["concept_id"]) == ("bad_id", "concept_id", "a b")
    for word in ("letters, digits", "superclass", "number 1", "none.png", "number 3", "text.jpg", "plain text"):
        assert word in found["error_message"]
    assert "number 2" not in found["error_message"]


def test_duplicates_name_the_first_row_and_keep_their_other_problems(db, photos, tmp_path):
    table = [
        GOOD | {"images": []},
        GOOD,
        GOOD | {"superclass": ""},
        GOOD | {"concept_id": "a b"},
        GOOD | {"concept_id": "a b"},
    ]
    concepts(db, write_jsonl(tmp_path / "c.jsonl", table), tmp_path)
    found = rows(db, "concepts")
    assert [row["error_code"] for row in found] == ["no_images", "duplicate_id", "duplicate_id", "bad_id", "bad_id"]
    assert "row 1" in found[1]["error_message"]
    assert "row 1" in found[2]["error_message"]
    assert "superclass is empty" in found[2]["error_message"]


def test_pictures_as_bytes_are_stored_once(db, tmp_path):
    one, two = picture(1), picture(2, "JPEG")
    table = pa.table(
        {
            "concept_id": ["a", "b", "c"],
            "superclass": ["mug"] * 3,
            "images": pa.array([[one, two], [one], [b"junk"]], pa.list_(pa.binary())),
            "masks": pa.array([[mask(), mask()], None, None], pa.list_(pa.binary())),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    concepts(db, tmp_path / "c.parquet", tmp_path)
    first, second, third = rows(db, "concepts")
    storage = Storage(str(tmp_path / "root"))
    assert [storage.read(input_path(image["sha256"])) for image in first["images"]] == [one, two]
    assert second["images"][0] == first["images"][0]
    assert second["images"][0]["uri"] == storage.uri(input_path(second["images"][0]["sha256"]))
    assert third["error_code"] == "image_format"
    assert len(list(storage.list("inputs"))) == 3


def test_a_second_plan_reads_no_picture_that_did_not_change(photos, tmp_path):
    import os

    for path in photos.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    manifest = write_jsonl(tmp_path / "c.jsonl", [GOOD, GOOD | {"concept_id": "bad", "images": "photos/text.jpg"}])
    with PlanDB() as db:
        concepts(db, manifest, tmp_path)
        before = rows(db, "concepts")
    storage = Storage(str(tmp_path / "root"))
    assert len(InputCache(storage)) == 3
    # Other bytes of the same length and time: only a plan that does not read them can give the old digest.
    (photos / "0.png").write_bytes(bytes(len(picture(0))))
    os.utime(photos / "0.png", (1_700_000_000, 1_700_000_000))
    (photos / "1.jpg").write_bytes(picture(9, "JPEG"))
    (photos / "text.jpg").write_bytes(picture(9))
    with PlanDB() as db:
        concepts(db, manifest, tmp_path, cache=InputCache(storage))
        after = rows(db, "concepts")
    assert after[0]["images"][0] == before[0]["images"][0]
    assert after[0]["images"][1] != before[0]["images"][1]
    assert after[0]["images"][2] == before[0]["images"][2]
    assert (before[1]["error_code"], after[1]["error_code"]) == ("image_format", None)
    with PlanDB() as db:
        concepts(db, manifest, tmp_path, cache=InputCache(storage), limits=InputLimits(max_pixels=300))
        assert rows(db, "concepts")[0]["error_code"] == "image_too_many_pixels"


P = {"prompt": "a photo of a {product}"}
BAD_PROMPTS = [
    ({"prompt": None}, Code.MISSING_VALUE),
    ({"prompt": ""}, Code.EMPTY_PROMPT),
    ({"prompt": " \u00a0 "}, Code.EMPTY_PROMPT),
    ({"prompt": "a photo"}, Code.NO_PLACEHOLDER),
    ({"prompt": "a {product"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a product}"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a {{product}}"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a {}"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a {../x}"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a {product}\n"}, Code.BAD_CHARACTER),
    ({"prompt": "a {product}\x00"}, Code.BAD_CHARACTER),
    ({"prompt": "a {product}\udfff"}, Code.BAD_CHARACTER),
    ({"prompt": "{product}" + "x" * 2000}, Code.TEXT_TOO_LONG),
    ({"prompt": 7}, Code.WRONG_TYPE),
    ({"negative_prompt": "{"}, Code.BAD_PLACEHOLDER),
    ({"where": 5}, Code.WRONG_TYPE),
    ({"seed": -1}, Code.OUT_OF_RANGE),
    ({"seed": 2**63}, Code.OUT_OF_RANGE),
    ({"seed": 10**400}, Code.OUT_OF_RANGE),
    ({"seed": 1.5}, Code.WRONG_TYPE),
    ({"seed": True}, Code.WRONG_TYPE),
    ({"seed": "7"}, Code.WRONG_TYPE),
    ({"seed": 1, "num_images": 2}, Code.SEED_CONFLICT),
    ({"num_images": 0}, Code.OUT_OF_RANGE),
    ({"num_images": 1001}, Code.OUT_OF_RANGE),
    ({"bias": float("nan")}, Code.NOT_FINITE),
    ({"bias": 10**400}, Code.OUT_OF_RANGE),
    ({"bias": 2.5}, Code.OUT_OF_RANGE),
    ({"temperature": 0}, Code.OUT_OF_RANGE),
    ({"guidance": float("inf")}, Code.NOT_FINITE),
    ({"guidance": -1}, Code.OUT_OF_RANGE),
    ({"lock": "both"}, Code.OUT_OF_RANGE),
    ({"lock": 1}, Code.WRONG_TYPE),
    ({"scheduler": "ddpm"}, Code.OUT_OF_RANGE),
    ({"width": 12}, Code.OUT_OF_RANGE),
    ({"height": 8192}, Code.OUT_OF_RANGE),
    ({"steps": 0}, Code.OUT_OF_RANGE),
]


def test_every_kind_of_bad_prompt_has_its_code_and_the_good_ones_stay_good(db, tmp_path):
    table, expected = [], []
    for change, code in BAD_PROMPTS:
        table += [P | change, P | {"seed": 5, "bias": 0.5, "width": 512, "scheduler": "dpm++"}]
        expected += [code.value, None]
    summary = load_prompts(db, str(write_jsonl(tmp_path / "p.jsonl", table)))
    found = rows(db, "prompts")
    assert [(row["row"], row["error_code"]) for row in found] == list(enumerate(expected, 1))
    assert summary.good == len(BAD_PROMPTS)
    for row in found:
        if row["error_code"] is None:
            assert (row["seed"], row["bias"], row["width"], row["scheduler"]) == (5, 0.5, 512, "dpm++")
            assert row["num_images"] == 1
        else:
            assert (
                row["error_column"] in row["error_message"]
                or "placeholder" in row["error_message"]
                or "brace" in row["error_message"]
            )
    ranges = {row["error_column"]: row["error_message"] for row in found if row["error_code"] == "out_of_range"}
    assert "between -1 and 2" in ranges["bias"]
    assert "above 0 and at most 10" in ranges["temperature"]
    assert "between 8 and 4096 that 8 divides" in ranges["height"]
    assert "ddim, dpm++, euler" in ranges["scheduler"]


def test_lines_that_cannot_be_read_are_rows_too(db, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a {product}"}\n\n{"prompt": \n[1]\n{"prompt": "b {product}", "brand": "x"}\n')
    load_prompts(db, str(path))
    found = rows(db, "prompts")
    assert [row["error_code"] for row in found] == [None, "wrong_type", "wrong_type", None]
    assert "line 3 of" in found[1]["error_message"]
    assert rows(db, "prompts_extra") == [{"row": n, "brand": "x" if n == 4 else None} for n in (1, 2, 3, 4)]


def test_csv_rows_of_another_length_are_rows_too(db, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,seed,sku\na {product},1,007\na {product}, or two,2,008\nb {product}\n\nc {product},x,010\n")
    load_prompts(db, str(path))
    found = rows(db, "prompts")
    assert [row["error_code"] for row in found] == [None, "wrong_type", "wrong_type", "wrong_type"]
    assert "has 4 cells, the header 3" in found[1]["error_message"]
    assert "seed is 'x'" in found[3]["error_message"]
    assert [row["sku"] for row in rows(db, "prompts_extra")] == ["007", "2", None, "010"]


def test_text_columns_get_the_type_that_all_their_values_have(db, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "prompt,n,x,b,sku,mixed,none,big\n"
        "{product},1,1.5,true,01,1,,99999999999999999999\n"
        "{product},-20,2.0,false,2,a,,1\n"
    )
    load_prompts(db, str(path))
    types = dict(
        db.connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'prompts_extra'"
        ).fetchall()
    )
    assert types == {
        EXTRA_ROW: "BIGINT",
        "n": "BIGINT",
        "x": "DOUBLE",
        "b": "BOOLEAN",
        "sku": "VARCHAR",
        "mixed": "VARCHAR",
        "none": "VARCHAR",
        "big": "VARCHAR",
    }


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)
words = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cc", "Cs"], exclude_characters="{}")
)
prompt_rows = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.builds("{1} {{{0}}}, {2}".format, names, words, words),
            "seed": st.none() | st.integers(-2, 2**63 - 1),
            "bias": st.none() | st.floats(-2, 3, allow_nan=False),
            "steps": st.none() | st.integers(0, 60),
            "scheduler": st.none() | st.sampled_from(["ddim", "euler", "nothing"]),
            "brand": st.none() | words.filter(lambda text: text and not text[0].isdigit() and text[0] not in "-tfTF"),
            "shelf": st.none() | st.integers(-(2**62), 2**62),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=12)
@given(table=prompt_rows, cut=st.integers(0, 12))
def test_parquet_csv_and_jsonl_mean_the_same(table, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("same")
    schema = pa.schema(
        {
            "prompt": pa.string(),
            "seed": pa.int64(),
            "bias": pa.float64(),
            "steps": pa.int32(),
            "scheduler": pa.string(),
            "brand": pa.string(),
            "shelf": pa.int64(),
        }
    )
    write_jsonl(folder / "p.jsonl", table)
    with (folder / "p.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, schema.names)
        writer.writeheader()
        writer.writerows(table)
    (folder / "parts").mkdir()
    for number, part in enumerate((table[:cut], table[cut:])):
        pq.write_table(pa.Table.from_pylist(part, schema), folder / "parts" / f"{number}.parquet")
    results = []
    for uri in ("p.jsonl", "p.csv", "parts", "parts/*.parquet"):
        with PlanDB(threads=1) as db:
            load_prompts(db, str(folder / uri))
            results.append((rows(db, "prompts"), [(r["brand"], r["shelf"]) for r in extra_rows(db)]))
    for checked, extra in results:
        for row in checked:
            # The repr of a number may differ between formats; nothing else may.
            row["error_message"] = row["error_message"] and row["error_message"].partition(" is ")[0]
        assert checked == results[0][0]
        assert extra == results[0][1]


def extra_rows(db):
    """The extra columns; one of nothing but nulls has another type, and in CSV and JSON lines perhaps no values."""
    return [{"brand": row.get("brand"), "shelf": row.get("shelf")} for row in rows(db, "prompts_extra")]


def test_csv_concepts_list_pictures_with_semicolons(db, photos, tmp_path):
    (tmp_path / "c.csv").write_text(
        "concept_id,superclass,images,train,season\n"
        'mug,coffee  mug,photos/0.png; photos/1.jpg,"{""steps"": 7}",SS26\n'
        "cup,cup,photos/0.png,,\n"
    )
    concepts(db, tmp_path / "c.csv", tmp_path)
    first, second = rows(db, "concepts")
    assert (first["error_code"], second["error_code"]) == (None, None)
    assert (first["superclass"], len(first["images"]), first["train"]) == ("coffee mug", 2, '{"steps": 7}')
    assert (len(second["images"]), second["train"], second["masks"]) == (1, None, None)
    assert [row["season"] for row in rows(db, "concepts_extra")] == ["SS26", None]


def test_train_as_a_struct_and_columns_of_any_type_are_carried_through(db, photos, tmp_path):
    table = pa.table(
        {
            "concept_id": ["a", "b"],
            "superclass": pa.array(["mug", "mug"]).dictionary_encode(),
            "images": pa.array(["photos/0.png", "photos/1.jpg"], pa.large_string()),
            "train": pa.array([{"steps": 5, "bias": None}, {"steps": None, "bias": None}]),
            "tags": [["x", "y"], []],
            "price": pa.array([1.25, None]),
            'od"d name': [1, 2],
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    concepts(db, tmp_path / "c.parquet", tmp_path)
    found = rows(db, "concepts")
    assert [(row["error_code"], row["train"]) for row in found] == [(None, '{"steps": 5}'), (None, None)]
    assert rows(db, "concepts_extra") == [
        {"row": 1, "tags": ["x", "y"], "price": 1.25, 'od"d name': 1},
        {"row": 2, "tags": [], "price": None, 'od"d name': 2},
    ]


@pytest.mark.parametrize("uri", ["p", "p/season=*/*/*.parquet"])
def test_folders_named_like_columns_give_columns(db, uri, tmp_path):
    for season, year in (("SS26", 2026), ("a%20b", 2025), ("__HIVE_DEFAULT_PARTITION__", 2024)):
        folder = tmp_path / "x=1" / "p" / f"season={season}" / f"year={year}"
        folder.mkdir(parents=True)
        write_parquet(folder / "0.parquet", prompt=["{product}"], brand=["b"])
    load_prompts(db, str(tmp_path / "x=1" / uri))
    assert rows(db, "prompts_extra") == [
        {"row": 1, "brand": "b", "season": "SS26", "year": 2026},
        {"row": 2, "brand": "b", "season": None, "year": 2024},
        {"row": 3, "brand": "b", "season": "a b", "year": 2025},
    ]


def test_a_folder_may_not_name_a_column_that_the_files_have(db, tmp_path):
    (tmp_path / "p" / "brand=x").mkdir(parents=True)
    write_parquet(tmp_path / "p" / "brand=x" / "0.parquet", prompt=["{product}"], brand=["b"])
    with pytest.raises(ManifestError, match=r"has the column 'brand' more than once"):
        load_prompts(db, str(tmp_path / "p"))


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_what_makes_a_manifest_unusable_is_one_sentence(tmp_path):
    good = {"prompt": ["{product}"]}
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    write_parquet(mixed / "a.parquet", **good)
    (mixed / "b.csv").write_text("prompt\n")
    types = tmp_path / "types"
    types.mkdir()
    write_parquet(types / "a.parquet", **good, price=[1])
    write_parquet(types / "b.parquet", **good, price=[1.5])
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    write_parquet(lacking / "a.parquet", **good)
    write_parquet(lacking / "b.parquet", promt=["{product}"])
    (tmp_path / "empty-folder").mkdir()
    for name, content in {
        "zero.parquet": b"",
        "zero.csv": b"",
        "zero.jsonl": b"",
        "header.csv": b"prompt\n",
        "text.parquet": b"no parquet at all",
        "latin.csv": "prompt\ncaf\u00e9 {product}\n".encode("latin-1"),
        "open.csv": b'prompt,"k\n{product},x\n',
        "twice.csv": b"prompt,a,a\n{product},1,2\n",
        "nameless.csv": b",prompt\n7,{product}\n",
        "middle.csv": b"prompt,,k\n{product},0,x\n",
        "manifest.xlsx": b"PK",
        "missing.jsonl": b'{"text": "{product}"}\n',
    }.items():
        (tmp_path / name).write_bytes(content)
    write_parquet(tmp_path / "rows0.parquet", prompt=pa.array([], pa.string()))
    write_parquet(tmp_path / "clash.parquet", **good, status=["x"])
    write_parquet(tmp_path / "case.parquet", **good, Prompt=["x"])
    whole = write_parquet(tmp_path / "whole.parquet", prompt=["{product}"] * 5000).read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    for name, sentence in {
        "none.parquet": "there is no manifest at",
        "none-*.parquet": "there is no manifest at",
        "empty-folder": "there is no manifest at",
        "mixed": "several formats",
        "types": "'price' is BIGINT in one file and DOUBLE in another",
        "lacking": r"b.parquet has no column 'prompt' \(it has 'promt'\)",
        "zero.parquet": "cannot be read",
        "zero.csv": "is empty: write a header",
        "zero.jsonl": "holds no rows",
        "header.csv": "holds no rows",
        "rows0.parquet": "holds no rows",
        "text.parquet": "cannot be read",
        "half.parquet": "cannot be read",
        "latin.csv": "not UTF-8",
        "open.csv": "line 1 of .*, the header, opens a quote that is not closed",
        "twice.csv": "more than once",
        "nameless.csv": "column 1 of .* has no name and does not count",
        "middle.csv": "column 2 of .* has the name ''",
        "manifest.xlsx": "has no extension of a manifest",
        "missing.jsonl": "has no column 'prompt'",
        "clash.parquet": "'status'.*rename it",
        "case.parquet": "only by case",
    }.items():
        with PlanDB(threads=1) as db, pytest.raises(ManifestError, match=sentence):
            load_prompts(db, str(tmp_path / name))
    with PlanDB(threads=1) as db, pytest.raises(ManifestError, match="nosuch"):
        load_prompts(db, "nosuch://bucket/x.parquet")


def test_a_manifest_and_its_pictures_may_lie_in_any_file_system(db, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shop/2026/photos/0.png", picture(0))
    line = json.dumps(
        {"concept_id": "a", "superclass": "mug", "images": ["photos/0.png", "memory://shop/2026/photos/0.png"]}
    )
    memory.pipe_file("/shop/2026/c.jsonl", line.encode())
    memory.pipe_file("/shop/2026/.hidden.jsonl", b"junk")
    summaries = []
    for uri in ("memory://shop/2026/c.jsonl", "memory://shop/2026/*.jsonl"):
        with PlanDB(threads=1) as database:
            summaries.append(concepts(database, uri, tmp_path))
            (row,) = rows(database, "concepts")
            assert row["error_code"] is None
            assert [image["uri"] for image in row["images"]] == ["memory://shop/2026/photos/0.png"] * 2
    assert summaries[0].digest == summaries[1].digest
    memory.rm("/shop", recursive=True)


def test_the_digest_is_of_the_content_and_the_files(tmp_path):
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in (1, 2) if name == "a" else (2, 1):
            write_jsonl(tmp_path / name / f"{number if name == 'a' else number + 5}.jsonl", [P | {"seed": number}])
        with PlanDB(threads=1) as db:
            digests.append(load_prompts(db, str(tmp_path / name)).digest)
    assert digests[0] == digests[1]
    write_jsonl(tmp_path / "a" / "3.jsonl", [P])
    with PlanDB(threads=1) as db:
        summary = load_prompts(db, str(tmp_path / "a"))
    assert summary.digest != digests[0]
    assert (summary.files, summary.rows) == (3, 3)


def test_a_notice_counts_over_all_files_and_names_the_first_few(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.csv").write_text(f"prompt;k\n{{product}};{number}\n;\n;\n")
    with PlanDB(threads=1) as db:
        summary = load_prompts(db, str(tmp_path))
    assert (summary.rows, summary.good) == (7, 7)
    assert summary.notices == (
        f"file://{tmp_path}: 7 files read with semicolons between cells, as the first line shows "
        "(0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 2 more): correct that line if this is wrong",
        f"file://{tmp_path}: 14 rows of nothing but separators skipped "
        "(0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 2 more): fill a cell in where a row is meant",
    )


def test_a_list_with_commas_asks_for_no_file_that_may_not_be_read(db, photos, tmp_path, monkeypatch):
    def refuse(uri, options=None):
        raise AssertionError(uri)

    (tmp_path / "c.csv").write_text('concept_id,superclass,images\na,mug,"photos/0.png,photos/1.jpg"\n')
    limits = LIMITS.model_copy(update={"allow": ("s3://elsewhere",)})
    monkeypatch.setattr(store, "open_location", refuse)
    assert concepts(db, tmp_path / "c.csv", tmp_path, limits=limits).bad == {"uri_not_allowed": 1}
    (row,) = rows(db, "concepts")
    assert "number 2" in row["error_message"]


def test_text_that_is_not_utf8_in_parquet_is_a_bad_row(db, tmp_path):
    column = pa.array([b"a {product}", b"\xff {product}", None], pa.binary())
    raw = pa.StringArray.from_buffers(3, *column.buffers()[1:3], column.buffers()[0])
    pq.write_table(pa.table({"prompt": raw}), tmp_path / "p.parquet")
    load_prompts(db, str(tmp_path / "p.parquet"))
    assert [row["error_code"] for row in rows(db, "prompts")] == [None, "wrong_type", "missing_value"]


@pytest.mark.parametrize(("kind", "count"), [("parquet", 200_000), ("jsonl", 40_000)])
def test_a_large_manifest_streams(kind, count, tmp_path):
    """What Python and Arrow hold at any moment stays far below the file, even where it is a single row group."""
    path = tmp_path / f"p.{kind}"
    table = large_prompts(count)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=count, use_dictionary=False, compression="none")
    else:
        with path.open("w") as file:
            for row in table.to_pylist():
                file.write(json.dumps(row) + "\n")
    # In a process of its own: Arrow's peak is that of a process, and this one has just made the table.
    program = """
import json, sys, tracemalloc
import pyarrow as pa
from pipeline.manifest.load import load_prompts
from pipeline.database.plandb import EXTRA_ROW, PlanDB

with PlanDB() as db:  # whatever is imported only when it is used
    load_prompts(db, sys.argv[2])
tracemalloc.start()
with PlanDB(memory_limit="200MB", threads=1) as db:
    summary = load_prompts(db, sys.argv[1])
    numbers = "SELECT count(*), min({0}), max({0}) FROM prompts_extra".format(EXTRA_ROW)
    rows = db.connection.execute(numbers).fetchall()[0]
python, arrow = tracemalloc.get_traced_memory()[1], pa.default_memory_pool().max_memory()
print(json.dumps({"good": summary.good, "rows": rows, "python": python, "arrow": arrow}))
"""
    small = write_parquet(tmp_path / "small.parquet", prompt=["{product}"])
    arguments = [sys.executable, "-c", program, str(path), str(small)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)
    assert (result["good"], result["rows"]) == (count, [count, 1, count])
    assert table.nbytes > count * 500
    assert result["python"] < 20e6
    assert result["arrow"] < 40e6


def large_prompts(count):
    filler = "".join(random.Random(0).choices("abcdefgh ", k=280))
    numbers = pc.cast(pa.array(range(count)), pa.string())
    prompts = pc.binary_join_element_wise(numbers, "{product}", filler, " ")
    return pa.table({"prompt": prompts, "note": pc.binary_join_element_wise(numbers, filler, " ")})


def test_bounded_map_takes_no_more_than_its_window_and_keeps_the_order():
    taken = []

    def source():
        for number in range(50):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(4) as pool:
        results = bounded_map(pool, lambda number: number * number, source(), 6)
        for number, result in enumerate(results):
            assert result == number * number
            assert len(taken) <= number + 6
    assert len(taken) == 50


def test_pictures_as_hugging_face_writes_them(photos, tmp_path):
    """Structs of bytes and path: bytes first, in either order of the fields, alone or in a list, for masks too."""
    data, drawn = (photos / "0.png").read_bytes(), (photos / "mask.png").read_bytes()
    path = "photos/0.png"
    whole, named = {"bytes": data, "path": "gone.png"}, {"bytes": None, "path": path}
    empty = {"bytes": None, "path": None}
    for kind in (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]),
    ):
        cells = [[whole], [named], [whole, named], [empty], [None], [{"bytes": b"", "path": path}]]
        masks = [[{"bytes": drawn, "path": None}], None, None, None, None, None]
        several = {"images": pa.array(cells, pa.list_(kind)), "masks": pa.array(masks, pa.list_(kind))}
        single = {"images": pa.array([whole, named, empty, None], kind)}
        for columns, codes in (
            (several, [None, None, None, "missing_value", "missing_value", "image_empty"]),
            (single, [None, None, "missing_value", "missing_value"]),
        ):
            count = len(codes)
            ids = {"concept_id": [f"c{n}" for n in range(count)], "superclass": ["mug"] * count}
            pq.write_table(pa.table({**ids, **columns}), tmp_path / "c.parquet")
            storage = Storage(str(tmp_path / "root"))
            with PlanDB() as db:
                manifest = str(tmp_path / "c.parquet")
                load_concepts(db, manifest, storage=storage, limits=InputLimits(), cache=InputCache(storage))
                found = db.connection.execute("SELECT error_code, images FROM concepts ORDER BY row").fetchall()
            assert [code for code, _ in found] == codes
            uris = [image["uri"] for _, images in found[:2] for image in images]
            assert uris == [storage.uri(input_path(hashlib.sha256(data).hexdigest())), f"file://{photos}/0.png"]


def test_other_structs_are_refused_without_their_values(photos, tmp_path):
    cells = [[{"url": "https://x/y?sig=hunter2"}], {"src": "hunter2"}, [{}], [{"bytes": "hunter2="}]]
    rows = [{"concept_id": f"c{n}", "superclass": "mug", "images": images} for n, images in enumerate(cells)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    storage = Storage(str(tmp_path / "root"))
    with PlanDB() as db:
        load_concepts(db, str(tmp_path / "c.jsonl"), storage=storage, limits=InputLimits(), cache=InputCache(storage))
        found = db.connection.execute("SELECT error_code, error_message FROM concepts ORDER BY row").fetchall()
    assert [code for code, _ in found] == ["wrong_type"] * 4
    assert "hunter2" not in str(found)


def test_only_pictures_that_are_read_in_another_way_than_before_change_a_concepts_key(photos, tmp_path):
    """Concepts that an earlier version trained are found again, but those whose pictures mean other pixels now."""
    profiles = {"srgb": icc.SAME["srgb v2"], "adobe": icc.PROFILES["adobe"][0]}
    for name, profile in profiles.items():
        Image.open(photos / "0.png").save(photos / f"{name}.png", icc_profile=profile)
    cut = Image.new("RGBA", (40, 32), (0, 90, 0, 0))
    cut.paste((0, 90, 0, 255), (0, 0, 20, 32))
    cut.save(photos / "cut.png")
    rows = [("0", "mask"), ("srgb", "mask"), ("adobe", "mask"), ("0", "cut")]
    text = "".join(f"c{n},mug,photos/{image}.png,photos/{mask}.png\n" for n, (image, mask) in enumerate(rows))
    (tmp_path / "c.csv").write_text("concept_id,superclass,images,masks\n" + text)
    storage, training = Storage(str(tmp_path / "root")), TrainingConfig()
    with PlanDB() as db:
        load_concepts(db, str(tmp_path / "c.csv"), storage=storage, limits=InputLimits(), cache=InputCache(storage))
        plan_concepts(db, base_digest="b", metric_key="m", training=training)
        found = [
            key for (key,) in db.connection.execute("SELECT concept_key FROM concept_keys ORDER BY row").fetchall()
        ]

    def key(image, mask, read=("", "")):
        fields = tuple(
            hashlib.sha256((photos / f"{name}.png").read_bytes()).hexdigest() + suffix
            for name, suffix in zip((image, mask), read, strict=True)
        )
        return concept_key(base_digest="b", metric_key="m", training=training, superclass="mug", images=[fields])

    assert found == [key(*rows[0]), key(*rows[1]), key(*rows[2], (":srgb", "")), key(*rows[3], ("", ":alpha"))]


@pytest.mark.parametrize(
    ("values", "unit", "kind"),
    [
        ([0, 1_767_229_261_123_456], "us", "TIMESTAMP_NS"),
        ([253_402_214_400_000_000, 1_767_229_261_123_456, None], "us", "TIMESTAMP"),  # 9999-12-31
        ([-62_135_596_800_000_000], "us", "TIMESTAMP"),  # 0001-01-01
        ([1_767_229_261_123_456_789], "ns", "TIMESTAMP_NS"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_timestamps_of_the_old_type_are_kept_whole(db, tmp_path, values, unit, kind, nested):
    array = pa.array(values, pa.int64()).cast(pa.timestamp(unit))
    given = (
        pa.array([[value] for value in array.to_numpy(zero_copy_only=False)], pa.list_(array.type)) if nested else array
    )
    table = pa.table({"prompt": ["{product}"] * len(given), "t": given})
    pq.write_table(table, tmp_path / "p.parquet", use_deprecated_int96_timestamps=True)
    load_prompts(db, str(tmp_path / "p.parquet"))
    value = "t[1]" if nested else "t"
    found = db.connection.sql(f"SELECT {value} AS t FROM prompts_extra ORDER BY {EXTRA_ROW}")
    assert str(found.types[0]) == kind
    assert found.to_arrow_table()["t"].cast(pa.timestamp(unit)).cast(pa.int64()).to_pylist() == values


def test_timestamps_that_no_unit_holds_are_refused(db, tmp_path):
    pq.write_table(
        pa.table(
            {
                "prompt": ["{product}"],
                "far": pa.array([253_402_214_400_000_000], pa.timestamp("us")),
                "fine": pa.array([1_767_229_261_123_456_789], pa.timestamp("ns")),
            }
        ),
        tmp_path / "p.parquet",
        use_deprecated_int96_timestamps=True,
    )
    with pytest.raises(ManifestError, match=r"'far'.*'fine'.*TIMESTAMP_MICROS"):
        load_prompts(db, str(tmp_path / "p.parquet"))
