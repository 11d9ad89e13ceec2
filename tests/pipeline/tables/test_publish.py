"""Publishing accounts for every row, survives a crash between any two steps, and leaves files that anyone can read."""

import hashlib
import io
import json

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.layout import staged_table_path
from pipeline.contract.schemas import CONCEPTS, RENDERS, SCHEMA_VERSION
from pipeline.plan.done import list_objects, load_done
from pipeline.plan.workqueue import WorkQueue
from pipeline.runs.parts import PartWriter
from pipeline.runs.record import RunRecord
from pipeline.storage.objects import Storage, StorageError
from pipeline.tables.publish import UnaccountedError, publish
from tests.support.plans import concept, made, planned

MANIFEST = [
    concept("a", color="red", size=1),
    concept("b", color="blue", size=2),
    concept("twin", color="green", size=3, images=concept("a")["images"]),
    concept(
        "bad",
        color="grey",
        size=4,
        error_code="image_missing",
        error_column="images",
        error_message="there is no x.png",
    ),
]
PROMPTS = [
    {"prompt": "a {product} here", "tag": "here"},
    {"prompt": "{b} with {a}", "num_images": 2, "tag": "both"},
    {"prompt": "{bad}", "tag": "broken"},
    {"prompt": "a {a} here", "tag": "again"},
]
RUN = {"run_date": "2024-02-29", "base": "mini", "base_digest": "base", "clock": lambda: 2e9}


class CrashError(Exception):
    pass


class Crashing(Storage):
    """Dies before the n-th change of storage, or (`after`) right after it."""

    left: int | None = None
    after = False

    def _step(self, change):
        if self.left is None:
            return change()
        if self.left == 0 and not self.after:
            raise CrashError
        result = change()
        if self.left == 0:
            raise CrashError
        self.left -= 1
        return result

    def write(self, path, data):
        return self._step(lambda: super(Crashing, self).write(path, data))

    def create(self, path, data):
        return self._step(lambda: super(Crashing, self).create(path, data))

    def delete(self, path):
        return self._step(lambda: super(Crashing, self).delete(path))


def run(storage, run_id, *, failing=lambda unit: (), lease=1, manifest=MANIFEST, prompts=PROMPTS):
    """Plan, work and stage; returns the plan, ready to publish."""
    db = planned(manifest, prompts)
    list_objects(db, storage)
    load_done(db, storage)
    queue = WorkQueue(db, group_size=2, render_batch=3)
    writer = PartWriter(storage, run_id, lease, clock=lambda: 0.0)
    while unit := queue.next():
        rows = made(storage, unit, failing=failing(unit))
        writer.add(rows)
        writer.add(queue.record(rows))
    assert not queue.unfinished()
    writer.flush()
    return db


def tables(storage):
    """The published files with rows in them; beside them lie the root's columns, in files without any."""
    return {path: storage.read(path) for path, _ in storage.list("tables") if "/run_id=schema/" not in path}


def rows(storage, table, columns, order="ALL"):
    files = [storage.full(path) for path in tables(storage) if f"/{table}/" in path]
    return duckdb.sql(f"SELECT {columns} FROM read_parquet({files}) ORDER BY {order}").fetchall()


def test_every_row_of_both_manifests(tmp_path):
    storage = Storage(str(tmp_path))
    with run(storage, "r1") as db:
        published = publish(db, storage, run_id="r1", **RUN)
    assert rows(
        storage, "concepts", "manifest_row, concept_id, status, origin, error_code, error_column, images, color"
    ) == [
        (1, "a", "ok", "trained", None, None, 2, "red"),
        (2, "b", "ok", "trained", None, None, 2, "blue"),
        (3, "twin", "ok", "reused", None, None, 2, "green"),
        (4, "bad", "invalid", None, "image_missing", "images", 2, "grey"),
    ]
    columns = "manifest_row, image_index, concept_id, prompt, status, origin, error_code, color, tag"
    assert rows(storage, "renders", columns) == [
        (1, 0, "a", "a {a} here", "ok", "rendered", None, "red", "here"),
        (1, 0, "b", "a {b} here", "ok", "rendered", None, "blue", "here"),
        (1, 0, "twin", "a {twin} here", "ok", "reused", None, "green", "here"),
        (2, 0, "b", "{b} with {a}", "ok", "rendered", None, "blue", "both"),
        (2, 1, "b", "{b} with {a}", "ok", "rendered", None, "blue", "both"),
        (3, 0, "bad", "{bad}", "invalid", None, "concept_invalid", None, "broken"),
        (4, 0, "a", "a {a} here", "ok", "reused", None, "red", "again"),
    ]  # fmt: skip
    # What a run spent is the sum over its rows: two trainings, four pictures.
    assert rows(storage, "concepts", "sum(accelerator_s), sum(attempts)") == [(3.0, 2)]
    assert rows(storage, "renders", "sum(accelerator_s), sum(attempts)") == [(6.0, 4)]
    assert rows(storage, "renders", "count(*)", "1") == [(published.rows("renders"),)]
    assert published.statuses == {"concepts": {"invalid": 1, "ok": 3}, "renders": {"invalid": 1, "ok": 6}}
    assert published.codes == {"concepts": {"image_missing": 1}, "renders": {"concept_invalid": 1}}
    said = storage.read("runs/r1/published.json")
    assert RunRecord(storage, "r1").published() == published
    assert {file["path"]: file["rows"] for file in json.loads(said)["files"]} == {
        "tables/concepts/run_date=2024-02-29/run_id=r1/part-00000.parquet": 4,
        "tables/renders/run_date=2024-02-29/run_id=r1/part-00000.parquet": 7,
    }
    assert sorted(file.path for file in published.files) == sorted(tables(storage))
    assert [path for path, _ in storage.list("runs/r1/publish")] == ["runs/r1/publish/intent.json"]


def test_the_next_run_reuses_what_is_there(tmp_path):
    storage = Storage(str(tmp_path))
    with run(storage, "r1") as db:
        publish(db, storage, run_id="r1", **RUN)
    grown = [*MANIFEST, concept("new", color="red", size=9)]
    with run(storage, "r2", manifest=grown) as db:
        publish(db, storage, run_id="r2", **{**RUN, "run_date": "2024-03-01"})
    assert rows(storage, "concepts", "concept_id, origin, accelerator_s, loss", "run_id, manifest_row")[4:] == [
        ("a", "reused", 0.0, 0.25), ("b", "reused", 0.0, 0.25), ("twin", "reused", 0.0, 0.25), ("bad", None, 0.0, None),
        ("new", "trained", 1.5, 0.25),
    ]  # fmt: skip
    # Four pictures in the first run, a new one in the second; an invalid row has none.
    uris = [uri for (uri,) in rows(storage, "renders", "DISTINCT uri") if uri]
    assert len(uris) == 5
    assert all(storage.exists(uri.removeprefix(f"{storage.root}/")) for uri in uris)
    with planned(grown, PROMPTS) as db:
        list_objects(db, storage)
        load_done(db, storage)
        spent = db.connection.execute("SELECT DISTINCT accelerator_s FROM done").fetchall()
    assert spent == [(1.5,)]


def test_a_failed_concept_takes_its_renders_along_and_a_later_attempt_mends_it(tmp_path):
    storage = Storage(str(tmp_path))

    def break_b(unit):
        return [task.key for task in unit.tasks if getattr(task, "concept_id", "") == "b"]

    with run(storage, "r1", failing=break_b) as db:
        pass
    with run(storage, "r2", failing=break_b) as db:
        publish(db, storage, run_id="r2", **RUN)
    assert rows(storage, "renders", "concept_id, status, error_code, attempts", "manifest_row, concept_id")[:3] == [
        ("a", "ok", None, 0), ("b", "failed", "concept_failed", 0), ("twin", "ok", None, 0),
    ]  # fmt: skip
    causes = set(rows(storage, "renders", "error_code, error_message"))
    assert ("concept_failed", "concept 'b' failed: it broke") in causes
    with run(storage, "r1", lease=2) as db:
        published = publish(db, storage, run_id="r1", **RUN)
    assert published.statuses["renders"] == {"invalid": 1, "ok": 6}
    mine = [row for row in rows(storage, "renders", "run_id, concept_id, origin, accelerator_s") if row[0] == "r1"]
    # Made by the first attempt of this very run: rendered, and paid for by it.
    assert ("r1", "a", "rendered", 1.5) in mine


@pytest.mark.long
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_any_two_steps_changes_nothing(tmp_path, after):
    clean = Storage(str(tmp_path / "clean"))
    with run(clean, "r1") as db:
        publish(db, clean, run_id="r1", **RUN)
    expected = {path: pq.read_table(clean.full(path)).drop_columns(["uri"]) for path in tables(clean)}
    crashes = 0
    while True:
        storage = Crashing(str(tmp_path / f"crash-{crashes}"))
        with run(storage, "r1") as db:
            storage.left, storage.after = crashes, after
            try:
                publish(db, storage, run_id="r1", **RUN)
            except CrashError:
                crashed = True
            else:
                crashed = False
        storage.left = None
        # The next attempt comes another day, plans again and retries; the tables are those that were decided on.
        seen = tables(storage)
        decided = storage.exists("runs/r1/publish/intent.json")
        with run(storage, "r1", lease=2) as db:
            published = publish(db, storage, run_id="r1", **{**RUN, "clock": lambda: 3e9})
        now = tables(storage)
        assert {path: now[path] for path in seen} == seen
        assert sorted(now) == sorted(expected)
        for path, table in expected.items():
            got = pq.read_table(storage.full(path)).drop_columns(["uri"])
            if decided:
                assert got.equals(table)
            else:
                assert got.drop_columns(["finished_at"]).equals(table.drop_columns(["finished_at"]))
        assert RunRecord(storage, "r1").published() == published
        with planned([], []) as db:
            assert publish(db, storage, run_id="r1", **RUN) == published
        assert staged(storage) == []
        if not crashed:
            break
        crashes += 1
    # Two tables' columns, two files staged, intent, two files placed, published.json, two staged files deleted.
    assert crashes == 10


def staged(storage):
    return [path for path, _ in storage.list("runs/r1/publish") if path.endswith(".parquet")]


def test_rows_of_an_attempt_that_was_refused_are_removed_by_the_next(tmp_path):
    storage = Storage(str(tmp_path))
    with planned(MANIFEST, PROMPTS) as db:
        all_is_there(db)
        db.connection.execute("DELETE FROM requests WHERE prompt_row = 3")
        with pytest.raises(UnaccountedError):
            publish(db, storage, run_id="r1", **RUN)
    refused = staged(storage)
    assert refused
    with run(storage, "r1") as db:
        published = publish(db, storage, run_id="r1", **RUN)
    assert {file.sha256 for file in published.files}.isdisjoint(path.rpartition("/")[2][:64] for path in refused)
    assert staged(storage) == []
    assert len(tables(storage)) == 2


def test_another_publisher_was_first(tmp_path):
    storage = Storage(str(tmp_path))

    class Late(Storage):
        def create(self, path, data):
            if path.endswith("intent.json") and not self.exists(path):
                with run(storage, "r1") as other:
                    publish(other, storage, run_id="r1", **{**RUN, "clock": lambda: 5.0})
            return super().create(path, data)

    late = Late(str(tmp_path))
    with run(storage, "r1") as db:
        published = publish(db, late, run_id="r1", **RUN)
    assert RunRecord(storage, "r1").published() == published
    assert len(tables(storage)) == 2


def test_published_files_are_never_overwritten(tmp_path):
    storage = Storage(str(tmp_path))
    path = "tables/concepts/run_date=2024-02-29/run_id=r1/part-00000.parquet"
    sink = io.BytesIO()
    pq.write_table(pa.table({"something": ["else"]}), sink)
    storage.write(path, sink.getvalue())
    with run(storage, "r1") as db, pytest.raises(StorageError, match="never overwritten"):
        publish(db, storage, run_id="r1", **RUN)
    assert storage.read(path) == sink.getvalue()
    assert not storage.exists("runs/r1/published.json")


@pytest.mark.parametrize("table", ["concepts", "renders"])
def test_a_file_of_equal_size_and_other_content_is_no_published_file(tmp_path, table):
    storage = Crashing(str(tmp_path))
    with run(storage, "r1") as db:
        storage.left, storage.after = 4, True  # columns and a staged file of each table; then the intent
        with pytest.raises(CrashError):
            publish(db, storage, run_id="r1", **RUN)
        storage.left = None
        [file] = [each for each in RunRecord(storage, "r1").decided().files if each.table == table]
        data = bytearray(storage.read(staged_table_path("r1", file.sha256)))
        data[len(data) // 2] ^= 1
        storage.write(file.path, bytes(data))
        with pytest.raises(StorageError, match="never overwritten"):
            publish(db, storage, run_id="r1", **RUN)
        assert storage.read(file.path) == data
        assert not storage.exists("runs/r1/published.json")
        storage.delete(file.path)
        publish(db, storage, run_id="r1", **RUN)
        assert hashlib.sha256(storage.read(file.path)).hexdigest() == file.sha256


def test_a_run_that_is_not_over_is_not_published(tmp_path):
    storage = Storage(str(tmp_path))
    with planned(MANIFEST, PROMPTS) as db:
        [(key,)] = db.connection.execute("SELECT min(concept_key) FROM concept_keys").fetchall()
        with pytest.raises(UnaccountedError, match=key):
            publish(db, storage, run_id="r1", **RUN)
    assert tables(storage) == {}


def all_is_there(db):
    """Tens of thousands of rows without as many objects."""
    db.connection.execute("""
        INSERT INTO done SELECT DISTINCT 'concept', concept_key, 'u', 's', 1, 0, 0 FROM concept_keys
        UNION ALL SELECT DISTINCT 'render', render_key, 'u', 's', 1, 0, NULL FROM requests WHERE render_key IS NOT NULL
    """)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "INSERT INTO concept_keys SELECT * FROM concept_keys WHERE row = 1",
            "concepts would have 5 rows for 4 planned",
        ),
        (
            "DELETE FROM requests WHERE prompt_row = 3",
            "renders would have 6 rows for 6 planned and 3 manifest rows for 4",
        ),
    ],
)
def test_rows_that_are_too_many_or_missing_are_not_published(tmp_path, fault, words):
    storage = Storage(str(tmp_path))
    with planned(MANIFEST, PROMPTS) as db:
        all_is_there(db)
        db.connection.execute(fault)
        with pytest.raises(UnaccountedError, match=words):
            publish(db, storage, run_id="r1", **RUN)
    assert tables(storage) == {}


def test_equal_rows_stand_in_the_order_of_the_manifest(tmp_path):
    storage = Storage(str(tmp_path))
    # Those of the product are planned before those that name it.
    prompts = [{"prompt": "{product}" if number % 3 else "{a}", "num_images": 2} for number in range(60)]
    with planned([concept("a")], prompts) as db:
        all_is_there(db)
        publish(db, storage, run_id="r1", rows_per_group=2048, **RUN)
    [table] = [pq.read_table(storage.full(path)) for path in tables(storage) if "/renders/" in path]
    rows = table.select(["render_key", "manifest_row", "image_index"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == sorted(tuple(row.values()) for row in rows)
    assert len({row["render_key"] for row in rows}) == 2
    assert len(rows) == 120


def test_layout_of_a_large_table(tmp_path):
    storage = Storage(str(tmp_path))
    concepts = [concept(f"c{number:03}", color="red") for number in range(100)]
    prompts = [{"prompt": f"{{product}} {number}", "steps": 7, "tag": number} for number in range(350)]
    with planned(concepts, prompts) as db:
        all_is_there(db)
        published = publish(db, storage, run_id="r1", rows_per_group=2048, **RUN)
    files = [file for file in published.files if file.table == "renders"]
    assert [file.rows for file in files] == [16 * 2048, 35_000 - 16 * 2048]
    lowest = ""
    for file in files:
        with pq.ParquetFile(storage.full(file.path)) as parquet:
            meta = parquet.metadata
            schema = parquet.schema_arrow
            groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
            ids = parquet.read(["concept_id"])["concept_id"].to_pylist()
        assert [group.num_rows for group in groups[:-1]] == [2048] * (len(groups) - 1)
        assert ids == sorted(ids)
        assert lowest <= ids[0]
        lowest = ids[-1]
        column = groups[0].column(schema.get_field_index("concept_id"))
        assert column.compression == "ZSTD"
        assert column.has_offset_index
        assert column.has_column_index
        assert column.statistics.has_min_max
        assert [item.column_index for item in groups[0].sorting_columns] == [
            meta.schema.names.index("concept_id"),
            meta.schema.names.index("render_key"),
        ]
        assert schema.metadata[b"perfusion.schema_version"] == str(SCHEMA_VERSION).encode()
        assert schema.metadata[b"perfusion.run_id"] == b"r1"
        assert schema.names == [*RENDERS.names, "color", "tag"]
        assert schema.field("finished_at").type == pa.timestamp("us", "UTC")


def test_plain_readers_see_one_table(tmp_path):
    storage = Storage(str(tmp_path))
    for run_id, date in (("r1", "2024-02-29"), ("r2", "2024-03-01")):
        with run(storage, run_id) as db:
            publish(db, storage, run_id=run_id, **{**RUN, "run_date": date})
    found = duckdb.sql(
        f"SELECT run_id, run_date::VARCHAR, count(*) FROM '{tmp_path}/tables/renders/**/*.parquet' "
        "GROUP BY ALL ORDER BY 1"
    ).fetchall()
    assert found == [("r1", "2024-02-29", 7), ("r2", "2024-03-01", 7)]
    table = pq.read_table(f"{tmp_path}/tables/concepts")
    assert table.num_rows == 8
    assert set(table["run_id"].to_pylist()) == {"r1", "r2"}
    assert set(CONCEPTS.names) | {"run_id", "run_date", "color", "size"} == set(table.column_names)
