"""Compatibility: this version makes the same keys, columns, file names and headers as commit 9c9c2cb did."""

import json
from pathlib import Path

import pytest

from tests.roots import recipe

TABLES = {"schemas", "remembered_columns"}
ADDED = {  # by schema version 2
    *("scene", "scene_sha256", "scene_mask", "scene_box", "scene_strength", "keep"),
    *("control", "control_picture", "control_sha256", "control_strength", "guidance_rescale", "frames", "fps"),
}
RECORDED = json.loads((Path(recipe.__file__).parent / "root_before_rooms.json").read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    recipe.make_root(folder)
    return folder


@pytest.fixture(scope="module")
def described(home):
    return recipe.describe(home)


def test_the_recipe_draws_the_recorded_photos(home):
    """Keys hold the digests of photos, so other tests of this file fail with this one."""
    assert recipe.photos(home) == RECORDED["photos"]


@pytest.mark.parametrize("part", sorted(RECORDED.keys() - {"photos"} - TABLES))
def test_a_root_is_as_the_version_before_wrote_it(described, part):
    assert json.loads(json.dumps(described[part])) == RECORDED[part]


@pytest.mark.parametrize("part", sorted(TABLES))
def test_tables_have_the_recorded_columns_and_no_others_but_those_that_a_schema_version_added(described, part):
    for table, recorded in RECORDED[part].items():
        for now, before in zip(described[part][table], recorded, strict=True):
            kept = [list(column) for column in now["columns"] if column[0] not in ADDED]
            assert kept == before["columns"]
            assert now["metadata"] == before["metadata"]


def test_every_described_part_is_recorded(described):
    assert described.keys() == RECORDED.keys() - {"photos"}


def test_a_finished_root_is_a_no_op(home, described):
    code, printed, errors = recipe.perfusion(home, "plan", "spec.yaml", "--json")
    assert code == 0, errors
    work = json.loads(printed)["work"]
    assert {name: work[name]["to_do"] for name in work} == {"concepts": 0, "renders": 0}
    for command in ("run", "rerender"):
        code, printed, errors = recipe.perfusion(home, command, "spec.yaml", "--json")
        assert code == recipe.FINISHED_WITH_BAD_ROWS, errors
        assert json.loads(printed)["repeated"] is True
    assert recipe.describe(home) == described
