"""The database of a plan knows which of its tables are filled, so that no step reads one too early."""

import pytest

from pipeline.database.plandb import PlanDB, Stage, StageError
from pipeline.plan.changes import find_changes
from pipeline.plan.done import list_objects, load_done
from pipeline.plan.expand import count_plan
from pipeline.plan.repeat import content_digest, find_repeat
from pipeline.plan.selection import Selection, select
from pipeline.plan.workqueue import WorkQueue
from pipeline.storage.objects import Storage
from pipeline.tables.publish import publish
from tests.support.plans import concept, planned

STEPS = {
    "content_digest": (lambda db, storage: content_digest(db, "d"), "concept_keys"),
    "find_repeat": (lambda db, storage: find_repeat(db, storage, [], "c"), "objects"),
    "load_done": (load_done, "objects"),
    "count_plan": (lambda db, storage: count_plan(db), "requests"),
    "select": (lambda db, storage: select(db, Selection("limit 1", first=1)), "requests"),
    "find_changes": (
        lambda db, storage: find_changes(db, storage, base_digests=("b", "b"), memory_limit="200MB"),
        "requests",
    ),
    "WorkQueue": (lambda db, storage: WorkQueue(db, group_size=1, render_batch=1), "requests"),
    "publish": (
        lambda db, storage: publish(db, storage, run_id="r", run_date="2024-01-01", base="b", base_digest="d"),
        "requests",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_called_too_early_names_the_one_before_it(tmp_path, name):
    step, table = STEPS[name]
    filled_by = {"concept_keys": "plan_concepts", "objects": "list_objects", "requests": "plan_requests"}[table]
    with PlanDB() as db, pytest.raises(StageError, match=f"'{table}' .* is not filled: call {filled_by} first"):
        step(db, Storage(str(tmp_path)))


def test_steps_in_their_order_pass(tmp_path):
    storage = Storage(str(tmp_path))
    with planned([concept("a")], [{"prompt": "{product}"}]) as db:
        list_objects(db, storage)
        assert load_done(db, storage) == 0
        for step, _ in list(STEPS.values())[:-1]:
            step(db, storage)


def test_work_without_the_done_of_storage_is_refused():
    with PlanDB() as db:
        db.mark_filled(Stage.REQUESTS)
        with pytest.raises(StageError, match="'done' of the plan is not filled: call load_done first"):
            WorkQueue(db, group_size=1, render_batch=1)
