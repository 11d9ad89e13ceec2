"""What a run tells the JSON log: its plan, progress once a minute, and each task that did not end ok."""

import io
import json
from dataclasses import replace

import pytest

from jobs.logs.json_log import JsonLog
from jobs.logs.observing import RunLog
from jobs.progress import Progress, watching
from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.units import Outcome
from pipeline.engine.figures import Snapshot
from pipeline.observer import Begun, Pulse
from tests.support.records import plan_counts

OK = Outcome("render", "k" * 64, Status.OK, origin=Origin.RENDERED)
FAILED = replace(
    OK, status=Status.FAILED, error_code=Code.WORKER_DIED, error_message="it died", worker="w-1", attempts=2
)


class Told:
    """A log on a clock that stands still."""

    def __init__(self):
        self.now = 0.0
        self.stream = io.StringIO()

    def __enter__(self):
        self.log = JsonLog(self.stream).__enter__()
        self.run = RunLog(self.log, clock=lambda: self.now)
        return self

    def __exit__(self, *error):
        self.log.__exit__(None, None, None)

    def lines(self, event):
        found = map(json.loads, self.stream.getvalue().splitlines())
        return [line for line in found if line["event"] == event]


@pytest.fixture
def told():
    with Told() as told:
        yield told


def test_only_what_did_not_end_ok_has_a_line(told):
    told.run.begun(Begun("run-1", "2026-01-01", resumed=True, lease=3))
    told.run.outcomes([OK, FAILED, replace(FAILED, kind="concept", error_column="images", status=Status.INVALID)])
    first, second = told.lines("task")
    assert (first["run_id"], first["lease"], first["level"]) == ("run-1", 3, "warning")
    names = ("kind", "key", "status", "error_code", "message", "worker", "attempts", "column")
    assert [first[name] for name in names] == [
        *("render", "k" * 64, "failed", "worker_died", "it died", "w-1", 2, None)
    ]
    assert [second[name] for name in ("kind", "status", "column")] == ["concept", "invalid", "images"]


def test_progress_is_told_at_once_and_then_every_minute(told):
    told.run.planned(plan_counts(concepts=3, renders=90))
    pulse = Pulse(Snapshot(ready=2, running=1, spent_s=12.34))
    told.run.working(pulse)
    for second in range(1, 121):
        told.now = float(second)
        told.run.outcomes([OK] if second % 2 else [])
        if second == 30:
            told.run.outcomes([FAILED])
        told.run.working(pulse)
    first, second, third = told.lines("progress")
    assert (first["per_s"], first["left"]) == (None, {"concepts": 3, "renders": 90})
    assert first["slots"] == {"ready": 2, "running": 1, "leaving": 0, "starting": 0, "quarantined": 0}
    assert first["spent_s"] == 12.3
    assert (second["done"], second["failed"]) == ({"concepts": 0, "renders": 30}, {"concepts": 0, "renders": 1})
    assert second["left"] == {"concepts": 3, "renders": 59}
    assert second["per_s"] == {"concepts": 0, "renders": round(31 / 60, 4)}
    assert third["per_s"] == {"concepts": 0, "renders": 0.5}


def test_a_run_is_watched_by_the_log_that_is_installed(told):
    with watching() as observer:
        assert isinstance(observer, RunLog)
    told.log.__exit__(None, None, None)
    with watching() as observer:
        assert isinstance(observer, Progress)
    told.log.__enter__()
