"""How runs stand, from storage alone: finished, running or interrupted, wherever one asks from."""

import pytest

from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.layout import PLAN, SPEC, run_path
from pipeline.contract.units import Outcome
from pipeline.runs.find import list_runs
from pipeline.runs.lease import EXPIRY_S, Owner, acquire
from pipeline.runs.parts import PartWriter
from pipeline.runs.record import RunRecord
from pipeline.runs.status import (
    NoFinishedRunError,
    RunReader,
    RunStatus,
    finished_run,
    newest_whole_run,
    read_status,
    run_to_watch,
)
from pipeline.storage.objects import Storage, StorageError
from tests.support import records
from tests.support.fake_clock import FakeClock
from tests.support.records import plan_counts, run_spec

ELSEWHERE = Owner("gpu-7", "", 4711, None)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    if request.param == "local":
        yield Storage(str(tmp_path / "root"))
    else:
        yield (found := Storage(f"memory://status-{tmp_path.name}"))
        if found.filesystem.exists(f"/status-{tmp_path.name}"):
            found.filesystem.rm(f"/status-{tmp_path.name}", recursive=True)


def begin(storage, run_id, began_at="2024-02-01T01:02:03Z"):
    record = RunRecord(storage, run_id)
    record.begin(run_spec(run_id, began_at))
    record.write_plan(plan_counts(concepts=3, renders=9))


def finish(storage, run_id, statuses):
    records.finish(storage, records.published(run_id, statuses=statuses))


def ended(kind, key, status=Status.OK):
    if status == Status.OK:
        return Outcome(kind, key, status, origin=Origin.RENDERED)
    return Outcome(kind, key, status, Code.INTERNAL, "it broke")


def test_nothing_there_is_no_runs(storage, clock):
    assert read_status(storage, clock) == []


def test_a_finished_run_tells_what_it_published(storage, clock):
    begin(storage, "r1")
    with acquire(storage, "r1", clock=clock):
        finish(storage, "r1", {"concepts": {"ok": 3}, "renders": {"ok": 8, "failed": 1}})
        assert read_status(storage, clock)[0].state == "finished"
    assert read_status(storage, clock) == [
        RunStatus(
            "r1",
            "2024-02-01",
            "2024-02-01T01:02:03Z",
            "finished",
            "",
            {"concepts": 3, "renders": 9},
            {"concepts": {"ok": 3}, "renders": {"ok": 8, "failed": 1}},
        )
    ]


def test_a_run_is_running_while_its_lease_lives_and_interrupted_after(storage, clock):
    begin(storage, "r1")
    with acquire(storage, "r1", clock=clock):
        [status] = read_status(storage, clock)
        assert status.state == "running"
        assert "last heartbeat 0 s ago" in status.holder
    [status] = read_status(storage, clock)
    assert (status.state, status.holder) == ("interrupted", "")


def test_a_machine_that_fell_silent_is_interrupted_once_its_lease_has_lapsed(storage, clock):
    begin(storage, "r1")
    lease = acquire(storage, "r1", clock=clock, owner=ELSEWHERE, heartbeat_s=3600)
    clock.now += EXPIRY_S - 1
    [status] = read_status(storage, clock)
    assert (status.state, status.holder) == ("running", "process 4711 on gpu-7, last heartbeat 59 s ago")
    clock.now += 2
    assert [each.state for each in read_status(storage, clock)] == ["interrupted"]
    lease.release()


def test_what_is_staged_so_far_counts_each_key_once(storage, clock):
    begin(storage, "r1")
    first = PartWriter(storage, "r1", 1, clock=clock.monotonic)
    first.add([ended("concept", "a"), ended("concept", "b", Status.FAILED), ended("render", "x", Status.FAILED)])
    first.flush()
    second = PartWriter(storage, "r1", 2, clock=clock.monotonic)
    second.add([ended("concept", "b"), ended("render", "x", Status.INVALID), ended("render", "y")])
    second.flush()
    [status] = read_status(storage, clock)
    assert status.statuses == {"concepts": {"ok": 2}, "renders": {"invalid": 1, "ok": 1}}
    assert status.planned == {"concepts": 3, "renders": 9}


def test_what_is_left_is_what_the_newest_driver_planned_and_has_not_done(storage, clock):
    begin(storage, "r1")
    with acquire(storage, "r1", clock=clock):
        parts = PartWriter(storage, "r1", 1, clock=clock.monotonic)
        parts.add([ended("concept", "a"), ended("render", "x", Status.FAILED)])
        parts.flush()
        reader = RunReader(storage, clock, "r1")
        assert reader.read().left == {"concepts": 2, "renders": 8}
    with acquire(storage, "r1", clock=clock):
        RunRecord(storage, "r1").write_plan(plan_counts(concepts=2, renders=9))
        assert reader.read().left == {"concepts": 2, "renders": 9}
        parts = PartWriter(storage, "r1", 2, clock=clock.monotonic)
        parts.add([ended("render", "x")])
        parts.flush()
        assert reader.read().left == {"concepts": 2, "renders": 8}
        assert reader.read().statuses == {"concepts": {"ok": 1}, "renders": {"ok": 1}}
        finish(storage, "r1", {"concepts": {"ok": 3}, "renders": {"ok": 9}})
    assert (reader.read().state, reader.read().left) == ("finished", {})
    assert reader.read() == read_status(storage, clock)[0]


def test_a_run_that_ends_between_two_reads_is_finished(storage, clock):
    """The listing is older than the end, and the lease is released: it must not look interrupted."""
    begin(storage, "r1")
    before = list_runs(storage)["r1"]
    with acquire(storage, "r1", clock=clock):
        finish(storage, "r1", {"concepts": {"ok": 3}, "renders": {"ok": 9}})
    assert RunReader(storage, clock, "r1").read(before).state == "finished"


def test_a_run_whose_folder_is_gone_is_an_error(storage, clock):
    with pytest.raises(StorageError, match="run r1 is gone from"):
        RunReader(storage, clock, "r1").read()


def test_the_run_to_watch_is_the_newest_unfinished_one_else_the_newest(storage):
    assert run_to_watch(storage) is None
    for number in (1, 2, 3):
        begin(storage, f"r{number}", f"2024-02-02T12:00:0{number}Z")
        finish(storage, f"r{number}", {"concepts": {"ok": 3}, "renders": {"ok": 9}})
    assert run_to_watch(storage) == "r3"
    begin(storage, "r0", "2024-02-01T12:00:00Z")
    assert run_to_watch(storage) == "r0"
    assert (run_to_watch(storage, "r1"), run_to_watch(storage, "r9")) == ("r1", None)


def test_the_newest_whole_run_is_no_retry(storage):
    assert newest_whole_run(storage) is None
    for run_id, second, selection in (("r1", 1, None), ("r2", 2, None), ("r3", 3, "retry r2 failed")):
        RunRecord(storage, run_id).begin(run_spec(run_id, f"2024-02-02T12:00:0{second}Z", selection=selection))
        finish(storage, run_id, {"concepts": {"ok": 3}, "renders": {"ok": 9}})
    begin(storage, "r4", "2024-02-02T12:00:04Z")
    assert newest_whole_run(storage) == "r2"


def test_runs_come_oldest_first_and_one_can_be_asked_for(storage, clock):
    for run_id, time in (("r2", "12:00:01"), ("r3", "12:00:00"), ("r1", "12:00:01")):
        begin(storage, run_id, f"2024-02-02T{time}Z")
    storage.write("runs/no-run-of-ours/notes.txt", b"x")
    assert [each.run_id for each in read_status(storage, clock)] == ["r3", "r1", "r2"]
    assert [each.run_id for each in read_status(storage, clock, "r1")] == ["r1"]
    assert read_status(storage, clock, "r") == []
    assert read_status(storage, clock, "no-run-of-ours") == []


def test_a_run_that_has_not_planned_yet(storage, clock):
    begin(storage, "r1")
    storage.delete(run_path("r1", PLAN))
    [status] = read_status(storage, clock)
    assert (status.state, status.planned, status.statuses) == ("interrupted", {}, {"concepts": {}, "renders": {}})


def test_a_damaged_file_of_a_run_is_an_error_with_a_remedy(storage, clock):
    begin(storage, "r1")
    storage.write(run_path("r1", SPEC), b"{")
    with pytest.raises(StorageError, match=r"runs/r1/spec\.json is damaged .*: restore it, or delete it"):
        read_status(storage, clock)


def test_the_finished_run_is_the_newest_one_or_the_named_one(storage, clock):
    for run_id, time in (("r2", "12:00:01"), ("r3", "12:00:00"), ("r1", "12:00:02"), ("r4", "12:00:03")):
        begin(storage, run_id, f"2024-02-02T{time}Z")
    for run_id in ("r1", "r2", "r3"):
        finish(storage, run_id, {"concepts": {"ok": 3}, "renders": {"ok": 9}})
    assert finished_run(storage) == "r1"
    assert finished_run(storage, "r3") == "r3"


def test_a_run_that_is_not_finished_is_refused_with_the_remedy(storage, clock):
    with pytest.raises(NoFinishedRunError, match=r"no finished run under .*: see `perfusion status "):
        finished_run(storage)
    begin(storage, "r1")
    with pytest.raises(NoFinishedRunError, match=r"no finished run under "):
        finished_run(storage)
    with pytest.raises(NoFinishedRunError, match=r"run r1 is not finished: run the command that started it again"):
        finished_run(storage, "r1")
    with pytest.raises(NoFinishedRunError, match=r"no finished run 'r2' under "):
        finished_run(storage, "r2")
