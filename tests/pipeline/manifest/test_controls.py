"""Cells of ControlNets and videos: what they may say, and what is missing."""

import json

import pytest

from pipeline.contract.schemas import RESERVED_COLUMNS
from pipeline.database.plandb import PlanDB
from pipeline.files.batches import find_manifest
from pipeline.inputs.cache import InputCache
from pipeline.manifest import controls
from pipeline.manifest.local_files import first_local_picture
from pipeline.manifest.prompts import load_prompts
from pipeline.storage.objects import Storage
from tests.support.runs import photo

COLUMNS = (
    *("control", "control_picture.uri", "control_strength", "guidance_rescale", "frames", "fps"),
    *("error_code", "error_column", "error_message"),
)


@pytest.fixture
def folder(tmp_path):
    photo(tmp_path / "edges.png", seed=1)
    return tmp_path


def load(folder, *rows):
    """The rows of `prompts` after a check."""
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a {product}", **row}) + "\n" for row in rows))
    storage = Storage(str(folder / "root"))
    with PlanDB() as db:
        load_prompts(db, str(path), storage=storage, cache=InputCache(storage), threads=2)
        found = db.connection.execute(f"SELECT {', '.join(COLUMNS)} FROM prompts ORDER BY row").fetchall()
    return [dict(zip((name.rpartition(".")[0] or name for name in COLUMNS), row, strict=True)) for row in found]


def test_names_of_the_columns_are_reserved():
    assert controls.COLUMNS | {"guidance_rescale", "frames", "fps"} <= RESERVED_COLUMNS


def test_good_cells_are_kept(folder):
    [row, other] = load(
        folder,
        {"control": "canny", "control_picture": "edges.png", "control_strength": 0.5, "guidance_rescale": 0.7},
        {"frames": 24, "fps": 12},
    )
    assert row["control"] == "canny"
    assert row["control_picture"].endswith("/edges.png")
    assert (row["control_strength"], row["guidance_rescale"], row["error_code"]) == (0.5, 0.7, None)
    assert (other["frames"], other["fps"], other["control"], other["error_code"]) == (24, 12, None, None)


@pytest.mark.parametrize(
    ("cells", "code", "column", "says"),
    [
        ({"control": "canny"}, "missing_value", "control_picture", "the row has control, but no control_picture"),
        ({"control_picture": "edges.png"}, "missing_value", "control", "rename it"),
        ({"control_strength": 0.5}, "missing_value", "control", "no control:"),
        ({"control": "canny", "control_picture": "none.png"}, "image_missing", "control_picture", "none.png"),
        ({"control": "a b", "control_picture": "edges.png"}, "bad_id", "control", "'a b'"),
        ({"control": 3, "control_picture": "edges.png"}, "wrong_type", "control", "3"),
        (
            {"control": "canny", "control_picture": "edges.png", "control_strength": 0},
            *("out_of_range", "control_strength", "above 0 and at most 2"),
        ),
        ({"guidance_rescale": 1.5}, "out_of_range", "guidance_rescale", "between 0 and 1"),
        ({"frames": 1}, "out_of_range", "frames", "between 2 and 256"),
        ({"frames": 2.5}, "wrong_type", "frames", "whole number"),
        ({"fps": 61}, "out_of_range", "fps", "between 1 and 60"),
    ],
)
def test_bad_cells_are_problems_of_their_row(folder, cells, code, column, says):
    bad, good = load(folder, cells, {})
    assert (bad["error_code"], bad["error_column"]) == (code, column)
    assert says in bad["error_message"]
    assert good["error_code"] is None


def test_a_local_picture_is_found_for_a_cluster(folder):
    path = folder / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "a", "control": "c", "control_picture": "edges.png"}\n')
    assert first_local_picture(find_manifest(str(path)), prompts=True) == (2, "edges.png")
