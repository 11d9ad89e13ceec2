"""A finished run is the answer to the same command while its inputs and all of its objects are unchanged."""

from pipeline.contract.kinds import Counts, PerKind
from pipeline.storage.objects import Storage
from tests.support.runs import Silent, photo
from tests.support.shop import CONCEPTS, PROMPTS, check_accounts, go, stock


def test_first_run_makes_all_and_is_the_answer_to_the_second(shop, root):
    observer = Silent()
    first, engines = go(root, shop, observer=observer)
    found = check_accounts(root, first, concepts=3, prompts=2, pictures=4)
    assert len(engines.keys) == len(observer.seen) == 7
    assert {row["origin"] for row in found["concepts"]} == {"trained"}
    assert {row["origin"] for row in found["renders"]} == {"rendered"}
    assert all(row["accelerator_s"] > 0 and row["attempts"] == 1 for table in found.values() for row in table)
    assert [row["season"] for row in found["concepts"]] == ["winter", "summer", "summer"]
    assert not first.resumed
    assert not first.repeated
    before = all_but_the_cache(root)
    again, engines = go(root, shop)
    assert engines.made == []  # no engine was asked for
    assert again.repeated
    assert (again.run_id, again.published, again.report) == (first.run_id, first.published, first.report)
    assert again.planned.work == PerKind(Counts(3, 0, 3, 0, 3, 0), Counts(4, 0, 4, 0, 4, 0))
    assert all_but_the_cache(root) == before


def all_but_the_cache(root):
    """Pictures that were too young to be remembered may be so now."""
    return {path: size for path, size in Storage(root).list() if not path.startswith("cache/")}


def test_a_run_answers_only_while_all_of_it_is_there(shop, root):
    storage = Storage(root)
    first, _ = go(root, shop)
    storage.delete(f"runs/{first.run_id}/report/index.html")
    assert go(root, shop)[0].repeated
    assert storage.exists(f"runs/{first.run_id}/report/index.html")
    # A picture that is gone is rendered again, in a run of its own, which answers from then on.
    storage.delete(next(path for path, _ in storage.list("images")))
    second, engines = go(root, shop)
    assert (second.run_id, len(engines.keys)) == (first.run_id[:-1] + "2", 1)
    assert go(root, shop)[0].run_id == second.run_id
    # So is one of another size. The second rendering may be a byte longer than the first one, so that more must be cut.
    path = next(path for path, _ in storage.list("images"))
    storage.write(path, storage.read(path)[:100])
    third, engines = go(root, shop)
    assert (third.repeated, len(engines.keys)) == (False, 1)
    # What is gone from the tables is not believed; an earlier run that is whole says the same.
    storage.delete(third.published.files[0].path)
    assert go(root, shop)[0].run_id == second.run_id
    for earlier in (first, second):
        storage.delete(earlier.published.files[0].path)
    fourth, engines = go(root, shop)
    assert (fourth.repeated, len(engines.keys)) == (False, 3)
    check_accounts(root, fourth, concepts=3, prompts=2, pictures=4)


def test_rows_that_nothing_can_be_made_of_do_not_keep_a_run_from_being_the_answer(shop, root):
    stock(shop, [*CONCEPTS, {**CONCEPTS[0], "concept_id": "not an id"}], [*PROMPTS, {"prompt": "a {nobody}"}])
    go(root, shop)
    again, engines = go(root, shop)
    assert (again.repeated, engines.made) == (True, [])
    assert again.planned.work == PerKind(Counts(4, 1, 3, 0, 3, 0), Counts(5, 1, 4, 0, 4, 0))
    # Another picture under the same address is other work.
    photo(shop / "mug-1.png", seed=78)
    assert not go(root, shop)[0].repeated
