"""Photos and masks of manifest rows: every kind of bad one has its code, and bytes are stored once."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from perfusion_ops.config import TrainingConfig
from pipeline.contract.errors import Code
from pipeline.contract.layout import input_path
from pipeline.database.plandb import PlanDB
from pipeline.inputs import store
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.manifest.concepts import load_concepts
from pipeline.plan.expand import plan_concepts
from pipeline.storage.objects import Storage
from tests.support import icc
from tests.support.manifests import GOOD, LIMITS, concepts, mask, picture, rows, write_jsonl
from tests.support.reference_keys import concept_key

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
    assert "is already in row 1" in duplicate["error_message"]


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


def test_a_list_with_commas_asks_for_no_file_that_may_not_be_read(db, photos, tmp_path, monkeypatch):
    def refuse(uri, options=None):
        raise AssertionError(uri)

    (tmp_path / "c.csv").write_text('concept_id,superclass,images\na,mug,"photos/0.png,photos/1.jpg"\n')
    limits = LIMITS.model_copy(update={"allow": ("s3://elsewhere",)})
    monkeypatch.setattr(store, "open_location", refuse)
    assert concepts(db, tmp_path / "c.csv", tmp_path, limits=limits).bad == {"uri_not_allowed": 1}
    (row,) = rows(db, "concepts")
    assert "number 2" in row["error_message"]


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
