"""Both recipes on one real worker, and in one run: from the manifest's `train` cell to the table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion_ops.concept import GatedConcept, OffsetConcept
from perfusion_ops.config import TrainingConfig
from pipeline.contract.errors import Code, Status
from pipeline.contract.layout import image_path, weights_path
from tests.support.runs import TRAINING, concept, key, picture, ready_worker, renders, trainings
from tests.support.shop import CONCEPTS, check_accounts, go, open_shop, stock, tables

OFFSET = TRAINING.overridden({"recipe": "offset", "steps": 12, "lr_value": 0.2})
PAPER = {"recipe": "paper", "steps": 2, "batch": 1}  # not the embedded base's default


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A worker whose root holds one concept of each recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    worker = ready_worker(folder / "root")
    paper, offset = concept(folder, "mug"), replace(concept(folder, "bear", superclass="teddy bear"), training=OFFSET)
    for task in (paper, offset):
        [outcome] = worker.run(trainings(task))
        assert outcome.status == Status.OK, outcome.error_message
    return worker


def pixels(worker, task):
    return np.asarray(Image.open(Path(worker.settings.root) / image_path(task.key))).astype(int)


def test_each_recipe_has_its_kind_of_concept(shared):
    assert isinstance(shared.files.load(key("mug"))[0], GatedConcept)
    found, _ = shared.files.load(key("bear"))
    assert isinstance(found, OffsetConcept)
    assert found.superclass == "teddy bear"
    assert (Path(shared.settings.root) / weights_path(key("bear"))).stat().st_size < 3000
    assert float(found.value_offset.abs().max()) > 0.1


def test_a_concept_keeps_its_photos_and_its_pictures_look_at_them(shared, tmp_path):
    kept = replace(concept(tmp_path, "seen", superclass="teddy bear"), training=OFFSET.overridden({"references": 8}))
    plain = replace(kept, key=key("unseen"), training=OFFSET)
    assert [outcome.status for outcome in shared.run(trainings(kept, plain))] == [Status.OK] * 2
    found, unseen = (shared.files.load(each.key)[0] for each in (kept, plain))
    assert found.references.latents.shape == (len(kept.images), 8, 16, 16)
    assert unseen.references is None
    assert (found.value_offset == unseen.value_offset).all(), "photos that are kept change nothing of the training"
    tasks = (picture("looks", "seen"), picture("does not", "unseen"))
    tasks = tuple(replace(task, seed=7, shape=replace(task.shape, steps=10)) for task in tasks)
    assert [outcome.status for outcome in shared.run(renders(*tasks))] == [Status.OK] * 2
    first, second = (pixels(shared, task) for task in tasks)
    assert abs(first - second).max() > 8


def test_a_concept_keeps_its_edit_of_convolutions_and_its_pictures_have_it(shared, tmp_path):
    training = OFFSET.overridden({"conv_rank": 2})
    edited = replace(concept(tmp_path, "edited", superclass="teddy bear"), training=training)
    assert shared.run(trainings(edited))[0].status == Status.OK
    found, _ = shared.files.load(edited.key)
    assert found.convolutions.reads.shape[0] == 2
    assert found.convolutions.writes.any()
    task = replace(picture("surface", "edited"), seed=7)
    assert shared.run(renders(task))[0].status == Status.OK
    weaker = replace(picture("less surface", "edited"), seed=7, strength=0.3)
    assert shared.run(renders(weaker))[0].status == Status.OK
    assert abs(pixels(shared, task) - pixels(shared, weaker)).max() > 4


def test_prompts_of_either_recipe_and_of_both(shared):
    tasks = (
        picture("one", "mug"),
        picture("two", "bear"),
        picture("three", "mug", "bear", prompt="a {0} next to a {1}"),
        picture("four", "bear", "mug", prompt="a {0} next to a {1}", lock="global", negative="a {1}"),
    )
    outcomes = shared.run(renders(*tasks))
    assert [outcome.status for outcome in outcomes] == [Status.OK] * 4
    again = shared.run(renders(*tasks))
    assert {outcome.accelerator_s for outcome in again} == {0.0}, "files that exist are adopted"
    alone = picture("two again", "bear", seed=tasks[1].seed)
    assert shared.run(renders(alone))[0].status == Status.OK
    assert abs(pixels(shared, alone) - pixels(shared, tasks[1])).max() <= 1


def test_keys_that_the_recipe_does_not_learn_are_refused(shared):
    [outcome] = shared.run(renders(picture("locked", "bear", lock="trained")))
    assert (outcome.error_code, outcome.error_column) == (Code.OUT_OF_RANGE, "lock")


def test_a_superclass_that_fits_only_without_the_concepts_word_is_refused(shared, tmp_path):
    longest = " ".join(["mug"] * 25)  # the longest template of the base leaves room for 25 tokens
    fits, refused = (
        replace(concept(tmp_path, name, superclass=longest), training=training)
        for name, training in (("fits", TRAINING), ("long", OFFSET))
    )
    assert shared.run(trainings(fits))[0].status == Status.OK
    [outcome] = shared.run(trainings(refused))
    assert (outcome.error_code, outcome.error_column) == (Code.TEXT_TOO_LONG, "superclass")


def test_a_run_takes_the_recipe_from_a_row(tmp_path):
    shop = open_shop(tmp_path)
    stock(shop, [{**CONCEPTS[0], "train": '{"recipe": "offset"}'}, *CONCEPTS[1:]])
    root = str(tmp_path / "root")
    first, engines = go(root, shop, train=PAPER)
    check_accounts(root, first, concepts=3, prompts=2, pictures=4)
    trained = [task.training for unit in engines.units for task in unit.tasks if hasattr(task, "training")]
    assert sorted(each.recipe for each in trained) == ["offset", "paper", "paper"]
    [offset] = [each for each in trained if each.recipe == "offset"]
    assert offset == TrainingConfig(steps=2, batch=1, recipe="offset", lr_value=0.01, decay="cosine", stratified=True)
    assert go(root, shop, train=PAPER)[0].repeated
    weaker, engines = go(root, shop, train=PAPER, render={"steps": 2, "strength": 0.5})
    check_accounts(root, weaker, concepts=3, prompts=2, pictures=4)
    again = [task for unit in engines.units for task in unit.tasks]
    assert [task.concept_ids[0] for task in again] == ["mug-1", "mug-1"], "only prompts with an offset depend on it"


def test_a_run_that_combines_by_region_renders_only_prompts_with_several_concepts_again(tmp_path):
    shop = open_shop(tmp_path)
    root = tmp_path / "root"
    paper, _ = go(str(root), shop, render={"steps": 4, "combine": "paper"})
    regional, engines = go(str(root), shop, render={"steps": 4, "combine": "regional"})
    check_accounts(str(root), regional, concepts=3, prompts=2, pictures=4)
    [task] = [task for unit in engines.units for task in unit.tasks]
    assert task.prompt == "a {0} next to a {1}"
    before, after = (tables(str(root), result.run_id)["renders"] for result in (paper, regional))
    for old, new in zip(before, after, strict=True):
        assert (old["uri"] == new["uri"]) == (new["manifest_row"] == 1)
    one, other = (
        np.asarray(Image.open(rows[-1]["uri"].removeprefix("file://"))).astype(int) for rows in (before, after)
    )
    assert abs(one - other).max() > 0
    assert go(str(root), shop, render={"steps": 4, "combine": "regional"})[0].repeated
