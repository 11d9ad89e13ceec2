"""The reasons for which a run makes objects again."""

import pytest

from pipeline.run import execute
from pipeline.storage.objects import Storage
from tests.support.runs import Engines, Silent, photo, run_settings
from tests.support.shop import CONCEPTS, PROMPTS, stock


def why(root, shop, **changes):
    """The reasons for all that a run has to do, which it then does."""
    given = run_settings(root, shop, **changes)
    result = execute(given, make_engine=Engines(), observer=Silent(), explain=True)
    work = result.planned.work
    assert sum(result.planned.changes.concepts.values()) == work.concepts.keys_to_do
    assert sum(result.planned.changes.renders.values()) == work.renders.keys_to_do
    return result.planned.changes.concepts, result.planned.changes.renders


@pytest.mark.long
def test_each_reason_to_make_something_again_is_told(shop, root):
    assert why(root, shop) == ({"new": 3}, {"new": 4})
    assert why(root, shop) == ({}, {})
    stock(shop, prompts=[PROMPTS[0], {**PROMPTS[1], "bias": 0.4}])
    assert why(root, shop) == ({}, {"settings": 1})
    stock(shop, prompts=[{"prompt": "a photo of a {product} in the snow"}, PROMPTS[1]])
    assert why(root, shop) == ({}, {"prompt": 3})
    photo(shop / "bag-1.png", seed=77)
    assert why(root, shop) == ({"pictures or training": 1}, {"weights": 2})
    cup = {**CONCEPTS[0], "superclass": "cup"}
    stock(shop, [cup, *CONCEPTS[1:]], [PROMPTS[1]])
    assert why(root, shop) == ({"superclass": 1}, {"weights": 1})
    hat = {"concept_id": "hat-1", "superclass": "hat", "images": ["bag-1.png"], "season": None}
    stock(shop, [cup, *CONCEPTS[1:], hat], [PROMPTS[1], {"prompt": "a {hat-1}"}])
    assert why(root, shop) == ({"new": 1}, {"new": 1})
    storage = Storage(root)
    for folder in ("images", "weights"):
        for path, _ in list(storage.list(folder)):
            storage.delete(path)
    assert why(root, shop) == ({"object gone": 4}, {"object gone": 2})
