"""The views: every row of every run, what stands now, and honest emptiness; on local disk and elsewhere."""

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.layout import table_path
from pipeline.contract.schemas import CONCEPTS, RENDERS
from pipeline.plan.done import list_objects, load_done
from pipeline.plan.workqueue import WorkQueue
from pipeline.runs.parts import PartWriter
from pipeline.storage.objects import Storage
from pipeline.tables.publish import publish
from pipeline.tables.views import connect, query
from tests.support.plans import concept, made, planned


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    if request.param == "memory":
        yield (found := Storage(f"memory://views-{tmp_path.name}"))
        found.filesystem.rm(found.full("tables"), recursive=True) if found.filesystem.exists(
            found.full("tables")
        ) else None
    else:
        yield Storage(str(tmp_path / "it's [a] strange*root"))


def published_run(
    storage, run_id, date, prompts, *, concepts=("a", "b"), failing=lambda task: False, now=2e9, **extras
):
    with planned([concept(name, **extras) for name in concepts], prompts) as db:
        list_objects(db, storage)
        load_done(db, storage)
        queue = WorkQueue(db, group_size=4, render_batch=4)
        writer = PartWriter(storage, run_id, 1, clock=lambda: 0.0)
        while unit := queue.next():
            rows = made(storage, unit, failing=[task.key for task in unit.tasks if failing and failing(task)])
            writer.add(rows)
            writer.add(queue.record(rows))
        writer.flush()
        publish(db, storage, run_id=run_id, run_date=date, base="mini", base_digest="base", clock=lambda: now)


def test_nothing_published_is_empty_and_typed(storage):
    for table, schema in (("concepts", CONCEPTS), ("renders", RENDERS), ("current", RENDERS)):
        found = query(storage, f"SELECT * FROM {table}")
        assert found.num_rows == 0
        assert set(found.column_names) == {*schema.names, "run_id", "run_date"}
        assert found.schema.field("accelerator_s").type == pa.float64()
        assert found.schema.field("run_date").type == pa.date32()


def test_all_runs_and_columns(storage):
    published_run(storage, "1", "2024-02-01", [{"prompt": "{product}"}], color="red")
    published_run(storage, "2", "2024-02-02", [{"prompt": "{a}", "tag": "t"}], season="winter")
    found = query(storage, "SELECT run_id, run_date, concept_id, color, season, tag FROM renders ORDER BY ALL")
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("1", dt.date(2024, 2, 1), "a", "red", None, None),
        ("1", dt.date(2024, 2, 1), "b", "red", None, None),
        ("2", dt.date(2024, 2, 2), "a", None, "winter", "t"),
    ]
    assert query(storage, "SELECT count(*) AS n FROM concepts WHERE run_id = ?", ["1"])["n"].to_pylist() == [2]


def test_current_is_what_a_shop_would_show(storage):
    here = {"prompt": "{a} here"}
    published_run(storage, "r1", "2024-02-01", [here, {"prompt": "{b} old"}, {"prompt": "{a} banner", "width": 640}])
    second = [
        {**here, "bias": 0.5},
        {"prompt": "{b} old", "bias": 0.5},
        {"prompt": "{a} seeds", "seed": 1},
        {"prompt": "{a} seeds", "seed": 2},
        {"prompt": "{a} seeds", "seed": 2},
        {"prompt": "{a} banner", "width": 320},
    ]
    published_run(storage, "r0", "2024-02-02", second, failing=lambda task: "old" in getattr(task, "prompt", ""))
    found = query(
        storage, "SELECT run_id, prompt, seed, width, bias FROM current ORDER BY prompt, width, seed"
    ).to_pylist()
    assert [(row["run_id"], row["prompt"], row["width"]) for row in found] == [
        ("r0", "{a} banner", 320),
        ("r1", "{a} banner", 640),
        ("r0", "{a} here", None),
        ("r0", "{a} seeds", None),
        ("r0", "{a} seeds", None),
        ("r1", "{b} old", None),  # the newer one failed
    ]
    assert [row["seed"] for row in found[3:5]] == [1, 2]


def test_of_two_runs_on_one_day_the_later_stands(storage):
    published_run(storage, "z", "2024-02-01", [{"prompt": "{a}", "bias": 0.1}], now=2e9)
    published_run(storage, "a", "2024-02-01", [{"prompt": "{a}", "bias": 0.1}], now=2.1e9)
    assert query(storage, "SELECT run_id FROM current")["run_id"].to_pylist() == ["a"]


def test_a_file_of_an_older_schema_is_read_with_nulls(tmp_path):
    storage = Storage(str(tmp_path))
    published_run(storage, "r1", "2024-02-01", [{"prompt": "{product}"}])
    path = table_path("renders", "2024-02-01", "r1")
    old = pq.read_table(storage.full(path)).drop_columns(["worker", "temperature"])
    older = table_path("renders", "2023-02-01", "r0")
    storage.write(older, b"")
    pq.write_table(old, storage.full(older))
    found = query(storage, "SELECT run_id, worker IS NULL AS lacks FROM renders ORDER BY 1")
    assert found["run_id"].to_pylist() == ["r0", "r0", "r1", "r1"]
    assert found["lacks"].to_pylist() == [True, True, False, False]


def test_a_view_is_a_snapshot_and_closes(storage):
    published_run(storage, "r1", "2024-02-01", [{"prompt": "{product}"}])
    with connect(storage) as connection:
        assert connection.execute("SELECT count(*) FROM current").fetchall() == [(2,)]
