"""Publishing within a small memory limit: every shape of catalogue and origin of outcomes, compared row by row."""

import io
from dataclasses import dataclass

import duckdb
import pyarrow.parquet as pq
import pytest

from perfusion_ops.config import SamplingConfig, TrainingConfig
from pipeline.contract.layout import part_path
from pipeline.contract.schemas import PART, conform
from pipeline.database.memory import MemoryFullError, ScratchFullError, in_memory, retried
from pipeline.database.plandb import EXTRA_ROW, PlanDB, Stage
from pipeline.plan.expand import count_plan, plan_concepts, plan_requests
from pipeline.storage.objects import Storage
from pipeline.tables.publish import publish

LIMIT = "64MB"
RUN = {"run_id": "run", "run_date": "2026-01-01", "base": "mini", "base_digest": "base", "clock": lambda: 2e9}


@dataclass(frozen=True)
class Shape:
    """Rows of both manifests; `alike` concepts have equal content, `named` prompts name one concept."""

    concepts: int
    prompts: int
    characters: int = 10
    extras: int = 1
    alike: bool = False
    named: int = 0


SHAPES = {
    "many-concepts": Shape(5_000, 3),
    "many-prompts": Shape(3, 5_000),
    "one-concept": Shape(1, 15_000),
    "long-prompts": Shape(20, 500, characters=2000),
    "wide": Shape(500, 20, extras=20),
    "repeats": Shape(100, 100, alike=True, named=3000),
}
# For every key: whether it is in `done`, in parts, and whether its part says that it failed; by a digit of its hash.
ORIGINS = {
    "parts": ("false", "true", "false"),
    "done": ("true", "false", "false"),
    "both": ("true", "true", "false"),
    "mixed": ("digit >= 3", "digit < 3", "false"),
    "failures": ("digit < 10", "digit >= 5", "digit % 2 = 0"),
}


def filled(db, shape):
    """Manifests with rows in random order, planned."""
    fill = db.connection.execute
    picture = "range // 2" if shape.alike else "range"
    fill(f"""
        INSERT INTO concepts BY NAME SELECT range + 1 AS row, 'c' || (range * 7919) % 1000003 AS concept_id,
            'mug' AS superclass, [{{'uri': 'm', 'sha256': sha256('photo ' || {picture})}}] AS images,
            CASE WHEN range = 5 THEN 'image_missing' END AS error_code,
            CASE WHEN range = 5 THEN 'images' END AS error_column,
            CASE WHEN range = 5 THEN 'no x.png' END AS error_message
        FROM range({shape.concepts})""")
    fill(f"""
        INSERT INTO prompts BY NAME SELECT range + 1 AS row,
            'a {{product}} ' || range || repeat('x', {shape.characters}) AS prompt FROM range({shape.prompts})""")
    fill(f"""
        INSERT INTO prompts BY NAME SELECT {shape.prompts} + range + 1 AS row, 'one {{c7919}}' AS prompt,
            range % 7 AS seed FROM range({shape.named})""")
    fill("INSERT INTO prompts BY NAME SELECT max(row) + 1 AS row, 'of {{nobody}}' AS prompt FROM prompts")
    for manifest in ("concepts", "prompts"):
        columns = "".join(
            f", repeat('{manifest} ' || row || ' {number} ', 3) AS {manifest}_{number}"
            for number in range(shape.extras)
        )
        fill(f"CREATE TABLE {manifest}_extra AS SELECT row AS {EXTRA_ROW}{columns} FROM {manifest}")
    plan_concepts(db, base_digest="base", metric_key="metric", training=TrainingConfig())
    plan_requests(db, base_digest="base", sampling=SamplingConfig(), seed=0)


def outcomes(db, storage, origin):
    """Put the outcome of every key where the origin says."""
    done, parts, failed = ORIGINS[origin]
    keys = """(
        SELECT DISTINCT 'concept' AS kind, concept_key AS key, hash(concept_key) % 100 AS digit FROM concept_keys
        UNION ALL SELECT DISTINCT 'render', render_key, hash(render_key) % 100 FROM requests
        WHERE render_key IS NOT NULL)"""
    db.connection.execute(f"""
        INSERT INTO done SELECT kind, key, 'memory://done/' || key, sha256(key), 1000, 0.5, 0.25
        FROM {keys} WHERE {done}""")
    db.mark_filled(Stage.DONE)
    made = db.connection.sql(f"""
        SELECT kind, key, CASE WHEN {failed} THEN 'failed' ELSE 'ok' END AS status,
            CASE WHEN {failed} THEN 'internal' END AS code,
            CASE WHEN {failed} THEN 'broke ' || digit END AS message,
            2 AS attempts,
            CASE WHEN {failed} THEN NULL WHEN kind = 'render' THEN 'rendered' ELSE 'trained' END AS origin,
            CASE WHEN NOT {failed} THEN 'memory://part/' || key END AS uri, sha256(key) AS sha256,
            100 + digit AS bytes, 0.125 AS accelerator_s, 16 AS batch,
            'w' || digit AS worker, 1e9 + digit AS finished_at
        FROM {keys} WHERE {parts}""").to_arrow_table()
    for lease, rows in ((1, made), (2, made[: len(made) // 10])):
        sink = io.BytesIO()
        pq.write_table(conform(rows, PART), sink)
        storage.write(part_path("run", lease, 0), sink.getvalue())
    return {(row["kind"], row["key"]): row for row in conform(made, PART).to_pylist()}


def rows_of(db, sql):
    """Rows as Python's own."""
    return db.connection.sql(sql).to_arrow_table().to_pylist()


def expected(db, made, table):
    """The table as a loop over Python's own lists makes it."""
    done = {(row["kind"], row["key"]): row for row in rows_of(db, "FROM done")}
    extras = {
        name: {row.pop(EXTRA_ROW): row for row in rows_of(db, f"FROM {name}_extra")} for name in ("concepts", "prompts")
    }
    kind, key = ("concept", "concept_key") if table == "concepts" else ("render", "render_key")
    if table == "concepts":
        keys = {row["row"]: row["concept_key"] for row in rows_of(db, "FROM concept_keys")}
        asked = [
            {**row, "manifest_row": row["row"], "concept_key": keys.get(row["row"]), "images": len(row["images"]),
             "image_index": 0, "extra": extras["concepts"][row["row"]]}
            for row in rows_of(db, "FROM concepts")
        ]  # fmt: skip
    else:
        places = {row["concept_id"]: row["row"] for row in rows_of(db, "FROM concept_keys")}
        nothing = dict.fromkeys(next(iter(extras["concepts"].values())))
        asked = [
            {**row, "manifest_row": row["prompt_row"], "concept_id": (row["concept_ids"] or [None])[0], "extra":
             extras["concepts"].get(places.get((row["concept_ids"] or [None])[0]), nothing)
             | extras["prompts"][row["prompt_row"]]}
            for row in rows_of(db, "SELECT *, rowid AS row FROM requests")
        ]  # fmt: skip
    asked.sort(
        key=lambda row: (row["concept_id"] is None, row["concept_id"], row[key] is None, row[key] or "",
                         row["manifest_row"], row["image_index"])
    )  # fmt: skip
    first = {}
    for row in sorted(asked, key=lambda row: (row["manifest_row"], row["image_index"], row["row"])):
        first.setdefault(row[key], row)
    for row in asked:
        which = (kind, row[key])
        found = made.get(which, {})
        if found.get("status") != "ok" and which in done:
            found = {"status": "ok", "attempts": 0, "origin": "reused", **done[which], "accelerator_s": 0.0}
        again = row[key] is not None and first[row[key]] is not row
        spent = 0.0 if again else found.get("accelerator_s", 0.0)
        repeated = again and found.get("status") == "ok"
        yield {
            **{name: row.get(name) for name in ("manifest_row", "concept_id", key, "prompt", "images", "seed")},
            "status": "invalid" if row["error_code"] else found.get("status"),
            "error_code": row["error_code"] or found.get("code"), "error_column": row["error_column"],
            "error_message": row["error_message"] or found.get("message"),
            "attempts": 0 if repeated else found.get("attempts", 0),
            "origin": "reused" if repeated else found.get("origin"),
            **{name: found.get(name) for name in ("uri", "sha256", "bytes", "batch", "worker")},
            "accelerator_s": spent, "finished": found.get("finished_at") or 2e9, **row["extra"],
        }  # fmt: skip


# `make test` has every shape and every origin, and `make test-long` the other pairs.
@pytest.mark.parametrize(
    ("shape", "origin"),
    [
        pytest.param(shape, origin, marks=[] if shape == "one-concept" or origin == "mixed" else [pytest.mark.long])
        for shape in SHAPES
        for origin in ORIGINS
    ],
)
def test_published_within_little_memory(tmp_path, shape, origin):
    storage = Storage(str(tmp_path))
    with PlanDB(memory_limit="1GB", threads=2) as db:
        filled(db, SHAPES[shape])
        made = outcomes(db, storage, origin)
        db.connection.execute(f"SET memory_limit = '{LIMIT}'")
        db.memory_limit = LIMIT
        published = publish(db, storage, **RUN)
        db.connection.execute("SET memory_limit = '1GB'")
        for table in ("concepts", "renders"):
            want = list(expected(db, made, table))
            got = [row for file in published.files if file.table == table
                   for row in pq.read_table(storage.full(file.path), partitioning=None).to_pylist()]  # fmt: skip
            for row in got:
                row["finished"] = row["finished_at"].timestamp()
            names = [name for name in want[0] if got and name in got[0]]
            assert len(got) == len(want)
            assert [{name: row[name] for name in names} for row in got] == [
                {name: row[name] for name in names} for row in want
            ]


@pytest.mark.long
@pytest.mark.parametrize("shape", [Shape(1000, 100), Shape(1, 100_000)], ids=["catalogue", "one-concept"])
def test_a_resumed_run_of_a_hundred_thousand(tmp_path, shape):
    storage = Storage(str(tmp_path))
    with PlanDB(memory_limit="1GB", threads=2) as db:
        filled(db, shape)
        outcomes(db, storage, "both")
        db.connection.execute(f"SET memory_limit = '{LIMIT}'")
        db.memory_limit = LIMIT
        good = shape.concepts - (shape.concepts > 5)
        assert count_plan(db).renders.to_do == 0
        published = publish(db, storage, **RUN)
    assert published.statuses["concepts"].get("ok") == good
    assert published.statuses["renders"] == {"invalid": 1, "ok": good * shape.prompts}
    keys = [(row["concept_id"], row["render_key"]) for file in published.files if file.table == "renders"
            for row in pq.read_table(storage.full(file.path), columns=["concept_id", "render_key"],
                                     partitioning=None).to_pylist()[: -1 if file.rows else 0]]  # fmt: skip
    assert keys == sorted(keys)


def test_too_little_memory_is_a_message(tmp_path):
    with (  # noqa: PT012 - the error is raised when the plan is closed
        pytest.raises(MemoryFullError, match=r"engine\.plan_memory = 2MB: set engine\.plan_memory to 4MB"),
        PlanDB(memory_limit="1GB", threads=4) as db,
    ):
        filled(db, Shape(1000, 20))
        db.mark_filled(Stage.DONE)  # nothing exists yet
        db.memory_limit = "2MB"
        db.connection.execute("SET memory_limit = '2MB'")
        publish(db, Storage(str(tmp_path)), **RUN)


def test_fewer_threads_before_giving_up():
    tried = []

    @retried
    def step(db, enough):
        [(threads,)] = db.connection.execute("SELECT current_setting('threads')").fetchall()
        tried.append(threads)
        if threads > enough:
            raise duckdb.OutOfMemoryException("Out of Memory Error: failed to pin block")
        return threads

    with PlanDB(threads=8) as db:
        assert step(db, 2) == 2
        assert db.connection.execute("SELECT current_setting('threads')").fetchall() == [(8,)]
        with pytest.raises(duckdb.OutOfMemoryException):
            step(db, 0)
    assert tried == [8, 4, 2, 8, 4, 2, 1]


def test_a_full_scratch_disk_is_a_message_that_names_it(tmp_path):
    full = (
        duckdb.OutOfMemoryException("failed to offload data block: limit was set by 'max_temp_directory_size'"),
        duckdb.IOException("Could not write file: No space left on device"),
    )
    for error in full:
        told = pytest.raises(ScratchFullError, match=f"scratch folder {tmp_path}/perfusion-plan-")
        with told, PlanDB(scratch=str(tmp_path)):
            raise error


def test_too_little_memory_for_reading_tables_is_a_message_and_other_errors_stay():
    told = pytest.raises(MemoryFullError, match="ran out of memory while it read the tables: free memory")
    with told, in_memory({"memory_limit": "4MB", "max_temp_directory_size": "0MB"}) as connection:
        connection.execute("SELECT hash(i) AS h FROM range(3_000_000) t(i) ORDER BY h").fetchall()
    with pytest.raises(duckdb.ParserException), in_memory() as connection:
        connection.execute("SELEC 1")


def test_a_full_disk_while_reading_tables_is_a_message_that_names_the_folder(tmp_path):
    told = pytest.raises(ScratchFullError, match=f"scratch folder {tmp_path} is full")
    with told, in_memory({"temp_directory": str(tmp_path)}):
        raise duckdb.IOException("Could not write file: No space left on device")
