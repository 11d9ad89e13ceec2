"""ControlNets, videos and guidance in a plan: keys, what a row may not ask for, and what a worker is given."""

import pytest

from perfusion_ops.config import SamplingConfig
from pipeline.contract.errors import Origin, Status
from pipeline.contract.units import InputControl, InputImage, Outcome
from pipeline.database.plandb import PlanDB, Stage
from pipeline.plan.expand import plan_concepts, plan_requests
from pipeline.plan.repeat import content_digest
from pipeline.plan.workqueue import WorkQueue
from tests.support import reference_keys as keys
from tests.support.plans import TRAINING, concept, fill, picture, requests

EDGES = {**picture("edges"), "reading": "alpha"}
CONTROLS = {"canny": "c" * 64, "depth": "d" * 64}
MOTION = "e" * 64
SAMPLING = {"steps": 50, "guidance": 7.5, "scheduler": "ddim", "bias": 0.6, "temperature": 0.15, "lock": "local"}
PROBLEM = ("error_code", "error_column", "error_message")


def plan(prompts, *, controls=CONTROLS, motion=None, rescales=True, **sampling):
    db = PlanDB(memory_limit="512MB", threads=2)
    fill(db, "concepts", [concept("mug-1")])
    fill(db, "prompts", [{"prompt": "a {product}", "seed": 5, **prompt} for prompt in prompts])
    plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
    plan_requests(
        db,
        base_digest="base",
        sampling=SamplingConfig(**{**SAMPLING, **sampling}),
        seed=0,
        controls=controls,
        motion_digest=motion,
        rescales=rescales,
    )
    db.mark_filled(Stage.DONE)
    return db


def key_of(db, modes, *, file=""):
    [(concept_key,)] = db.connection.execute("SELECT concept_key FROM concept_keys").fetchall()
    material = keys.render_material(
        base_digest="base", concepts=[concept_key], modes=modes, prompt="a {0}", negative_prompt="", width=None,
        height=None, edit_unconditional=False, **SAMPLING,
    )  # fmt: skip
    return keys.render_key(material + file, 5)


@pytest.mark.parametrize("strength", [None, 1.0, 0.3, 2.0])
def test_the_key_has_the_digest_of_the_control_net_and_not_its_name(strength):
    row = {"control": "canny", "control_picture": EDGES, "control_strength": strength}
    modes = keys.control_modes(
        CONTROLS["canny"], keys.picture_field(EDGES["sha256"], "alpha"), strength=1.0 if strength is None else strength
    )
    with plan([row]) as db, plan([{**row, "control": "edges"}], controls={"edges": CONTROLS["canny"]}) as renamed:
        assert requests(db, "render_key") == requests(renamed, "render_key") == [(key_of(db, modes),)]
        assert requests(db, "control", "control_strength") == [("canny", strength or 1.0)]


def test_rows_without_any_of_it_keep_their_keys():
    with plan([{}], rescales=False) as db:
        assert requests(db, "render_key", "control", "frames", "fps") == [(key_of(db, []), None, None, None)]


@pytest.mark.parametrize(
    ("controls", "says"),
    [(CONTROLS, "has controls canny, depth: write one of them"), ({}, "has no controls: add it")],
)
def test_a_name_that_the_spec_does_not_have_is_a_problem_of_the_row(controls, says):
    rows = [{"control": "cany", "control_picture": EDGES}, {}]
    with plan(rows, controls=controls) as db:
        bad, good = requests(db, *PROBLEM)
    assert bad[:2] == ("out_of_range", "control")
    assert "'cany'" in bad[2]
    assert says in bad[2]
    assert good == (None, None, None)


def test_guidance_rescale_of_a_row_comes_before_that_of_the_spec():
    with plan([{"guidance_rescale": 0.7}, {"guidance_rescale": 0.0}, {}], guidance_rescale=0.5) as db:
        assert requests(db, "render_key", "guidance_rescale") == [
            (key_of(db, ["rescale 0.7"]), 0.7),
            (key_of(db, []), 0.0),
            (key_of(db, ["rescale 0.5"]), 0.5),
        ]


def test_guidance_rescale_is_refused_where_nothing_reads_it():
    with plan([{"guidance_rescale": 0.7}, {"guidance_rescale": 0.0}], rescales=False) as db:
        bad, good = requests(db, *PROBLEM)
    assert bad[:2] == ("out_of_range", "guidance_rescale")
    assert good == (None, None, None)


def test_a_video_has_its_frames_and_adapter_in_the_key_and_its_speed_in_the_file():
    rows = [{}, {"frames": 8}, {"fps": 24}]
    with plan(rows, motion=MOTION, task="video", frames=16, fps=8, format="webp") as db:
        found = requests(db, "render_key", "frames", "fps")
        assert found == [
            (key_of(db, keys.video_modes(MOTION, 16), file=keys.render_file("webp", fps=8)), 16, 8),
            (key_of(db, keys.video_modes(MOTION, 8), file=keys.render_file("webp", fps=8)), 8, 8),
            (key_of(db, keys.video_modes(MOTION, 16), file=keys.render_file("webp", fps=24)), 16, 24),
        ]


def test_the_same_default_seed_draws_a_video_at_each_speed():
    rows = [{"seed": None, "fps": 24}, {"seed": None, "fps": 12}, {"seed": None, "frames": 4}]
    with plan(rows, motion=MOTION, task="video", format="mp4") as db:
        (one,), (other,), (shorter,) = requests(db, "seed")
    assert one == other != shorter


@pytest.mark.parametrize("column", ["frames", "fps"])
def test_columns_of_videos_are_refused_for_pictures(column):
    with plan([{column: 8}]) as db:
        [(code, at, message)] = requests(db, *PROBLEM)
    assert (code, at) == ("out_of_range", column)
    assert f"{column} is 8, but render.task is 'picture'" in message


@pytest.mark.parametrize(
    "row",
    [
        {"scene": picture("beach"), "scene_box": [0.0, 0.0, 1.0, 1.0]},
        {"keep": "product"},
        {"control": "canny", "control_picture": EDGES},
    ],
)
def test_videos_are_drawn_from_their_prompt_alone(row):
    with plan([row], motion=MOTION, task="video", format="webp") as db:
        [(code, at, message)] = requests(db, *PROBLEM)
    assert (code, at) == ("scene_conflict", next(iter(row)))
    assert "render.task is 'video'" in message


def test_a_worker_is_given_batches_of_one_control_net_and_strength():
    rows = [
        {},
        {"seed": 6, "control": "canny", "control_picture": EDGES},
        {"seed": 7, "control": "canny", "control_picture": EDGES},
        {"seed": 8, "control": "canny", "control_picture": EDGES, "control_strength": 0.5},
        {"seed": 9, "control": "depth", "control_picture": EDGES},
    ]
    with plan(rows) as db:
        queue = WorkQueue(db, group_size=1, render_batch=4)
        training = queue.next()
        queue.record([Outcome("concept", training.tasks[0].key, Status.OK, origin=Origin.TRAINED)])
        units = []
        while (unit := queue.next()) is not None:
            units.append(unit.tasks)
    edges = InputImage(EDGES["uri"], EDGES["sha256"])
    found = {tuple(task.control for task in tasks) for tasks in units}
    assert found == {
        (None,),
        (InputControl("canny", edges), InputControl("canny", edges)),
        (InputControl("canny", edges, 0.5),),
        (InputControl("depth", edges),),
    }
    assert {len({task.shape for task in tasks}) for tasks in units} == {1}


def test_another_picture_makes_another_content():
    def digest(edges):
        with plan([{"control": "canny", "control_picture": edges}]) as db:
            return content_digest(db, "settings")

    assert digest(EDGES) == digest(EDGES) != digest({**EDGES, "sha256": "f" * 64})
