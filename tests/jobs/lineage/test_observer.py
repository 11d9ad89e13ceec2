"""What the observer counts, and when it is silent."""

import json
from contextlib import suppress

from jobs.lineage.observer import observing
from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.units import Outcome
from pipeline.observer import Begun
from pipeline.settings import LineageSettings
from tests.support.runs import key, run_settings

BEGUN = Begun("run-0123456789ab-0001", "2026-01-02", False, 1)
OUTCOMES = [
    Outcome("concept", key("a"), Status.OK, origin=Origin.TRAINED, bytes=5),
    Outcome("render", key("b"), Status.OK, origin=Origin.RENDERED, bytes=70),
    Outcome("render", key("c"), Status.OK, origin=Origin.RENDERED, bytes=30),
    # An object that an attempt before had made and not recorded, and a row without one.
    Outcome("render", key("d"), Status.OK, origin=Origin.REUSED, bytes=1_000),
    Outcome("render", key("e"), Status.FAILED, error_code=Code.INTERNAL, error_message="it is broken"),
]


class Ends(Exception):  # noqa: N818 (it only ends the block)
    pass


def events_of(tmp_path, act):
    """The events of a run whose observer was used by `act`, and which an exception ended."""
    file = tmp_path / "events.jsonl"
    settings = run_settings(tmp_path / "root", tmp_path)
    with suppress(Ends), observing(settings, LineageSettings(file=str(file))) as observer:
        act(observer)
        raise Ends("that is all")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_only_objects_that_this_attempt_made_are_counted(tmp_path):
    def act(observer):
        observer.begun(BEGUN)
        for outcome in OUTCOMES:
            observer.outcomes([outcome])

    _, fail = events_of(tmp_path, act)
    counted = [each["outputFacets"]["outputStatistics"] for each in fail["outputs"]]
    assert [(each["fileCount"], each["size"]) for each in counted] == [(1, 5), (2, 100)]


def test_an_attempt_ends_once(tmp_path):
    def act(observer):
        observer.begun(BEGUN)
        observer.failed(KeyboardInterrupt())

    assert [each["eventType"] for each in events_of(tmp_path, act)] == ["START", "ABORT"]


def test_a_run_without_a_recorded_spec_has_events_without_digests(tmp_path):
    start, fail = events_of(tmp_path, lambda observer: observer.begun(BEGUN))  # no file in the root tells of the run
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert len(start["inputs"]) == 3
    assert all("version" not in each["facets"] for each in start["inputs"])


def test_nothing_is_sent_before_a_run_begins(tmp_path):
    assert events_of(tmp_path, lambda _: None) == []
