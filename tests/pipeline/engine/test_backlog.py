"""The backlog's remedies: each names only settings that a spec has."""

import pickle
import re
from dataclasses import replace
from itertools import product

import pytest

from pipeline.contract.errors import Code, Status
from pipeline.contract.units import MESSAGE_BYTES, RenderUnit, TrainUnit
from pipeline.engine.backlog import Backlog, WorkItem
from pipeline.engine.policy import Policy
from pipeline.settings import RunSettings
from tests.support.fake_clock import FakeClock
from tests.support.simulated_pool import Source, concept, render

UNITS = {"concept": TrainUnit("t", (concept("c"),)), "render": RenderUnit("r", (render("r"),))}


def failed(code, kind, cause):
    backlog, job = Backlog(Source([], []), Policy(strikes=1), FakeClock()), WorkItem(UNITS[kind], alone=True)
    match code:
        case Code.OUT_OF_MEMORY:
            [outcome] = backlog.out_of_memory(job, 0, cause)
        case Code.INTERNAL:
            [outcome] = backlog.raised(job, 0, cause)
        case _:
            [outcome] = backlog.strike(job, 0, code, cause)
    return outcome


@pytest.mark.parametrize(
    ("code", "kind"),
    list(product((Code.WORKER_DIED, Code.TIMED_OUT, Code.OUT_OF_MEMORY, Code.INTERNAL), UNITS)),
)
def test_a_failed_task_has_the_cause_and_a_remedy_that_exists(code, kind):
    outcome = failed(code, kind, "the cause")
    assert (outcome.kind, outcome.status, outcome.code) == (kind, Status.FAILED, code)
    assert outcome.message.startswith("the cause. ")
    remedy = outcome.message.removeprefix("the cause. ")
    assert remedy.endswith(".")
    properties = RunSettings.model_json_schema()
    for section, name in re.findall(r"\b([a-z]+)\.([a-z_]+)\b", remedy):
        table = properties["properties"][section]
        table = properties["$defs"][table["$ref"].rpartition("/")[2]] if "$ref" in table else table
        assert name in table["properties"]


@pytest.mark.parametrize("kind", UNITS)
def test_a_failure_stays_small_in_bytes_whatever_its_cause(kind):
    for cause in ("x" * 10_000, "ü" * 10_000, "\ud800" * 10_000):
        outcome = failed(Code.WORKER_DIED, kind, cause)
        assert len(outcome.message.encode()) <= MESSAGE_BYTES
        assert " .... It did so each time" in outcome.message
        assert len(pickle.dumps(replace(outcome, key="0" * 64))) <= 1024


def test_remedies_differ_by_kind_where_the_work_does():
    messages = {kind: failed(Code.TIMED_OUT, kind, "late").message for kind in UNITS}
    assert "train.steps" in messages["concept"]
    assert "train" not in messages["render"]
