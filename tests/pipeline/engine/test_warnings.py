"""Warnings of the engine say as fields what they are about: the slot, its unit, and the key of a single task."""

import logging

from pipeline.engine.policy import Policy
from pipeline.engine.scheduler import run
from tests.support.fake_clock import FakeClock
from tests.support.simulated_pool import Pool, Source, World, render


def test_warnings_name_slot_unit_and_key(caplog):
    clock = FakeClock()
    world = World(slots=2, poison=frozenset({"r1"}), bugs=frozenset({"r5"}), unstartable=frozenset({1}))
    tasks = [render(f"r{number}") for number in range(6)]
    with caplog.at_level(logging.WARNING):
        policy = Policy(poll_s=1e6)
        run(
            Source([], tasks, batch=3),
            Pool(world, clock),
            lambda _: None,
            policy=policy,
            clock=clock,
            stop=lambda _: None,
        )
    warnings = [record for record in caplog.records if record.name == "pipeline.engine.settlement"]
    assert all(vars(record)["slot"] in {0, 1} for record in warnings)
    assert all(f"slot {vars(record)['slot']}" in record.getMessage() for record in warnings)
    alone = {vars(record)["key"] for record in warnings if hasattr(record, "key")}
    assert alone == {"r1", "r5"}
    assert any(hasattr(record, "unit") and not hasattr(record, "key") for record in warnings)
    assert any(not hasattr(record, "unit") for record in warnings if "gets no more work" in record.getMessage())
