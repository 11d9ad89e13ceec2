"""Parts of a plan: what is chosen is whole, and nothing else is left."""

import pytest

from pipeline.plan.expand import count_plan
from pipeline.plan.selection import Keys, Missing, Selection, select
from pipeline.plan.workqueue import WorkQueue
from tests.support.plans import concept, planned, requests

CONCEPTS = [concept(name) for name in ("mug-1", "mug-2", "mug-3")] + [concept("bad", code="image_missing")]
PROMPTS = [
    {"prompt": "a {product}", "num_images": 2, "tag": "x"},
    {"prompt": "nothing"},
    {"prompt": "a {mug-3} on a {mug-1}"},
    {"prompt": "a {nobody}"},
]


def left(db):
    """What a plan still holds: rows of concepts, prompts and requests."""
    found = [db.connection.execute(f"SELECT row FROM {name} ORDER BY 1").fetchall() for name in ("concepts", "prompts")]
    return [[row for (row,) in rows] for rows in found], requests(db, "prompt_row", "concept_ids", "image_index")


def test_the_first_pictures_come_with_their_concepts_and_without_any_other():
    with planned(CONCEPTS, PROMPTS) as db:
        everything = requests(db, "render_key")
        assert select(db, Selection("limit 3", first=3)) == Missing()
        (concepts, prompts), rows = left(db)
        assert rows == [(1, ["mug-1"], 0), (1, ["mug-1"], 1), (1, ["mug-2"], 0)]
        assert (concepts, prompts) == ([1, 2], [1])
        work = count_plan(db)
        assert (work.concepts.rows, work.concepts.to_do, work.renders.rows, work.renders.to_do) == (2, 2, 3, 3)
        assert len(everything) == 9


def test_rows_that_ask_for_nothing_are_chosen_like_others():
    with planned(CONCEPTS, PROMPTS) as db:
        select(db, Selection("limit 8", first=8))
        (concepts, prompts), rows = left(db)
        assert prompts == [1, 2, 3]
        assert concepts == [1, 2, 3]
        assert rows[-1][0] == 3
    with planned(CONCEPTS, PROMPTS) as db:
        select(db, Selection("limit 100", first=100))
        assert left(db)[0] == [[1, 2, 3], [1, 2, 3, 4]]
        assert count_plan(db).renders.invalid == 1


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_sample_is_the_same_each_time_and_grows_with_its_size(count):
    def drawn(size):
        with planned(CONCEPTS, PROMPTS) as db:
            select(db, Selection(f"sample {size}", drawn=size))
            return left(db)[1]

    chosen = drawn(count)
    assert len(chosen) == min(count, 9)
    assert drawn(count) == chosen
    assert {str(row) for row in chosen} <= {str(row) for row in drawn(count + 1)}


def test_a_sample_comes_from_all_over():
    with planned([concept(f"mug-{number}") for number in range(50)], [{"prompt": "a {product}"}] * 4) as db:
        select(db, Selection("sample 40", drawn=40))
        rows = requests(db, "prompt_row", "concept_ids[1]")
    assert {row for row, _ in rows} == {1, 2, 3, 4}
    assert len({name for _, name in rows}) > 20


def test_keys_name_pictures_and_concepts_one_by_one():
    with planned(CONCEPTS, PROMPTS) as db:
        keys = dict(db.connection.execute("SELECT concept_id, concept_key FROM concept_keys").fetchall())
        ((wanted,),) = db.connection.execute("SELECT render_key FROM requests WHERE prompt_row = 3").fetchall()
        chosen = Keys(concepts=(keys["mug-2"], "gone"), renders=(wanted, wanted, "gone too", "and this"))
        assert select(db, Selection("retry", keys=chosen)) == Missing(concepts=1, renders=2)
        assert left(db) == ([[1, 2, 3], [3]], [(3, ["mug-3", "mug-1"], 0)])
        queue = WorkQueue(db, group_size=4, render_batch=4)
        assert {task.concept_id for task in queue.next().tasks} == {"mug-1", "mug-2", "mug-3"}


@pytest.mark.parametrize("keys", [Keys((), ()), Keys(("gone",), ("gone",))])
def test_of_keys_that_are_not_there_nothing_is_left(keys):
    with planned(CONCEPTS, PROMPTS) as db:
        assert select(db, Selection("retry", keys=keys)) == Missing(len(keys.concepts), len(keys.renders))
        assert left(db) == ([[], []], [])
