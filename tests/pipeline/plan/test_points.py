"""Points in a plan: each concept alone is planned as if its point were in the spec; a row's own cells come first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.config import SamplingConfig
from pipeline.database.plandb import PlanDB, Stage
from pipeline.plan.expand import plan_concepts, plan_requests
from pipeline.plan.workqueue import WorkQueue
from tests.support.plans import TRAINING, concept, fill, planned, requests

CONCEPTS = [
    concept("mug-1"),
    concept("bag-1", superclass="bag", train='{"recipe": "offset"}'),
    concept("lamp-1", superclass="lamp", train='{"recipe": "offset"}'),
]
PROMPTS = [
    {"prompt": "a {product}"},
    {"prompt": "a {product} on the beach", "seed": 3, "negative_prompt": "blurred", "num_images": 1},
    {"prompt": "two of {product} and {product}", "guidance": 9.0, "bias": 0.3, "temperature": 0.2, "lock": "local"},
    {"prompt": "a {bag-1}", "num_images": 2},
    {"prompt": "a {mug-1}", "negative_prompt": "{bag-1}"},
    {"prompt": "a {mug-1} by a {bag-1}"},
    {"prompt": "a {product} by a {lamp-1}", "where_expr": "concept_id <> 'bag-1'"},
]
COLUMNS = (
    *("prompt_row", "concept_ids", "image_index", "render_key", "guidance", "strength", "bias", "temperature"),
    *("lock", "seed", "error_code"),
)
POINT = st.fixed_dictionaries(
    {},
    optional={
        "guidance": st.sampled_from([3.0, 4.5]),
        "strength": st.sampled_from([0.5, 1.0, 1.5]),
        "bias": st.sampled_from([0.4, 0.7]),
        "temperature": st.just(0.3),
        "lock": st.sampled_from(["local", "global"]),
    },
)


def with_points(points, combine="paper"):
    db = PlanDB(memory_limit="512MB", threads=2)
    fill(db, "concepts", CONCEPTS)
    fill(db, "prompts", PROMPTS)
    names = ("guidance", "strength", "bias", "temperature", "lock")
    for concept_id, point in points.items():
        values = [concept_id, *(point.get(name) for name in names)]
        db.connection.execute("INSERT INTO points VALUES (?, ?, ?, ?, ?, ?)", values)
    plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
    plan_requests(db, base_digest="base", sampling=SamplingConfig(combine=combine), seed=0)
    db.mark_filled(Stage.DONE)
    return db


def alone(row, concept_id):
    """Whether a request has this concept and no other in both of its prompts."""
    others = {"mug-1": "{bag-1}", "bag-1": "{mug-1}", "lamp-1": ""}
    return row[1] == [concept_id] and not (row[0] == 5 and others[concept_id])


@pytest.mark.long
@settings(max_examples=10)
@given(
    points=st.dictionaries(st.sampled_from(["mug-1", "bag-1", "lamp-1"]), POINT),
    combine=st.sampled_from(["paper", "regional"]),
)
def test_a_point_is_as_if_the_spec_said_it_for_its_concept_alone(points, combine):
    with with_points(points, combine) as db:
        found = requests(db, *COLUMNS)
    with planned(CONCEPTS, PROMPTS, combine=combine) as db:
        plain = requests(db, *COLUMNS)
    expected = list(plain)
    for concept_id, point in points.items():
        with planned(CONCEPTS, PROMPTS, combine=combine, **point) as db:
            said = requests(db, *COLUMNS)
        expected = [new if alone(old, concept_id) else old for new, old in zip(said, expected, strict=True)]
    assert found == expected


def test_the_strength_reaches_the_tasks():
    points = {"bag-1": {"strength": 0.5}, "mug-1": {"strength": 0.5}}
    with with_points(points) as db:
        queue, strengths = WorkQueue(db, group_size=8, render_batch=8), {}
        db.connection.execute("DELETE FROM work_waits")
        db.connection.execute("INSERT INTO work_ready SELECT seq, seq FROM work_renders")
        queue._ready_rows = len(PROMPTS) + 8
        while unit := queue._next_renders():
            strengths |= {(task.prompt, task.concept_ids): task.strength for task in unit.tasks}
    assert strengths["a {0}", ("bag-1",)] == 0.5
    assert strengths["a {0}", ("lamp-1",)] == 1.0
    assert strengths["a {0}", ("mug-1",)] == 1.0, "a gated concept has no offset"
    assert strengths["a {0} by a {1}", ("mug-1", "bag-1")] == 1.0, "several concepts have the spec's settings"
