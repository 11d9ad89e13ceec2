"""Runs with ControlNets: what is drawn, what makes a picture another one, and what is wrong with a row or a spec."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.base_model import load_base
from pipeline.run import execute
from pipeline.storage.objects import Storage
from pipeline.tables.views import query
from tests.support.runs import Engines, Silent, photo, run_settings
from tests.support.shop import CONCEPTS, PhotosVanish, check_accounts, go, stock, tables
from tests.support.tiny_base import small_parts
from tests.support.tiny_control import control_folder, drawing, sd_folder

pytestmark = pytest.mark.timeout(300)
CANNY = {"prompt": "a {mug-1} on the beach", "seed": 1, "control": "canny", "control_picture": "edges.png"}
DEPTH = {**CANNY, "control": "depth", "control_strength": 0.5}
PLAIN = {"prompt": "a {mug-1} on the beach", "seed": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base model and ControlNets of it; tests only read them."""
    folder = tmp_path_factory.mktemp("models")
    sd_folder(folder / "base")
    for seed, name in enumerate(("canny", "depth", "other"), 1):
        control_folder(folder / name, small_parts()["unet"], seed=seed)
    return folder


@pytest.fixture
def place(tmp_path):
    photo(tmp_path / "mug-1.png")
    for number, name in enumerate(("edges", "street")):
        drawing(number, (48, 32)).save(tmp_path / f"{name}.png")
    return tmp_path


def fill(folder, *prompts):
    stock(folder, [CONCEPTS[0]], list(prompts))


def run(root, place, models, engines=None, **changes):
    controls = {"canny": str(models / "canny"), "depth": str(models / "depth")}
    options = {"base": str(models / "base"), "controls": controls, **changes}
    return go(root, place, engines, **options)


def pixels(row):
    with Image.open(row["uri"].removeprefix("file://")) as picture:
        return np.asarray(picture).astype(int)


def test_rows_are_drawn_under_their_controlnets(place, models, tmp_path):
    root = str(tmp_path / "root")
    fill(place, CANNY, DEPTH, PLAIN, {**CANNY, "prompt": "a mug on the beach {mug-1}", "control_picture": "street.png"})
    result, engines = run(root, place, models, engine={"render_batch": 4, "plan_memory": "200MB", "threads": 2})
    found = check_accounts(root, result, concepts=1, prompts=4, pictures=4)["renders"]
    assert [row["error_message"] for row in found] == [None] * 4
    drawn = [pixels(row) for row in found]
    for one in range(3):
        for other in range(one):
            assert np.abs(drawn[one] - drawn[other]).max() > 4
    digest = hashlib.sha256((place / "edges.png").read_bytes()).hexdigest()
    names = ("control", "control_picture", "control_sha256", "control_strength")
    assert [tuple(row[name] for name in names) for row in found[:3]] == [
        ("canny", f"file://{place}/edges.png", digest, 1.0),
        ("depth", f"file://{place}/edges.png", digest, 0.5),
        (None,) * 4,
    ]
    shapes = {(unit.tasks[0].shape.control, len(unit.tasks)) for unit in engines.units if "render" in unit.unit_id}
    assert shapes == {("canny", 2), ("depth", 1), (None, 1)}


def test_a_run_is_repeated_and_only_what_changed_is_drawn_again(place, models, tmp_path):
    root = str(tmp_path / "root")
    fill(place, CANNY, DEPTH, PLAIN)
    first, _ = run(root, place, models)
    again, engines = run(root, place, models)
    assert (again.repeated, engines.units) == (True, [])
    other = {"canny": str(models / "other"), "depth": str(models / "depth")}
    changed, _ = run(root, place, models, controls=other)
    before, after = (tables(root, each.run_id)["renders"] for each in (first, changed))
    assert [row["origin"] for row in after] == ["rendered", "reused", "reused"]
    same = [old["render_key"] == new["render_key"] for old, new in zip(before, after, strict=True)]
    assert same == [False, True, True]
    assert np.abs(pixels(before[0]) - pixels(after[0])).max() > 4
    drawing(9, (48, 32)).save(place / "edges.png")
    moved, _ = run(root, place, models)
    after = tables(root, moved.run_id)["renders"]
    assert [row["origin"] for row in after] == ["rendered", "rendered", "reused"]
    assert np.abs(pixels(before[0]) - pixels(after[0])).max() > 4


def test_the_name_is_no_part_of_the_key(place, models, tmp_path):
    root = str(tmp_path / "root")
    fill(place, CANNY)
    first, _ = run(root, place, models)
    fill(place, {**CANNY, "control": "lines"})
    second, engines = run(root, place, models, controls={"lines": str(models / "canny")})
    one, two = (tables(root, each.run_id)["renders"][0] for each in (first, second))
    assert (two["origin"], two["render_key"]) == ("reused", one["render_key"])
    assert engines.units == []


def test_bad_rows_do_not_stop_the_others(place, models, tmp_path):
    root = str(tmp_path / "root")
    fill(
        place,
        {**CANNY, "control": "pose"},
        {**CANNY, "control_picture": "gone.png"},
        {**CANNY, "control_picture": "street.png"},
        CANNY,
        {**CANNY, "guidance_rescale": 0.5},
    )
    result, _ = run(root, place, models, PhotosVanish([place / "street.png"]))
    found = check_accounts(root, result, concepts=1, prompts=5)["renders"]
    assert [(row["status"], row["error_code"], row["error_column"]) for row in found] == [
        ("invalid", "out_of_range", "control"),
        ("invalid", "image_missing", "control_picture"),
        ("invalid", "image_missing", "control_picture"),
        ("ok", None, None),
        ("invalid", "out_of_range", "guidance_rescale"),
    ]
    assert "the spec has controls canny, depth" in found[0]["error_message"]


class EdgesChange(PhotosVanish):
    """Another picture is at the address when the workers begin."""

    def __init__(self, path):
        super().__init__([])
        self.path = path

    def __call__(self, worker):
        drawing(7, (48, 32)).save(self.path)
        return super().__call__(worker)


def test_a_picture_that_is_replaced_during_the_run_fails_its_row(place, models, tmp_path):
    root = str(tmp_path / "root")
    fill(place, CANNY, PLAIN)
    result, _ = run(root, place, models, EdgesChange(place / "edges.png"))
    found = tables(root, result.run_id)["renders"]
    assert [(row["status"], row["error_code"], row["error_column"]) for row in found] == [
        ("failed", "image_changed", "control_picture"), ("ok", None, None),
    ]  # fmt: skip
    assert "run again to draw with the new picture" in found[0]["error_message"]
    again, _ = run(root, place, models)
    assert [row["origin"] for row in tables(root, again.run_id)["renders"]] == ["rendered", "reused"]


def test_a_prompt_that_fits_with_its_concept_alone_is_too_long_for_a_controlnet(place, models, tmp_path):
    root = str(tmp_path / "root")
    limit = load_base(describe(models / "base")).tokenizer.model_max_length
    words = "a {mug-1} " + "a " * (limit - 4)  # with the start, the end and one token for the concept
    stock(
        place, [{**CONCEPTS[0], "superclass": "teddy bear"}], [{**PLAIN, "prompt": words}, {**CANNY, "prompt": words}]
    )
    result, engines = run(root, place, models)
    found = tables(root, result.run_id)["renders"]
    assert [(row["status"], row["error_code"], row["error_column"]) for row in found] == [
        ("ok", None, None), ("invalid", "prompt_too_long", "prompt"),
    ]  # fmt: skip
    assert "ControlNet" in found[1]["error_message"]
    assert {task.control for unit in engines.units for task in unit.tasks if "render" in unit.unit_id} == {None}


def test_weights_that_are_damaged_fail_the_rows_that_need_them(place, models, tmp_path):
    root, broken = str(tmp_path / "root"), tmp_path / "broken"
    control_folder(broken, small_parts()["unet"])
    file = broken / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    fill(place, CANNY, {**CANNY, "seed": 2}, PLAIN)
    result, _ = run(root, place, models, controls={"canny": str(broken)})
    found = tables(root, result.run_id)["renders"]
    assert [(row["status"], row["error_code"], row["error_column"]) for row in found] == [
        ("failed", "weights_invalid", "control"), ("failed", "weights_invalid", "control"), ("ok", None, None),
    ]  # fmt: skip
    assert "copy it again" in found[0]["error_message"]


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"canny": "nowhere"}, "controls.canny: there is no ControlNet 'nowhere'"),
        ({"canny": "{models}/base"}, "controls.canny: .* is no ControlNet: it has no config.json"),
        ({"canny": "s3//x/y"}, "s3//x/y"),
    ],
)
def test_a_spec_whose_controlnet_is_wrong_starts_nothing(place, models, tmp_path, controls, message):
    fill(place, PLAIN)
    given = {name: location.replace("{models}", str(models)) for name, location in controls.items()}
    with pytest.raises((BaseError, ValueError), match=message):
        run(str(tmp_path / "root"), place, models, controls=given)


def test_another_picture_is_a_reason_and_each_control_is_current(place, models, tmp_path):
    root = str(tmp_path / "root")
    options = {"base": str(models / "base"), "controls": {name: str(models / name) for name in ("canny", "depth")}}

    def why():
        settings = run_settings(root, place, **options)
        done = execute(settings, make_engine=Engines(), observer=Silent(), explain=True)
        return done.planned.changes.renders

    fill(place, CANNY, {**CANNY, "control_picture": "street.png"}, DEPTH, PLAIN)
    assert why() == {"new": 4}
    drawing(9, (48, 32)).save(place / "edges.png")
    assert why() == {"control": 2}
    fill(place, {**CANNY, "control": "depth", "control_picture": "street.png"}, DEPTH, PLAIN)
    assert why() == {"control": 1}
    fill(place, {**DEPTH, "control_strength": 0.75}, PLAIN)
    assert why() == {"settings": 1}
    shown = query(Storage(root), "SELECT control, control_picture FROM current").to_pylist()
    found = sorted((row["control"] or "", (row["control_picture"] or "").rpartition("/")[2]) for row in shown)
    assert found == [
        ("", ""),
        ("canny", "edges.png"),
        ("canny", "street.png"),
        ("depth", "edges.png"),
        ("depth", "street.png"),
    ]
