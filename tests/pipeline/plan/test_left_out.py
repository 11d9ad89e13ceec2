"""What a retry cannot do again is told with its reason as of now, and the rest is done."""

import json
import shutil

import pytest

from jobs.run import run
from perfusion_ops.mini import base_folder
from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB
from pipeline.plan.done import list_objects
from pipeline.plan.retry import to_retry
from pipeline.plan.selection import Keys, Selection
from pipeline.prepare import check, make_plan
from pipeline.run import execute
from pipeline.storage.objects import Storage
from tests.support.runs import Engines, Silent, photo, run_settings
from tests.support.shop import CONCEPTS, PROMPTS, PhotosVanish, away, go, stock, tables


def failing(shop, root, *names):
    """A run in which the photos of some products vanished, and what is to be done again of it."""
    first, _ = go(root, shop, PhotosVanish([shop / f"{name}.png" for name in names]))
    again = to_retry(Storage(root), first.run_id)
    return Selection(f"retry {first.run_id}", keys=again.keys)


def left_out(shop, root, chosen, **changes):
    """A retry's result and its reasons."""
    given = run_settings(root, shop, **changes)
    result = execute(given, make_engine=Engines(), observer=Silent(), selection=chosen)
    return result, result.planned.missing.reasons


def test_retry_tells_a_photo_that_is_still_missing_and_does_the_rest(shop, root):
    chosen = failing(shop, root, "mug-1", "shoe-1")
    with away(shop / "mug-1.png"):
        result, reasons = left_out(shop, root, chosen)
        mug = Keys(chosen.keys.concepts[:1], (), chosen.keys.run_id)
        with pytest.raises(ManifestError) as refused:
            left_out(shop, root, Selection("mug", keys=mug))
    assert [(each.table, each.reason, each.rows, each.code) for each in reasons] == [
        ("concepts", "still refused", 1, "image_missing"),
        ("renders", "concept still refused", 2, "image_missing"),
    ]
    assert reasons[0].sentence.startswith(
        "1 concept cannot be done again: row 1 of the concepts manifest, 'mug-1', is still refused (image_missing, "
        "column images: "
    )
    assert "mug-1.png" in reasons[0].sentence
    assert str(refused.value) == reasons[0].sentence
    assert reasons[1].sentence.startswith("2 renders cannot be done again: the first of them: concept 'mug-1' in row 1")
    found = tables(root, result.run_id)
    assert {row["concept_id"]: row["error_code"] or row["origin"] for row in found["concepts"]} == {
        "mug-1": "image_missing",
        "shoe-1": "trained",
    }
    assert {row["status"] for row in found["renders"]} == {"ok"}
    # The photo is back: the rest is done as well.
    result, reasons = left_out(shop, root, chosen)
    assert (reasons, result.published.statuses["concepts"]) == ((), {"ok": 3})


@pytest.mark.parametrize(
    ("change", "concepts", "renders"),
    [
        ({"concepts": CONCEPTS[1:]}, {"row removed": 1}, {"still refused": 1, "concept removed": 1}),
        (
            {"concepts": [{**CONCEPTS[0], "superclass": "cup"}, *CONCEPTS[1:]]},
            {"superclass": 1},
            {"concept changed": 2},
        ),
        ({"photo": "mug-1.png"}, {"pictures or training": 1}, {"concept changed": 2}),
        ({"train": {"steps": 3, "batch": 1}}, {"pictures or training": 1}, {"concept changed": 2}),
        ({"render": {"steps": 3}}, {}, {"settings": 2}),
        ({"prompts": [PROMPTS[1]]}, {}, {"prompt": 1}),
        ({"prompts": [{**PROMPTS[0], "where": "superclass = 'bag'"}, PROMPTS[1]]}, {}, {"where": 1}),
        ({"prompts": [{**PROMPTS[0], "bias": 99.0}, PROMPTS[1]]}, {}, {"still refused": 1}),
        ({"base": True}, {"base model": 1}, {"base model": 2}),
    ],
    ids=lambda value: next(iter(value), "none") if isinstance(value, dict) else None,
)
def test_each_reason_why_a_row_is_not_done_again_is_told(shop, root, tmp_path, change, concepts, renders):
    chosen = failing(shop, root, "mug-1")
    stock(shop, change.get("concepts", CONCEPTS), change.get("prompts", PROMPTS))
    changes = {name: change[name] for name in ("train", "render") if name in change}
    if "photo" in change:
        photo(shop / change["photo"], seed=99)
    if "base" in change:
        shutil.copytree(base_folder(), tmp_path / "base")
        settings = json.loads((tmp_path / "base/perfusion.json").read_text())
        (tmp_path / "base/perfusion.json").write_text(json.dumps({**settings, "name": "other"}))
        changes["base"] = str(tmp_path / "base")
    with PlanDB() as db:
        storage, given = Storage(root), run_settings(root, shop, **changes)
        checked = check(db, storage, given, Silent(), chosen)
        list_objects(db, storage)
        try:
            reasons = make_plan(db, storage, given, checked, selection=chosen).missing.reasons
            lines = [each.sentence for each in reasons]
        except ManifestError as error:
            reasons, lines = (), str(error).splitlines()
    expected = [*concepts.items(), *renders.items()]
    assert [int(line.split()[0]) for line in lines] == [count for _, count in expected], lines
    if reasons:
        assert [(each.reason, each.rows) for each in reasons] == expected
    assert all("cannot be done again: " in line for line in lines)
    assert not [line for line in lines if "None" in line]


def test_the_command_tells_the_reasons_and_ends_with_3(shop, root, capsys):
    chosen = failing(shop, root, "mug-1", "shoe-1")
    with away(shop / "mug-1.png"):
        code = run(run_settings(root, shop), json=False, selection=chosen, make_engine=Engines())
        text = capsys.readouterr().out
        shown = run(run_settings(root, shop), json=True, selection=chosen, make_engine=Engines())
        answer = json.loads(capsys.readouterr().out)
    assert (code, shown) == (3, 3)
    assert (
        "  1 concept cannot be done again: row 1 of the concepts manifest, 'mug-1', is still refused (image_m" in text
    )
    assert [each["reason"] for each in answer["missing"]["reasons"]] == ["still refused", "concept still refused"]
    assert answer["missing"]["concepts"] == 1
