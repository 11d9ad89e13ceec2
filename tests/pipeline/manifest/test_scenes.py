"""Cells of scenes: what they may say, what contradicts, and photos that are read once."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.contract.schemas import RESERVED_COLUMNS
from pipeline.database.plandb import PlanDB
from pipeline.files.batches import find_manifest
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.manifest import scenes
from pipeline.manifest.local_files import first_local_picture
from pipeline.manifest.prompts import load_prompts
from pipeline.storage.objects import Storage
from tests.support.runs import photo

BOX = [0.25, 0.25, 0.75, 1.0]
CONFLICT = "scene_conflict"
COLUMNS = "scene, scene_mask, scene_box, scene_strength, keep, keep_photo, error_code, error_column, error_message"


@pytest.fixture
def folder(tmp_path):
    photo(tmp_path / "beach.png", seed=1)
    photo(tmp_path / "wide.png", seed=2, size=(128, 64))
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "place.png")
    return tmp_path


def load(folder, rows, limits=None, name="p.jsonl"):
    """The rows of `prompts` after a check."""
    path = folder / name
    path.write_text("".join(json.dumps({"prompt": "a {product}", **row}) + "\n" for row in rows))
    return checked(folder, path, limits)


def checked(folder, path, limits=None):
    storage = Storage(str(folder / "root"))
    with PlanDB() as db:
        load_prompts(db, str(path), storage=storage, limits=limits, cache=InputCache(storage), threads=2)
        columns = (
            "scene, scene_mask, scene_box, scene_strength, keep, keep_photo, error_code, error_column, error_message"
        )
        found = db.connection.execute(f"SELECT {columns} FROM prompts ORDER BY row").fetchall()
    return [dict(zip(columns.split(", "), row, strict=True)) for row in found]


def test_names_of_the_columns_are_reserved():
    assert scenes.COLUMNS <= RESERVED_COLUMNS


def test_a_scene_is_a_photo_with_a_mask_or_a_box(folder):
    one, other, kept, plain = load(
        folder,
        [
            {"scene": "beach.png", "scene_mask": "place.png", "scene_strength": 0.5},
            {"scene": f"file://{folder}/beach.png", "scene_box": BOX},
            {"keep": "product", "keep_photo": 2},
            {},
        ],
    )
    assert [row["error_message"] for row in (one, other, kept, plain)] == [None] * 4
    assert one["scene"] == other["scene"]
    assert one["scene"]["uri"] == f"file://{folder}/beach.png"
    assert (len(one["scene"]["sha256"]), one["scene"]["reading"]) == (64, "")
    assert one["scene_mask"]["uri"].endswith("place.png")
    assert (one["scene_strength"], other["scene_strength"], other["scene_box"]) == (0.5, None, BOX)
    assert (kept["keep"], kept["keep_photo"], kept["scene"]) == ("product", 2, None)
    assert not any(plain.values())


@pytest.mark.parametrize(
    ("cells", "code", "column", "says"),
    [
        ({"scene": "beach.png", "scene_box": BOX, "keep": "product"}, CONFLICT, "keep", "leave one of them empty"),
        ({"scene": "beach.png", "scene_box": BOX, "scene_mask": "place.png"}, CONFLICT, "scene_box", "leave one"),
        ({"scene_box": BOX}, CONFLICT, "scene_box", "no scene"),
        ({"scene_mask": "place.png"}, CONFLICT, "scene_mask", "no scene"),
        ({"scene_strength": 0.5}, CONFLICT, "scene_strength", "no scene and no keep"),
        ({"keep_photo": 1}, CONFLICT, "keep_photo", "no keep"),
        ({"scene": "beach.png"}, "missing_value", "scene_box", "rename it"),
        ({"keep": "background"}, "out_of_range", "keep", "one of product"),
        ({"keep": "product", "keep_photo": 0}, "out_of_range", "keep_photo", "between 1"),
        ({"scene": "beach.png", "scene_box": BOX, "scene_strength": 0}, "out_of_range", "scene_strength", "above 0"),
        ({"scene": "beach.png", "scene_box": [0.2, 0.2, 0.2, 0.9]}, "out_of_range", "scene_box", "no area"),
        ({"scene": "beach.png", "scene_box": [0, 0, 1.2, 1]}, "out_of_range", "scene_box", "between 0 and 1"),
        ({"scene": "beach.png", "scene_box": [0, 0, 1]}, "wrong_type", "scene_box", "four shares"),
        ({"scene": "beach.png", "scene_box": "middle"}, "wrong_type", "scene_box", "four shares"),
        ({"scene": "kitchen", "scene_box": BOX}, "image_missing", "scene", "my_scene"),
        ({"scene": "beach.png", "scene_mask": "no.png"}, "image_missing", "scene_mask", "upload it"),
        ({"scene": 5, "scene_box": BOX}, "wrong_type", "scene", "URI"),
        ({"scene": "../beach.png", "scene_box": BOX}, "uri_not_allowed", "scene", "climbs"),
        ({"scene": "wide.png", "scene_mask": "place.png"}, "masks_mismatch", "scene_mask", "whole scene"),
    ],
)  # fmt: skip
def test_each_problem_has_its_code_column_and_remedy(folder, cells, code, column, says):
    bad, good = load(folder, [cells, {}])
    assert (bad["error_code"], bad["error_column"]) == (code, column)
    assert says in bad["error_message"]
    assert column in bad["error_message"]
    assert good["error_code"] is None


def test_scenes_obey_the_limits_of_photos(folder):
    rows = [{"scene": "beach.png", "scene_box": BOX}]
    assert load(folder, rows, InputLimits(max_pixels=63 * 64))[0]["error_code"] == "image_too_many_pixels"
    assert load(folder, rows, InputLimits(allow=(f"{folder}/other",)))[0]["error_code"] == "uri_not_allowed"
    assert load(folder, rows, InputLimits(allow=(str(folder),)))[0]["error_code"] is None


def test_csv_and_parquet_mean_the_same(folder):
    want = load(folder, [{"scene": "beach.png", "scene_box": BOX, "scene_strength": 0.5}])
    csv = folder / "p.csv"
    csv.write_text('prompt,scene,scene_box,scene_strength,keep\n"a {product}",beach.png,"0.25, 0.25, 0.75, 1",0.5,\n')
    assert checked(folder, csv) == want
    table = {"prompt": ["a {product}"], "scene": ["beach.png"], "scene_box": [BOX], "scene_strength": [0.5]}
    pq.write_table(pa.table(table), folder / "p.parquet")
    assert checked(folder, folder / "p.parquet") == want


def test_a_scene_given_as_bytes_is_stored_once(folder):
    data = (folder / "beach.png").read_bytes()
    table = pa.table({"prompt": ["a {product}"] * 2, "scene": [data] * 2, "scene_box": [BOX] * 2})
    pq.write_table(table, folder / "p.parquet")
    one, other = checked(folder, folder / "p.parquet")
    assert one["scene"] == other["scene"]
    assert Path(one["scene"]["uri"].removeprefix("file://")).read_bytes() == data


def test_an_address_is_examined_once_for_all_rows(folder, monkeypatch):
    seen = []
    examine = InputStore.examine
    monkeypatch.setattr(InputStore, "examine", lambda self, uri, role: seen.append(uri) or examine(self, uri, role))
    rows = [{"scene": name, "scene_box": BOX} for name in ("beach.png", "no.png")] * 50
    found = load(folder, rows)
    assert [row["error_code"] for row in found] == [None, "image_missing"] * 50
    assert len(seen) <= 8  # two threads may look at the same time


def test_rows_stay_in_their_order_among_rows_without_a_scene(folder):
    rows = [{"scene": "beach.png", "scene_box": [0, 0, 1, n / 100]} if n % 3 else {} for n in range(1, 60)]
    boxes = [row["scene_box"] for row in load(folder, rows)]
    assert boxes == [[0, 0, 1, n / 100] if n % 3 else None for n in range(1, 60)]


def test_local_scenes_are_found_for_a_submission(folder):
    load(folder, [{}, {"scene": "beach.png", "scene_box": BOX}])
    found = first_local_picture(find_manifest(str(folder / "p.jsonl"), None), prompts=True)
    assert found == (2, "beach.png")
