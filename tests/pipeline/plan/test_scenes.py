"""Scenes in a plan: keys, the photo that `keep` finds, what a row may not ask for, and what a worker is given."""

import pytest

from pipeline.plan.repeat import content_digest
from pipeline.plan.workqueue import WorkQueue
from tests.support import reference_keys as keys
from tests.support.plans import concept, picture, planned, requests

BEACH = {**picture("beach"), "reading": ""}
PLACE = {**picture("place"), "reading": "alpha"}
BOX = [0.25, 0.0, 0.75, 1.0]
MASKED = [picture("mask-1"), picture("mask-2")]
MUG = concept("mug-1", masks=MASKED)


def key_of(db, row=1):
    return requests(db, "render_key")[row - 1][0]


def wanted(db, prompt, modes, concepts=None, seed=5):
    [(key,)] = db.connection.execute("SELECT concept_key FROM concept_keys WHERE row = 1").fetchall()
    material = keys.render_material(
        base_digest="base", concepts=[key] if concepts is None else concepts, modes=modes, prompt=prompt,
        negative_prompt="", steps=50, guidance=7.5, scheduler="ddim", width=None, height=None, bias=0.6,
        temperature=0.15, lock="local", edit_unconditional=False,
    )  # fmt: skip
    return keys.render_key(material, seed)


def sampling():
    return {"steps": 50, "guidance": 7.5, "scheduler": "ddim", "bias": 0.6, "temperature": 0.15, "lock": "local"}


@pytest.mark.parametrize(
    ("cells", "scene"),
    [
        ({}, {}),
        ({"scene_box": BOX}, {"box": BOX}),
        ({"scene_mask": PLACE}, {"mask": keys.picture_field(PLACE["sha256"], "alpha")}),
        (
            {"scene_box": [0.1, 1e-7, 1 / 3, 1], "scene_strength": 0.5},
            {"box": [0.1, 1e-7, 1 / 3, 1.0], "strength": 0.5},
        ),
        ({"scene_box": BOX, "scene_strength": 1.0}, {"box": BOX}),
    ],
)
def test_a_scene_is_part_of_the_key_and_no_scene_is_not(cells, scene):
    given = {"scene": BEACH, **cells} if cells else {}
    with planned([MUG], [{"prompt": "a {product}", "seed": 5, **given}], **sampling()) as db:
        modes = keys.scene_modes(BEACH["sha256"] if cells else None, **scene)
        assert key_of(db) == wanted(db, "a {0}", modes)


def test_keep_has_the_photo_and_the_words_in_its_key_and_no_weights():
    prompts = [{"prompt": "a {product} in the snow", "seed": 5, "keep": "product", "keep_photo": 2}]
    modes = keys.scene_modes(picture("mug-1-2")["sha256"], mask=MASKED[1]["sha256"], keep="product")
    with planned([MUG], prompts, **sampling()) as db:
        assert key_of(db) == wanted(db, "a mug in the snow", modes, concepts=[])
        got = requests(
            db, "prompt", "task_prompt", "concept_ids", "keep", "scene.uri", "scene_mask.uri", "scene_strength"
        )
        assert got == [
            ("a {mug-1} in the snow", "a mug in the snow", ["mug-1"], "product", picture("mug-1-2")["uri"],
             MASKED[1]["uri"], 1.0)
        ]  # fmt: skip


def test_keep_takes_the_first_photo_of_each_product():
    hat = concept("hat-1", superclass="wide  hat", masks=MASKED)
    with planned([MUG, hat], [{"prompt": "a {product}", "negative_prompt": "no {product}", "keep": "product"}]) as db:
        got = requests(db, "task_prompt", "task_negative_prompt", "scene.uri")
    assert got == [
        ("a wide hat", "no wide hat", picture("hat-1-1")["uri"]),
        ("a mug", "no mug", picture("mug-1-1")["uri"]),
    ]


def test_what_a_product_lacks_fails_its_renders_alone():
    bare = concept("bare-1")
    short = concept("short-1", images=[picture("short")], masks=[picture("short-mask")])
    prompts = [{"prompt": "a {product}", "keep": "product", "keep_photo": 2}]
    with planned([MUG, bare, short], prompts) as db:
        got = requests(db, "concept_ids[1]", "error_code", "error_column", "error_message", "render_key IS NULL")
    assert got[0][:3] == ("bare-1", "missing_value", "keep")
    assert "'bare-1' has no masks" in got[0][3]
    assert got[1][:2] == ("mug-1", None)
    assert got[2][:3] == ("short-1", "out_of_range", "keep_photo")
    assert "'short-1' has 1 photos" in got[2][3]
    assert [row[4] for row in got] == [True, False, True]


def test_keep_with_two_products_is_a_problem_of_the_row():
    prompts = [{"prompt": "a {product} on a {mug-1}", "keep": "product"}, {"prompt": "a {mug-1}", "keep": "product"}]
    with planned([MUG, concept("hat-1", masks=MASKED)], prompts) as db:
        bad, good = requests(db, "error_code", "error_column", "error_message", "keep")
    assert bad[:2] == ("scene_conflict", "keep")
    assert "names 2 products" in bad[2]
    assert good[0] is None


def test_a_worker_is_given_scenes_and_batches_of_one_strength():
    prompts = [
        {"prompt": "a {product}", "seed": 1},
        {"prompt": "a {product}", "seed": 2, "scene": BEACH, "scene_box": BOX},
        {"prompt": "a {product}", "seed": 3, "scene": BEACH, "scene_mask": PLACE, "scene_strength": 0.5},
        {"prompt": "a {product}", "seed": 4, "keep": "product"},
    ]
    with planned([MUG], prompts) as db:
        queue = WorkQueue(db, group_size=4, render_batch=4)
        training = queue.next()
        kept = queue.next()  # needs no weights, so it waits for none
        assert [task.seed for task in kept.tasks] == [4]
        assert kept.tasks[0].concepts == ()
        assert (kept.tasks[0].scene.keep, kept.tasks[0].scene.mask.uri) == (True, MASKED[0]["uri"])
        assert len(training.tasks) == 1
        [tasks] = [db.connection.execute(
            "SELECT seed, scene_strength, keep, len(concepts) FROM work_renders ORDER BY seed").fetchall()]  # fmt: skip
    assert tasks == [(1, None, None, 1), (2, 1.0, None, 1), (3, 0.5, None, 1), (4, 1.0, "product", 0)]


def test_the_digest_of_contents_follows_the_photos_of_scenes():
    def digest(**cells):
        with planned([MUG], [{"prompt": "a {product}", **cells}]) as db:
            return content_digest(db, "d")

    plain = digest()
    scene = digest(scene=BEACH, scene_box=BOX)
    assert len({plain, scene, digest(scene={**BEACH, "sha256": "0" * 64}, scene_box=BOX), digest(keep="product")}) == 4
    assert digest(scene=BEACH, scene_box=BOX) == scene
    assert digest(seed=7) == plain  # what a manifest says is in the digest that it is given
