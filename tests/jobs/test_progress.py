"""Progress: the plan's totals, rates that leave start-up out, lines at their times, and nothing on stdout."""

import io
import re
import threading
from pathlib import Path

import pytest

from jobs.progress import Progress
from jobs.tally import describe
from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.kinds import Counts, PerKind
from pipeline.contract.units import Activity, Outcome
from pipeline.observer import Pulse

PENDING = PerKind(
    Counts(rows=8, invalid=1, reused=1, to_do=6, keys=7, keys_to_do=6),
    Counts(rows=60, invalid=0, reused=5, to_do=55, keys=58, keys_to_do=53),
)


class FakeTime:
    now = 1000.0

    def __call__(self):
        return self.now


def ended(kind, count, *, unit_s=0.0, failed=0, first=0):
    """`count` outcomes of one unit that took `unit_s` seconds; none means that nothing was worked on."""
    statuses = [Status.FAILED] * failed + [Status.OK] * (count - failed)
    return [
        Outcome(
            kind,
            f"{first + number}",
            status,
            error_code=None if status == Status.OK else Code.INTERNAL,
            origin=Origin.RENDERED if unit_s else Origin.REUSED,
            accelerator_s=unit_s / count,
            batch=count,
        )
        for number, status in enumerate(statuses)
    ]


class Shown:
    """A progress whose stream and clock the test holds."""

    def __init__(self, *, live=False, brief=False, pending=PENDING):
        self.stream, self.time = io.StringIO(), FakeTime()
        self.progress = Progress(self.stream, live=live, brief=brief, clock=self.time)
        self.progress.planned(pending)

    def after(self, seconds, outcomes):
        self.time.now += seconds
        self.progress.outcomes(outcomes)

    def working(self, seconds, *activities):
        self.time.now += seconds
        self.progress.working(Pulse(activities=activities))

    @property
    def lines(self):
        return self.stream.getvalue().splitlines()

    @property
    def work_lines(self):
        return [line for line in self.lines if " | " in line]


def test_totals_are_the_plan_s_whatever_has_ended():
    shown = Shown()
    with shown.progress:
        shown.progress.stage("start", "run r")
        for _ in range(3):
            shown.after(20, ended("concept", 2, unit_s=20))
        for _ in range(5):
            shown.after(11, ended("render", 10, unit_s=11))
        shown.after(1, ended("render", 3, unit_s=1))
    counts = [re.match(r"concepts (\d+)/6 \| renders (\d+)/53", line) for line in shown.work_lines]
    assert all(counts)
    made = [(int(found[1]), int(found[2])) for found in counts]
    assert made == [(2, 0), (4, 0), (6, 0), (6, 10), (6, 20), (6, 30), (6, 40), (6, 50), (6, 53)]


def test_start_says_what_the_plan_comes_to():
    shown = Shown()
    with shown.progress:
        shown.progress.stage("validate", "s3://shop/concepts.parquet")
        shown.progress.stage("start", "run r")
    assert shown.lines == [
        "checking s3://shop/concepts.parquet",
        "concepts: 8 rows, 1 reused, 6 to do, 1 bad",
        "renders: 60 rows, 5 reused, 55 to do",
        "starting workers for run r",
    ]


def test_one_of_many_runs_shows_its_work_alone():
    shown = Shown(brief=True)
    with shown.progress:
        for name in ("base", "validate", "plan", "start"):
            shown.progress.stage(name, "run r")
        shown.after(11, ended("render", 10, unit_s=11))
        shown.progress.stage("publish", "run r")
    assert len(shown.lines) == len(shown.work_lines) == 1


def metric(done):
    return Activity("metric", done, 10_000)


def training(done, concepts=6, total=400):
    return Activity("training", done, total, concepts)


def test_a_line_says_at_once_what_workers_begin_and_every_ten_seconds_how_far_they_are():
    shown = Shown()
    with shown.progress:
        shown.progress.stage("start", "run r")
        shown.working(1)
        shown.working(1, metric(0))
        for number in range(1, 25):
            shown.working(1, metric(number * 400))
        shown.working(1, training(1))
        shown.working(1, training(20))
        shown.working(10, training(200))
        shown.after(10, ended("concept", 6, unit_s=20))
        shown.working(1)
    assert shown.work_lines == [
        "concepts 0/6 | renders 0/53 | estimating the metric: 0/10,000 captions | 2 s so far",
        "concepts 0/6 | renders 0/53 | estimating the metric: 4,000/10,000 captions | 12 s so far",
        "concepts 0/6 | renders 0/53 | estimating the metric: 8,000/10,000 captions | 22 s so far",
        "concepts 0/6 | renders 0/53 | training 6 concepts: step 1/400 | 27 s so far",
        "concepts 0/6 | renders 0/53 | training 6 concepts: step 200/400 | 38 s so far",
        "concepts 6/6 | renders 0/53 | training 6 concepts: step 200/400 | 48 s so far",
        "concepts 6/6 | renders 0/53 | 49 s so far",
    ]


def test_a_terminal_shows_from_the_first_second_that_nothing_has_ended_yet():
    shown = Shown(live=True)
    with shown.progress:
        shown.progress.stage("start", "run r")
        shown.working(1)
        assert shown.progress._text().plain == "concepts 0/6 | renders 0/53 | waiting for the first result | 1 s so far"
        shown.working(1, metric(100))
        assert "| estimating the metric: 100/10,000 captions | 2 s so far" in shown.progress._text().plain
        shown.working(1)
        assert shown.progress._text().plain == "concepts 0/6 | renders 0/53 | 3 s so far"


@pytest.mark.parametrize(
    ("activities", "text"),
    [
        ((), ""),
        ((training(7, concepts=1),), "training 1 concept: step 7/400"),
        ((training(100), training(200, concepts=2)), "training 8 concepts on 2 workers: 31% of the steps"),
        ((metric(100), metric(300)), "estimating the metric: 300/10,000 captions"),
        ((metric(100), training(5)), "estimating the metric: 100/10,000 captions, training 6 concepts: step 5/400"),
    ],
)
def test_activities_are_told_in_a_few_words(activities, text):
    assert describe(activities) == text


def test_a_plan_alone_shows_no_work():
    shown = Shown()
    with shown.progress:
        shown.progress.stage("plan", "memory://root")
    assert shown.lines == ["planning against memory://root"]


def test_rates_count_from_the_first_unit_s_own_beginning():
    """Ninety seconds of start-up and a minute of training are not part of the pictures' rate."""
    shown = Shown()
    with shown.progress:
        shown.progress.stage("start", "run r")
        shown.after(150, ended("concept", 3, unit_s=60))  # began 90 s after the start: 3 a minute
        assert shown.work_lines[-1] == (
            "concepts 3/6 | renders 0/53 | 3.0 concepts/min | 2 min 30 s so far, about 1 min 00 s of training left"
        )
        shown.after(60, ended("concept", 3, unit_s=60))
        assert shown.work_lines[-1] == "concepts 6/6 | renders 0/53 | 3 min 30 s so far"
        shown.after(10, ended("render", 8, unit_s=4))
        assert (
            shown.work_lines[-1] == "concepts 6/6 | renders 8/53 | 2.0 renders/s | 3 min 40 s so far, about 22 s left"
        )
        shown.after(40, ended("render", 3, unit_s=4))  # 11 in 44 s
        assert shown.work_lines[-1].endswith("| 15.0 renders/min | 4 min 20 s so far, about 2 min 48 s left")


def test_the_longer_kind_decides_while_both_go_on():
    shown = Shown()
    with shown.progress:
        shown.progress.stage("start", "run r")
        shown.after(10, ended("concept", 5, unit_s=10))  # one left: 2 s
        shown.after(10, ended("render", 10, unit_s=10))  # 43 left: 43 s
    assert shown.work_lines[-1].endswith("about 43 s left")


def test_what_was_there_already_bends_no_rate_and_counts_all_the_same():
    shown = Shown()
    with shown.progress:
        shown.progress.stage("start", "run r")
        shown.after(10, ended("concept", 6, unit_s=10))
        shown.after(10, ended("render", 40))
        assert shown.work_lines[-1] == "concepts 6/6 | renders 40/53 | 20 s so far"
        shown.after(10, ended("render", 10, unit_s=10, first=40))
        assert shown.work_lines[-1].endswith("renders 50/53 | 1.0 renders/s | 30 s so far, about 3 s left")


def test_failed_tasks_are_counted_and_good_ones_are_not():
    shown = Shown()
    with shown.progress:
        shown.progress.stage("start", "run r")
        shown.after(10, ended("concept", 6, unit_s=5, failed=2))
        shown.after(10, [Outcome("render", "k", Status.OK, accelerator_s=1.0)])
    assert "| 2 failed |" in shown.work_lines[-1]


def test_plain_is_a_line_every_ten_seconds_and_one_at_the_end():
    shown = Shown()
    with shown.progress:
        shown.progress.stage("start", "run r")
        for _ in range(25):
            shown.after(1, ended("render", 2, unit_s=1))
        assert [re.search(r"\d+ s so far", line)[0] for line in shown.work_lines] == ["10 s so far", "20 s so far"]
        shown.progress.stage("publish", "run r")
        assert shown.lines[-2].startswith("concepts 0/6 | renders 50/53")
        assert shown.lines[-1] == "publishing run r"
    assert len(shown.work_lines) == 3


def test_a_log_is_not_silent_for_longer_than_a_minute():
    class Lines(io.StringIO):
        def __init__(self):
            super().__init__()
            self.written = threading.Event()

        def write(self, text):
            if " | " in text:
                self.written.set()
            return super().write(text)

    stream, now = Lines(), FakeTime()
    with Progress(stream, live=False, clock=now, beat_s=0.001) as progress:
        progress.planned(PENDING)
        progress.stage("start", "run r")
        now.now += 59
        assert not stream.written.wait(0.1)
        now.now += 1
        assert stream.written.wait(30)
    assert stream.getvalue().splitlines()[-1] == "concepts 0/6 | renders 0/53 | 1 min 00 s so far"
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_last_state_is_shown_however_it_ends(error):
    shown = Shown()
    try:
        with shown.progress:
            shown.progress.stage("start", "run r")
            shown.after(1, ended("concept", 2, unit_s=1))
            if error:
                raise error
    except RuntimeError:
        pass
    assert shown.lines[-1].startswith("concepts 2/6 | renders 0/53")


def test_one_kind_of_work_alone():
    pending = PerKind(Counts(3, 0, 3, 0, 3, 0), Counts(9, 0, 0, 9, 9, 9))
    shown = Shown(pending=pending)
    with shown.progress:
        shown.progress.stage("start", "run r")
        shown.after(10, ended("render", 9, unit_s=9))
        shown.time.now += 5  # workers end; that is no part of the work
    assert shown.work_lines == ["renders 9/9 | 1.0 renders/s | in 10 s"]


def test_plain_lines_are_not_wrapped_and_names_are_not_markup():
    shown = Shown()
    name = "[bold]" + "a-very-long-folder-name/" * 10 + ":smile:.parquet"
    with shown.progress:
        shown.progress.stage("validate", name)
    assert shown.lines == [f"checking {name}"]


def test_live_is_one_line_that_is_left_in_its_last_state():
    shown = Shown(live=True)
    with shown.progress:
        shown.progress.stage("start", "run r")
        shown.after(10, ended("concept", 6, unit_s=5))
        shown.after(10, ended("render", 20, unit_s=5))
        shown.progress.stage("publish", "run r")
    text = shown.stream.getvalue()
    settled = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "concepts 6/6 | renders 20/53 | 4.0 renders/s | 20 s so far, about 8 s left\n" in settled
    assert settled.endswith("publishing run r\n")


def test_local_paths_are_as_short_as_the_folder_allows(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = Shown()
    with shown.progress:
        shown.progress.stage("validate", str(tmp_path / "shop" / "concepts.parquet"))
        shown.progress.stage("plan", str(Path(tmp_path.parent) / "elsewhere"))
    assert shown.lines == ["checking shop/concepts.parquet", f"planning against {tmp_path.parent}/elsewhere"]


def test_standard_output_stays_clean(capsys):
    with Progress() as progress:
        progress.planned(PENDING)
        progress.stage("start", "run r")
        progress.outcomes(ended("concept", 6, unit_s=1.0))
    found = capsys.readouterr()
    assert found.out == ""
    assert "concepts 6/6" in found.err
