"""Watching a run: rates from readings, when it ends, and what each view shows."""

import io
import itertools
import json

from rich.console import Console

from jobs.results.watch import JsonLines, Lines, LiveTable, Pace, Readings, watch
from pipeline.runs.status import RunStatus
from tests.support.fake_clock import FakeClock


def reading(renders=0, *, left=100, failed=0, state="running", seen="1 s ago", concepts=2):
    holder = f"process 7 on gpu-1, last heartbeat {seen}" if state == "running" else ""
    statuses = {
        "concepts": {"ok": concepts},
        "renders": {"ok": renders, "failed": failed} if failed else {"ok": renders},
    }
    return RunStatus(
        "run-1",
        "2027-01-15",
        "2027-01-15T08:00:00Z",
        state,
        holder,
        {"concepts": 2, "renders": 110},
        statuses,
        {} if state == "finished" else {"concepts": 0, "renders": left},
    )


class Shown:
    def __init__(self):
        self.seen = []

    def show(self, status, pace):
        self.seen.append((status, pace))


def watched(statuses, view=None, every_s=5.0):
    """Watch these readings; returns the last state and when each was made."""
    clock, times = FakeClock(), []
    source = iter(statuses)

    def read():
        times.append(clock.now)
        return next(source)

    def wait(seconds):
        clock.now += seconds

    return watch(read, view or Shown(), every_s=every_s, clock=clock, wait=wait), times


def test_it_ends_with_the_run_and_reads_no_oftener_than_asked():
    assert watched([reading(), reading(), reading(state="finished"), reading()], every_s=7) == ("finished", [0, 7, 14])
    assert watched([reading(state="interrupted")]) == ("interrupted", [0])


def test_the_pace_is_that_of_ten_minutes():
    readings = Readings()
    assert readings.pace(0, reading(0)) == Pace()
    assert readings.pace(10, reading(0)) == Pace()
    assert readings.pace(20, reading(40, left=60)) == Pace({"renders": 2.0}, 30.0)
    assert readings.pace(500, reading(40, left=60)).per_s == {"renders": 0.08}
    for now in (700, 1000, 1300):
        pace = readings.pace(now, reading(40, left=60))
    assert pace == Pace()
    assert readings.pace(1310, reading(100, left=0)).left_s is None
    assert readings.pace(1320, reading(state="interrupted")) == Pace()


def test_the_time_left_needs_the_rate_of_all_that_is_left():
    readings = Readings()

    def both(now, concepts, renders):
        status = reading(renders, left=90, concepts=concepts)
        status.left["concepts"] = 30
        return readings.pace(now, status).left_s

    assert both(0, 0, 0) is None
    assert both(10, 5, 0) is None
    assert both(20, 10, 10) == 180.0


def test_a_line_says_all_that_is_known(capsys):
    Lines(FakeClock()).show(reading(40, left=60, failed=3), Pace({"renders": 2.0}, 30.0))
    Lines(FakeClock()).show(reading(110, state="finished"), Pace())
    assert capsys.readouterr().out.splitlines() == [
        "2027-01-15T08:00:00Z | run-1 running | concepts 2 ok, 0 left | renders 3 failed, 40 ok, 60 left | "
        "2.0 renders/s | about 30 s left | process 7 on gpu-1, last heartbeat 1 s ago",
        "2027-01-15T08:00:00Z | run-1 finished | concepts 2 ok | renders 110 ok",
    ]


def test_json_is_a_line_per_change(capsys):
    view = JsonLines(FakeClock())
    for status in (reading(1), reading(1, seen="6 s ago"), reading(2), reading(2, state="interrupted")):
        view.show(status, Pace({"renders": 1 / 3}, 10.4))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["state"], line["statuses"]["renders"]["ok"]) for line in lines] == [
        ("running", 1),
        ("running", 2),
        ("interrupted", 2),
    ]
    assert (lines[0]["per_s"], lines[0]["left_s"], lines[0]["time"]) == (
        {"renders": 0.3333},
        10,
        "2027-01-15T08:00:00Z",
    )


def test_a_terminal_gets_one_table_that_is_drawn_again():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with LiveTable(console, FakeClock()) as view:
        for count in itertools.accumulate([1, 1, 1]):
            view.show(reading(count, left=100 - count), Pace({"renders": 0.5}, 60.0))
    text = stream.getvalue()
    assert [f"renders {count} ok, {100 - count} left" in text for count in (1, 2, 3)] == [True] * 3
    assert "\x1b[1A" in text  # the cursor goes up: the table is drawn in its place
    assert "30.0 renders/min" in text
