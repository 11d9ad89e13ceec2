"""Runs with scenes: what stays is the photo's, tables say what was drawn into, and a changed photo is drawn again."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.plan.changes import SCENE
from pipeline.run import execute
from pipeline.storage.objects import Storage
from tests.support.runs import Engines, Silent, photo, run_settings
from tests.support.shop import CONCEPTS, PhotosVanish, check_accounts, go, stock, tables

pytestmark = pytest.mark.timeout(300)
BOX = [0.25, 0.25, 0.75, 1.0]
BEACH = {"prompt": "a {mug-1} on the beach", "seed": 1, "scene": "beach.png", "scene_box": BOX}
KEPT = {"prompt": "a photo of a {mug-1} in the snow", "seed": 2, "keep": "product"}
PLAIN = {"prompt": "a photo of a {mug-1} on the beach", "seed": 3}


@pytest.fixture
def place(tmp_path):
    """Pictures of one product with its mask, and of two scenes."""
    for number, name in enumerate(("mug-1", "beach", "street")):
        photo(tmp_path / f"{name}.png", seed=number)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:50, 13:41] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def fill(folder, *prompts, **concept):
    stock(folder, [{**CONCEPTS[0], "masks": ["mask.png"], **concept}], list(prompts))


def pixels(root, row):
    storage = Storage(root)
    with Image.open(io.BytesIO(storage.read(row["uri"].removeprefix(storage.root + "/")))) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        return np.asarray(picture), picture.text, picture.info["xmp"].decode()


def test_what_stays_is_the_photo_s_to_the_bit(place, tmp_path):
    root = str(tmp_path / "root")
    fill(place, BEACH, KEPT, PLAIN)
    result, engines = go(root, place, engine={"render_batch": 4, "plan_memory": "200MB", "threads": 2})
    check_accounts(root, result, concepts=1, prompts=3, pictures=3)
    beach, kept, plain = tables(root, result.run_id)["renders"]
    scene, text, packet = pixels(root, beach)
    photo_of_scene = np.asarray(Image.open(place / "beach.png"))
    inside = np.zeros((64, 64), bool)
    inside[16:64, 16:48] = True
    assert np.array_equal(scene[~inside], photo_of_scene[~inside])
    assert (scene[24:64, 24:40] != photo_of_scene[24:64, 24:40]).any(-1).mean() > 0.9
    assert text["perfusion:scene_sha256"] == hashlib.sha256((place / "beach.png").read_bytes()).hexdigest()
    assert "/compositeWithTrainedAlgorithmicMedia<" in packet
    product, text, packet = pixels(root, kept)
    photo_of_product = np.asarray(Image.open(place / "mug-1.png"))
    assert np.array_equal(product[20:50, 13:41], photo_of_product[20:50, 13:41])
    assert (product[:20] != photo_of_product[:20]).any(-1).mean() > 0.9
    assert "compositeWith" in packet
    _, text, packet = pixels(root, plain)
    assert "perfusion:scene_sha256" not in text
    assert "/trainedAlgorithmicMedia<" in packet
    # The row that keeps the product is drawn before the concept exists; the others are in batches of their own.
    assert {unit.tasks[0].shape.scene_strength for unit in engines.units if "render" in unit.unit_id} == {None, 1.0}


def test_tables_say_what_was_drawn_into(place, tmp_path):
    root = str(tmp_path / "root")
    fill(place, BEACH, KEPT, PLAIN)
    result, _ = go(root, place)
    names = ("scene", "scene_sha256", "scene_mask", "scene_box", "scene_strength", "keep")
    digest = {name: hashlib.sha256((place / f"{name}.png").read_bytes()).hexdigest() for name in ("beach", "mug-1")}
    assert [tuple(row[name] for name in names) for row in tables(root, result.run_id)["renders"]] == [
        (f"file://{place}/beach.png", digest["beach"], None, BOX, 1.0, None),
        (f"file://{place}/mug-1.png", digest["mug-1"], f"file://{place}/mask.png", None, 1.0, "product"),
        (None,) * 6,
    ]


def test_a_photo_that_changed_is_drawn_into_again_and_all_else_is_reused(place, tmp_path):
    root = str(tmp_path / "root")
    street = {**BEACH, "scene": "street.png"}
    fill(place, BEACH, street, KEPT, PLAIN)
    first, _ = go(root, place)
    again, engines = go(root, place)
    assert (again.repeated, engines.units) == (True, [])
    photo(place / "beach.png", seed=9)
    engines = Engines()
    settings = run_settings(root, place)
    changed = execute(settings, make_engine=engines, observer=Silent(), explain=True)
    assert changed.planned.changes.renders == {SCENE: 1}
    before, after = (tables(root, run.run_id)["renders"] for run in (first, changed))
    assert [row["origin"] for row in after] == ["rendered", "reused", "reused", "reused"]
    assert [old["render_key"] == new["render_key"] for old, new in zip(before, after, strict=True)] == [
        False, True, True, True,
    ]  # fmt: skip


def test_a_kept_product_is_drawn_again_only_if_its_photo_changes(place, tmp_path):
    root = str(tmp_path / "root")
    fill(place, KEPT)
    first, _ = go(root, place)
    other, _ = go(root, place, train={"steps": 1, "batch": 1})
    one, two = (tables(root, run.run_id)["renders"][0] for run in (first, other))
    assert (two["origin"], two["render_key"]) == ("reused", one["render_key"])
    assert two["concept_keys"] != one["concept_keys"]


def test_a_photo_that_is_missing_fails_its_row_alone(place, tmp_path):
    root = str(tmp_path / "root")
    fill(place, {**BEACH, "scene": "gone.png"}, BEACH, {**BEACH, "scene": "street.png"}, PLAIN)
    result, _ = go(root, place, PhotosVanish([place / "street.png"]))
    found = check_accounts(root, result, concepts=1, prompts=4)["renders"]
    assert [(row["status"], row["error_code"], row["error_column"]) for row in found] == [
        ("invalid", "image_missing", "scene"),
        ("ok", None, None),
        ("invalid", "image_missing", None),
        ("ok", None, None),
    ]
    assert "there is no" in found[2]["error_message"]


def test_a_region_that_is_cut_off_is_an_error_of_its_row(place, tmp_path):
    photo(place / "wide.png", size=(256, 64))
    edge = {**BEACH, "scene": "wide.png", "scene_box": [0, 0, 0.2, 1]}
    fill(place, edge, {**edge, "width": 128, "height": 32}, BEACH)
    root = str(tmp_path / "root")
    result, _ = go(root, place)
    found = tables(root, result.run_id)["renders"]
    assert [(row["status"], row["error_code"], row["error_column"]) for row in found] == [
        ("invalid", "mask_empty", "scene_box"), ("ok", None, None), ("ok", None, None),
    ]  # fmt: skip
    assert "width and a height" in found[0]["error_message"]
