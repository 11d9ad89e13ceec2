"""Columns that change from night to night, as four readers see the tables; names and roots that look like ours."""

import ast
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion_ops.config import SamplingConfig, TrainingConfig
from pipeline.contract import kinds
from pipeline.contract.errors import ManifestError
from pipeline.contract.schemas import CONCEPTS, RENDERS, RESERVED_COLUMNS
from pipeline.database.plandb import PlanDB
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits
from pipeline.manifest.concepts import load_concepts
from pipeline.manifest.prompts import load_prompts
from pipeline.plan.changes import find_changes
from pipeline.plan.done import list_objects, load_done
from pipeline.plan.expand import plan_concepts, plan_requests
from pipeline.plan.workqueue import WorkQueue
from pipeline.runs.parts import PartWriter
from pipeline.storage.objects import Storage
from pipeline.tables.columns import carried_columns
from pipeline.tables.publish import publish
from pipeline.tables.views import connect, query
from tests.support.plans import concept, made, planned
from tests.support.readers import READERS

# A shop's export on three nights: `brand` is added on the second and missing on the third.
NIGHTS = (
    {"article": "7", "price": "12"},
    {"article": "8", "price": "12.5", "brand": "acme"},
    {"article": "007A", "price": "13"},
)


def work(db, storage, run_id):
    """Do all of a plan's work without a worker."""
    list_objects(db, storage)
    load_done(db, storage)
    queue = WorkQueue(db, group_size=64, render_batch=64)
    writer = PartWriter(storage, run_id, 1, clock=lambda: 0.0)
    while unit := queue.next():
        rows = made(storage, unit)
        writer.add(rows)
        writer.add(queue.record(rows))
    writer.flush()


def night(storage, folder, number, cells, products):
    """One night's run: CSV manifests as a shop writes them, planned and published; returns what is said of columns."""
    names = ["concept_id", "superclass", "images", *cells]
    rows = [",".join([f"product-{product}", "mug", "mug.png", *cells.values()]) for product in range(products)]
    (folder / "concepts.csv").write_text("\n".join([",".join(names), *rows]) + "\n")
    (folder / "prompts.csv").write_text(f"prompt,seed\na photo of a {{product}},{number}\n")
    with PlanDB(memory_limit="200MB", threads=2) as db:
        load_concepts(
            db, str(folder / "concepts.csv"), storage=storage, limits=InputLimits(), cache=InputCache(storage)
        )
        load_prompts(db, str(folder / "prompts.csv"))
        plan_concepts(db, base_digest="base", metric_key="metric", training=TrainingConfig())
        plan_requests(db, base_digest="base", sampling=SamplingConfig(), seed=0)
        work(db, storage, f"run-{number}")
        _, notices = carried_columns(db, storage, kinds.RENDERS)
        date = f"2026-01-0{number}"
        publish(db, storage, run_id=f"run-{number}", run_date=date, base="mini", base_digest="base")
        assert carried_columns(db, storage, kinds.RENDERS)[1] == tuple(each for each in notices if "widens" not in each)
    return notices


@pytest.fixture
def shop(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "mug.png")
    return tmp_path


FORWARD = {
    "run-1": {"article": 7, "article__varchar": None, "price": 12.0, "brand": None},
    "run-2": {"article": 8, "article__varchar": None, "price": 12.5, "brand": "acme"},
    "run-3": {"article": None, "article__varchar": "007A", "price": 13.0, "brand": None},
}
BACKWARD = {
    "run-1": {"article": "007A", "price": 13.0, "brand": None},
    "run-2": {"article": "8", "price": 12.5, "brand": "acme"},
    "run-3": {"article": "7", "price": 12.0, "brand": None},
}


@pytest.mark.parametrize("products", [2, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize(("nights", "expected"), [(NIGHTS, FORWARD), (NIGHTS[::-1], BACKWARD)], ids=["forward", "back"])
def test_three_nights_read_alike_by_four_readers(shop, nights, expected, products):
    storage = Storage(str(shop / "root"))
    for number, cells in enumerate(nights, 1):
        said = " ".join(night(storage, shop, number, cells, products))
        assert ("'article__varchar'" in said) == (nights is NIGHTS and number == 3)
        assert ("widens from BIGINT to DOUBLE" in said) == (number == 2)
        for table in ("concepts", "renders"):
            for name, read in READERS.items():
                seen = read(shop / "root" / "tables" / table)
                assert seen.num_rows == products * number, name
                assert seen["run_id"].null_count == seen["concept_id"].null_count == 0
                columns = [column for column in expected["run-1"] if column in seen.column_names]
                assert {*columns} >= {*cells}
                for run, values in list(expected.items())[:number]:
                    rows = seen.filter(pa.compute.equal(seen["run_id"], run)).select(columns).to_pylist()
                    assert len(rows) == products
                    assert all(same(row, values) for row in rows), (name, run, rows[0])
    found = query(storage, "SELECT DISTINCT run_id, article, brand FROM renders ORDER BY run_id").to_pylist()
    assert [(row["article"], row["brand"]) for row in found] == [
        (values["article"], values["brand"]) for values in expected.values()
    ]


def same(row, values):
    """A row's cells; pandas knows no null among numbers."""
    return all((None if value != value else value) == values[name] for name, value in row.items())


def first_files(storage, table):
    return sorted(path for path, _ in storage.list(f"tables/{table}"))


def test_every_version_has_the_columns_of_the_one_before_and_sorts_before_it(shop):
    storage = Storage(str(shop / "root"))
    for number, cells in enumerate(NIGHTS, 1):
        night(storage, shop, number, cells, 1)
    versions = [path for path in first_files(storage, "renders") if "run_id=schema" in path]
    assert versions == first_files(storage, "renders")[: len(versions)]
    assert len(versions) == 3
    names = [pq.read_schema(storage.full(path)).names for path in versions]
    for newer, older in pairwise(names):
        assert newer[: len(older)] == older
    assert all(pq.read_metadata(storage.full(path)).num_rows == 0 for path in versions)


def published(storage, run_id, date, **extras):
    with planned([concept("a", **extras)], [{"prompt": "{product}", "seed": len(run_id)}]) as db:
        work(db, storage, run_id)
        _, notices = carried_columns(db, storage, kinds.CONCEPTS)
        publish(db, storage, run_id=run_id, run_date=date, base="mini", base_digest="base")
        return notices


@pytest.mark.parametrize(
    ("first", "second", "kind", "values"),
    [
        (1, 2.5, "DOUBLE", [1.0, 2.5]),
        (2**53 + 1, 2.5, "BIGINT", [2**53 + 1, None]),  # the first would change as a DOUBLE
        (2.5, 1, "DOUBLE", [2.5, 1.0]),
        (2.5, 2**53 + 1, "DOUBLE", [2.5, None]),
        ("x", 1, "VARCHAR", ["x", "1"]),
        ("x", 1.5, "VARCHAR", ["x", "1.5"]),
        (1, "1", "BIGINT", [1, 1]),
        (1, "01", "BIGINT", [1, None]),
        (True, 1, "BOOLEAN", [True, None]),
        (True, "true", "BOOLEAN", [True, True]),
        (1, True, "BIGINT", [1, 1]),
        ([1], "x", "BIGINT[]", [[1], None]),
        (2.5, "12.00", "DOUBLE", [2.5, 12.0]),
        (2.5, "-0.5", "DOUBLE", [2.5, -0.5]),
        (2.5, "0.1234567890123456789", "DOUBLE", [2.5, None]),
        (2.5, "1E3", "DOUBLE", [2.5, None]),
        (1, "12.00", "DOUBLE", [1.0, 12.0]),
        (2**53 + 1, "12.00", "BIGINT", [2**53 + 1, None]),
        (True, "True", "BOOLEAN", [True, True]),
        (True, "yes", "BOOLEAN", [True, None]),
    ],
)
def test_a_type_stays_widens_or_gets_a_column_beside_it(tmp_path, first, second, kind, values):
    storage = Storage(str(tmp_path))
    published(storage, "r1", "2026-01-01", mark=first)
    notices = published(storage, "run2", "2026-01-02", mark=second)
    with connect(storage) as connection:
        [found] = connection.sql("SELECT mark FROM concepts LIMIT 0").types
        rows = connection.execute("SELECT mark FROM concepts ORDER BY run_date").fetchall()
        beside = [name for name in connection.table("concepts").columns if name.startswith("mark__")]
        assert (str(found), [value for (value,) in rows]) == (kind, values)
        assert len(beside) == (values[1] is None)
        if beside:
            assert connection.execute(f"SELECT {beside[0]} FROM concepts ORDER BY run_date").fetchall()[1] == (second,)
    silent = {("x", 1), ("x", 1.5), (1, "1"), (True, "true"), (1, True), (2.5, 1), (2.5, "-0.5")}
    assert bool(notices) == (repr((first, second)) not in {repr(each) for each in silent})


def test_names_that_differ_by_case_are_one_column(tmp_path):
    storage = Storage(str(tmp_path))
    published(storage, "r1", "2026-01-01", Brand="x")
    assert "'Brand', as in earlier runs" in published(storage, "run2", "2026-01-02", brand="y")[0]
    for name, read in READERS.items():
        assert sorted(read(tmp_path / "tables" / "concepts")["Brand"].to_pylist()) == ["x", "y"], name


def test_a_root_of_before_takes_its_columns_from_its_files(tmp_path):
    storage = Storage(str(tmp_path))
    published(storage, "r1", "2026-01-01", article=7)
    published(storage, "run2", "2026-01-02", article=8, brand="acme")
    for table in ("concepts", "renders"):
        for path in first_files(storage, table):
            if "run_id=schema" in path:
                storage.delete(path)
    published(storage, "night3", "2026-01-03", article="9")
    for name, read in READERS.items():
        rows = read(tmp_path / "tables" / "concepts").sort_by("article")
        assert rows["article"].to_pylist() == [7, 8, 9], name
        assert [each if each == "acme" else None for each in rows["brand"].to_pylist()] == [None, "acme", None], name


def test_a_root_that_an_earlier_version_wrote_is_carried_on(shop):
    """Its CSV had `price` 12.00 and 13.50, `article` 7 and 8, `flag` True and False; all became numbers or booleans."""
    shutil.copytree(Path(__file__).parents[2] / "roots" / "root_of_0_1", shop / "root")
    storage = Storage(str(shop / "root"))
    cells = {"price": "12.00", "article": "007A", "flag": "True", "brand": "acme"}
    said = " ".join(night(storage, shop, 1, cells, 1))
    assert "'article__varchar'" in said
    assert "True becomes true" in said
    for name, read in READERS.items():
        table = read(shop / "root" / "tables" / "concepts")
        rows = table.select(["price", "article", "article__varchar", "flag", "brand"]).sort_by("price").to_pylist()
        wanted = [
            {"price": 12.0, "article": None, "article__varchar": "007A", "flag": True, "brand": "acme"},
            {"price": 12.0, "article": 7, "article__varchar": None, "flag": True, "brand": None},
            {"price": 13.5, "article": 8, "article__varchar": None, "flag": False, "brand": None},
        ]
        found = sorted(rows, key=lambda row: (row["price"], row["brand"] != "acme"))
        assert all(same(row, values) for row, values in zip(found, wanted, strict=True)), name


def test_of_two_runs_at_once_the_second_takes_the_types_of_the_first(tmp_path):
    class Raced(Storage):
        raced = False

        def create(self, path, data):
            if "run_id=schema" in path and "/concepts/" in path and not self.raced:
                self.raced = True
                published(Storage(str(tmp_path)), "other", "2026-01-01", mark="text", more=1)
            return super().create(path, data)

    published(Raced(str(tmp_path)), "mine", "2026-01-01", mark=7)
    for name, read in READERS.items():
        assert sorted(read(tmp_path / "tables" / "concepts")["mark"].to_pylist()) == ["7", "text"], name


def sql_words():
    """Every word of every statement in the package: names that our own SQL might give to something."""
    words = set()
    for path in Path(__file__).parents[3].glob("pipeline/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "SELECT" in node.value.upper():
                words.update(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", node.value))
    known = {word.lower(): word for word in sorted(words) if not word.lower().startswith("_perfusion_")}
    return sorted(word for lower, word in known.items() if lower not in RESERVED_COLUMNS)


VIRTUAL = ["rowid", "filename", "file_row_number", "file_index", "column", "select", 'quo"te', "sp ace", "x.y"]


@pytest.mark.long
def test_columns_may_bear_any_word_of_our_own_statements(tmp_path):
    words = [*sql_words(), *(word for word in VIRTUAL if word not in sql_words())]
    assert {"row", "error_code", "error_message", "age", "place", "uri"} - {*words} <= RESERVED_COLUMNS
    assert len(words) > 200
    half = len(words) // 2
    theirs, prompts_theirs = dict.fromkeys(words[:half], "theirs"), dict.fromkeys(words[half:], "theirs")
    expected = {}
    for name, own, others in (("plain", {}, {}), ("words", theirs, prompts_theirs)):
        storage = Storage(str(tmp_path / name))
        for number in (1, 2):
            prompts = [
                {"prompt": "{product}", "seed": number},
                {"prompt": "{nobody}"},
                {"prompt": "{product} again", "where_expr": "concept_id = 'a'"},
            ]
            concepts = [concept("a", extras=dict(own)), concept("b", extras=dict(own))]
            with planned(concepts, [{**row, "extras": dict(others)} for row in prompts]) as db:
                list_objects(db, storage)
                load_done(db, storage)
                changes = find_changes(db, storage, base_digests=("base", "base"), memory_limit="200MB")
                work(db, storage, f"r{number}")
                date = f"2026-01-0{number}"
                publish(db, storage, run_id=f"r{number}", run_date=date, base="mini", base_digest="base")
        fixed = {"concepts": CONCEPTS.names, "renders": RENDERS.names, "current": RENDERS.names}
        seen = {"changes": changes}
        for view, names in fixed.items():
            columns = ", ".join(name for name in names if name not in ("uri", "finished_at"))
            seen[view] = query(storage, f"SELECT run_id, run_date, {columns} FROM {view} ORDER BY ALL").to_pylist()
        expected[name] = seen
    assert expected["words"] == expected["plain"]
    assert len(expected["plain"]["current"]) > 0
    for view, carried in (("concepts", theirs), ("current", theirs | prompts_theirs)):
        found = query(Storage(str(tmp_path / "words")), f"SELECT * FROM {view}")
        assert {*carried} <= {*found.column_names}
        assert all(value == "theirs" for word in carried for value in found[word].to_pylist() if value is not None)


def test_where_may_use_a_column_of_any_name():
    for word in ("row", "code", "concepts", "good", "age", "k", "c", "e"):
        concepts = [concept("a", extras={word: 1}), concept("b", extras={word: 2})]
        with planned(concepts, [{"prompt": "{product}", "where_expr": f"{word} = 2"}]) as db:
            assert db.connection.execute("SELECT concept_ids, error_code FROM requests").fetchall() == [
                (["b"], None)
            ], word


def test_names_of_the_program_are_refused():
    with pytest.raises(ManifestError, match=r"'_Perfusion_x'.*rename it"):
        planned([concept("a", _Perfusion_x=1)], [{"prompt": "{a}"}])


@pytest.mark.parametrize("above", ["status=live", "run_id=mine", "run_date=never/concept_id=x", "article=1"])
def test_folders_above_the_tables_are_no_columns(tmp_path, above):
    storage = Storage(str(tmp_path / above / "results"))
    published(storage, "r1", "2026-01-01", article=7)
    for view in ("concepts", "renders", "current"):
        rows = query(storage, f"SELECT run_id, run_date::VARCHAR AS day, status, article, concept_id FROM {view}")
        assert rows.to_pylist() == [
            {"run_id": "r1", "day": "2026-01-01", "status": "ok", "article": 7, "concept_id": "a"}
        ]
    # pandas and pyarrow look below the folder that they are given as well.
    for name in ("pandas", "pyarrow"):
        seen = READERS[name](tmp_path / above / "results" / "tables" / "concepts")
        assert seen.select(["run_id", "status", "article"]).to_pylist() == [
            {"run_id": "r1", "status": "ok", "article": 7}
        ]


def test_a_run_is_read_from_its_own_files_alone(tmp_path):
    storage = Storage(str(tmp_path))
    for number in range(5):
        published(storage, f"r{number}", "2026-01-01", mark=number)
    with connect(storage) as connection:
        plan = connection.execute("EXPLAIN SELECT * FROM concepts WHERE run_id = 'r3'").fetchall()[0][1]
    assert "Scanning Files: 1/6" in plan
