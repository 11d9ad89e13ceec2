"""The timeline of workers: units rebuilt from rows, seconds that add up, lanes and bytes that are bounded."""

import re
import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.contract.units import TrainUnit
from pipeline.report.run_tables import open_tables
from pipeline.report.timeline import COLUMNS, HEIGHT, MAX_LANES, make_timeline, outline
from pipeline.storage.objects import Storage
from tests.support.report import RUN, WHEN, Page, concept, key, page_of, publish, render
from tests.support.runs import Engines
from tests.support.shop import go

ROOTS = Path(__file__).parents[2] / "roots"
WORKERS = ("host-a:1", "host-a:2", "host-b:1")


@dataclass(frozen=True)
class Unit:
    """What a worker did: `start` and `seconds` since `WHEN`."""

    worker: str
    kind: str
    start: float
    seconds: float
    tasks: int


def tables_of(units):
    """Rows as workers report them: equal shares, and finished one after the other within microseconds."""
    found = {"concepts": [], "renders": []}
    for number, unit in enumerate(units):
        for task in range(unit.tasks):
            end = timedelta(seconds=unit.start + unit.seconds, microseconds=3 * task)
            values = {
                "accelerator_s": unit.seconds / unit.tasks,
                "batch": unit.tasks,
                "worker": unit.worker,
                "finished_at": WHEN + end,
            }
            place, name = len(found[unit.kind]) + 1, f"product-{number}-{task}"
            row = (
                concept(place, name, **values) if unit.kind == "concepts" else render(place, 0, [name], None, **values)
            )
            found[unit.kind].append(row)
    return found["concepts"], found["renders"]


def timeline_of(storage, run_id=RUN):
    """The timeline, and how many units of each kind it was made of."""
    with open_tables(storage, run_id, ()) as opened:
        line = make_timeline(opened.connection)
        counted = opened.connection.execute("SELECT kind, count(*) FROM units GROUP BY kind").fetchall()
        return line, dict(counted)


def naive_columns(units, begin, column_s):
    """Seconds of units in each column, by plain arithmetic."""
    found = [0.0] * COLUMNS
    for unit in units:
        for column in range(COLUMNS):
            low, high = begin + column * column_s, begin + (column + 1) * column_s
            found[column] += max(0.0, min(high, unit.start + unit.seconds) - max(low, unit.start))
    return found


STEPS = st.tuples(
    st.sampled_from(["concepts", "renders"]),
    st.floats(0.001, 2000),  # seconds of work
    st.just(0.0) | st.floats(0, 5000),  # and idle before it
    st.integers(1, 6),  # tasks
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(STEPS, max_size=8), min_size=1, max_size=3).filter(any))
def test_seconds_of_all_columns_are_the_accelerator_seconds(storage, lanes):
    units = []
    for worker, steps in zip(WORKERS, lanes, strict=False):
        at = 0.0
        for kind, seconds, idle, tasks in steps:
            units.append(Unit(worker, kind, at + idle, seconds, tasks))
            at += idle + seconds
    publish(storage, *tables_of(units))
    line, counted = timeline_of(storage)
    assert line is not None
    assert counted == {kind: sum(unit.kind == kind for unit in units) for kind in {unit.kind for unit in units}}, (
        "each unit is rebuilt as one"
    )
    names = {unit.worker for unit in units}
    assert (line.workers, [lane.name for lane in line.lanes]) == (len(names), sorted(names))
    begin = min(unit.start for unit in units)
    assert line.begin == pytest.approx(WHEN.timestamp() + begin, abs=1e-4)
    column_s = line.duration_s / COLUMNS
    for lane in (line.every, *line.lanes):
        mine = [unit for unit in units if lane.name in {unit.worker, "all workers"}]
        for kind, total, columns in (
            ("concepts", lane.training_s, lane.trained),
            ("renders", lane.rendering_s, lane.rendered),
        ):
            of_kind = [unit for unit in mine if unit.kind == kind]
            spent = sum(unit.seconds for unit in of_kind)
            assert total == pytest.approx(spent)
            assert sum(columns) == pytest.approx(spent)
            assert columns == pytest.approx(naive_columns(of_kind, begin, column_s), abs=1e-4)
        workers = line.workers if lane is line.every else 1
        most = max(map(sum, zip(lane.trained, lane.rendered, strict=True)))
        assert most <= workers * column_s + 1e-4, "one worker is not busier than time passes"
        assert lane.busy + lane.idle_s / lane.present_s == pytest.approx(1)
    whole = sum(unit.seconds for unit in units) / (line.workers * line.duration_s)
    assert line.busy_of_all == pytest.approx(min(1, whole))


def test_units_of_a_real_run_are_rebuilt(root, shop):
    result, engines = go(root, shop, Engines(slots=2), train={"steps": 4, "batch": 1})
    line, counted = timeline_of(Storage(root), result.run_id)
    trainings = sum(isinstance(unit, TrainUnit) for unit in engines.units)
    assert counted == {"concepts": trainings, "renders": len(engines.units) - trainings}
    assert 0.5 < line.every.busy <= 1, "workers that take turns in one process leave little time between units"


def test_a_root_of_an_earlier_version_gets_one_too(tmp_path):
    shutil.copytree(ROOTS / "root_of_0_1", tmp_path / "root")
    line, counted = timeline_of(Storage(str(tmp_path / "root")), "run-bafc3b5d14e3-0001")
    assert counted == {"concepts": 1, "renders": 1}
    assert (line.workers, round(line.every.training_s, 2), round(line.every.rendering_s, 2)) == (1, 0.23, 0.17)


def test_rows_that_cost_this_run_nothing_make_no_timeline(storage):
    reused = {"origin": "reused", "accelerator_s": 3.0}
    gone = {"worker": None, "finished_at": None, "batch": None}
    publish(
        storage,
        [concept(1, "mug-1", **reused), concept(2, "mug-2", **gone), concept(3, "mug-3", accelerator_s=0.0)],
        [render(1, 0, ["mug-1"], None, **reused), render(2, 0, ["mug-2"], None, **gone)],
    )
    assert timeline_of(storage) == (None, {})
    page = page_of(storage)
    assert "#workers" not in page
    assert 'id="workers"' not in page


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_units_of_equal_length_back_to_back_stay_apart(storage, tasks):
    units = [Unit("host:1", "renders", 10.0 * number, 10.0, tasks) for number in range(5)]
    publish(storage, *tables_of(units))
    line, counted = timeline_of(storage)
    assert counted == {"renders": 5}
    assert line.every.busy == pytest.approx(1)
    assert line.every.busy_path == f"M0 {HEIGHT}v-{HEIGHT}h{COLUMNS}V{HEIGHT}z"


def test_a_unit_is_whole_wherever_its_rows_finish(storage):
    shares = 0.5  # its rows are grouped by quarters of a second at first
    units = [Unit("host:1", "concepts", 10 * n - n * 1e-6, 4 * shares, 4) for n in range(1, 12)]
    publish(storage, *tables_of(units))
    assert timeline_of(storage)[1] == {"concepts": len(units)}


def test_a_clock_that_was_set_back_is_clipped_in_the_drawing_alone(storage):
    publish(storage, *tables_of([Unit("host:1", "renders", 0, 100, 1), Unit("host:1", "concepts", 50, 100, 1)]))
    line, _ = timeline_of(storage)
    assert sum(line.lanes[0].trained) + sum(line.lanes[0].rendered) == pytest.approx(200)
    assert line.lanes[0].busy == 1
    assert line.lanes[0].busy_path == f"M0 {HEIGHT}v-{HEIGHT}h{COLUMNS}V{HEIGHT}z"


def test_seconds_below_the_resolution_of_times_are_no_fault(storage):
    publish(storage, *tables_of([Unit("host:1", "renders", 0, 1e-300, 1), Unit("host:2", "renders", 1e6, 1e-13, 1)]))
    line, counted = timeline_of(storage)
    assert (line.workers, counted) == (2, {"renders": 2})
    assert [lane.busy for lane in line.lanes] == [1, 1]
    assert "2 workers were busy" in page_of(storage)


def test_the_least_busy_lanes_are_shown_and_the_others_counted(storage):
    workers = [f"host-{number:03}:1" for number in range(MAX_LANES + 25)]
    publish(storage, *tables_of([Unit(name, "renders", 0, 100 - place, 2) for place, name in enumerate(workers)]))
    page = page_of(storage)
    section = re.search(r'<section id="workers">.*?</section>', page, re.DOTALL)
    assert section is not None
    text = " ".join(Page(section[0]).text.split())
    assert f"The {MAX_LANES} workers with the fewest busy seconds are shown; 25 more were busier." in text
    named = re.findall(r"<title>(host-\d+:1): busy ([\d.]+) %</title>", page)
    assert [name for name, _ in named] == workers[25:]
    mean = sum(100 - place for place in range(len(workers))) / len(workers)
    assert f"{len(workers)} workers were busy 100.0 % of the time from their own first unit" in text
    assert f"and {mean:.1f} % of the whole time shown" in text


def test_each_drawing_has_a_text_in_its_place(storage):
    publish(storage, *tables_of([Unit("host:1", "concepts", 0, 30, 2), Unit("host:1", "renders", 40, 60, 3)]))
    page = page_of(storage)
    assert "1 worker was busy 90.0 % of the time from its first unit of work to its last." in " ".join(page.split())
    assert "<title>host:1: busy 90.0 %</title>" in page
    assert (
        "<desc>30 s training, 60 s rendering, 10 s idle; first unit starts after 0 s, "
        "last unit ends after 100 s</desc>" in page
    )
    assert "all workers" not in page, "one worker is its own sum"


def test_outline_has_one_step_per_change():
    assert outline([0, 0, 1, 1, 0.5, 0], 1) == "M0 40h2v-40h2v20h1v20h1V40z"
    assert outline([1e-9, 7], 1) == "M0 40v-1h1v-39h1V40z"


def test_names_are_found_by_a_hash_of_any_text(storage):
    names = ["", "host:1", "\U0001f9f8" * 300, key("worker")]
    publish(storage, *tables_of([Unit(name, "concepts", 0, 10, 1) for name in names]))
    line, _ = timeline_of(storage)
    assert [lane.name for lane in line.lanes] == sorted(names)
