"""The cost of a run is estimated from the newest run that did any work."""

import pytest

from pipeline.contract.kinds import Counts, PerKind
from pipeline.plan.estimate import Estimate, estimate
from pipeline.storage.objects import Storage
from tests.support.shop import go, tables


def test_work_is_estimated_by_the_newest_run_that_did_any(shop, root):
    storage = Storage(root)
    first, _ = go(root, shop)
    work = first.planned.work
    assert estimate(storage, pending_of(0, 0)) == Estimate(0.0, 0.0, 0, (first.run_id,))
    found = tables(root, first.run_id)
    guess = estimate(storage, work)
    assert guess.training_h == pytest.approx(sum(row["accelerator_s"] for row in found["concepts"]) / 3600)
    assert guess.rendering_h == pytest.approx(sum(row["accelerator_s"] for row in found["renders"]) / 3600)
    assert guess.bytes == pytest.approx(sum(row["bytes"] for table in found.values() for row in table), abs=1)
    go(root, shop)  # makes nothing, so it measures nothing
    assert estimate(storage, work) == guess
    empty = Storage(root + "-empty")
    assert estimate(empty, pending_of(2, 0)) == Estimate(None, 0.0, None, ())


def pending_of(concepts, renders):
    return PerKind(*(Counts(keys, 0, 0, keys, keys, keys) for keys in (concepts, renders)))
