"""A retry does again what failed in a run, and nothing else."""

import pytest

from pipeline.contract.errors import Code, ManifestError
from pipeline.plan.retry import DEAD_LETTER, to_retry
from pipeline.plan.selection import Selection
from pipeline.run import execute
from pipeline.storage.objects import Storage
from tests.support.runs import Engines, Silent, run_settings
from tests.support.shop import CONCEPTS, PROMPTS, PhotosVanish, go, outcome_of, stock, tables


def test_retry_does_again_what_failed_and_nothing_else(shop, root):
    first, _ = go(root, shop, PhotosVanish([shop / "mug-1.png"]))
    storage = Storage(root)
    assert to_retry(storage, first.run_id, DEAD_LETTER).rows == 0
    again = to_retry(storage, first.run_id)
    assert (again.rows, len(again.keys.concepts), len(again.keys.renders)) == (3, 1, 2)
    assert to_retry(storage, first.run_id, frozenset({Code.IMAGE_MISSING})) == again  # pictures come with their concept
    engines = Engines()
    chosen = Selection("retry", keys=again.keys)
    given = run_settings(root, shop)
    second = execute(given, make_engine=engines, observer=Silent(), selection=chosen)
    assert second.run_id.rpartition("-")[0] != first.run_id.rpartition("-")[0]
    assert len(engines.keys) == 3
    found = tables(root, second.run_id)
    assert outcome_of(found, "concepts") == {"mug-1": "trained", "bag-1": "reused"}  # both are in the picture
    assert [(row["status"], row["origin"]) for row in found["renders"]] == [("ok", "rendered")] * 2
    assert to_retry(storage, second.run_id).rows == 0
    # Another superclass is another concept: what failed is not asked for any more.
    stock(shop, [{**CONCEPTS[0], "superclass": "cup"}, *CONCEPTS[1:]], PROMPTS)
    chosen = Selection("retry", keys=again.keys)
    with pytest.raises(ManifestError, match="the superclass of 'mug-1' has changed; `perfusion run` makes"):
        execute(given, make_engine=engines, observer=Silent(), selection=chosen)
