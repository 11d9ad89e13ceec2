"""Parts are added and never overwritten, survive failures of storage, and the right outcome of a key wins."""

from dataclasses import asdict, replace

import duckdb
import pytest

from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.layout import image_path, part_path, weights_path
from pipeline.contract.units import Outcome
from pipeline.plan.done import list_objects, load_done
from pipeline.plan.expand import count_plan
from pipeline.plan.workqueue import WorkQueue
from pipeline.runs.parts import PartWriter, read_parts
from pipeline.storage.objects import Storage, StorageError
from tests.support.plans import concept, made, planned


def ok(key: str, **fields) -> Outcome:
    return Outcome("render", key, Status.OK, origin=Origin.RENDERED, bytes=3, **fields)


def failed(key: str) -> Outcome:
    return Outcome("render", key, Status.FAILED, Code.TIMED_OUT, "it took too long: ü'\n", loss=None)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Unsteady(Storage):
    """Loses the request, or (`late`) only its answer, of the next `failures` creations."""

    failures = 0
    late = False

    def create(self, path: str, data: bytes) -> bool:
        if self.failures:
            self.failures -= 1
            if self.late:
                super().create(path, data)
            raise StorageError("the network is gone")
        return super().create(path, data)


def outcomes(storage, run_id="run"):
    with duckdb.connect() as connection:
        read_parts(connection, storage, run_id)
        rows = connection.execute("SELECT * FROM outcomes ORDER BY key").fetchall()
        names = [column[0] for column in connection.description]
    return [dict(zip(names, row, strict=True)) for row in rows]


def paths(storage):
    return sorted(path for path, _ in storage.list("runs"))


def test_every_field_comes_back(tmp_path):
    storage = Storage(str(tmp_path))
    sent = [
        failed("a"),
        ok("b", uri="s3://x", sha256="d", accelerator_s=0.1, batch=4, worker="w", finished_at=1.5, loss=2.0),
    ]
    writer = PartWriter(storage, "run", 1, clock=Clock())
    writer.add(sent)
    assert paths(storage) == []
    writer.flush()
    writer.flush()
    assert paths(storage) == [part_path("run", 1, 0)]
    assert outcomes(storage) == [asdict(outcome) for outcome in sent]


def test_a_part_is_due_by_rows_or_by_age(tmp_path):
    storage, clock = Storage(str(tmp_path)), Clock()
    writer = PartWriter(storage, "run", 1, rows_per_part=3, seconds_per_part=60, clock=clock)
    writer.add([ok("a"), ok("b")])
    clock.now += 59
    writer.add([])
    assert paths(storage) == []
    clock.now += 1
    writer.add([])
    assert len(paths(storage)) == 1
    clock.now += 1000
    writer.add([])
    writer.add([ok("c"), ok("d")])
    assert len(paths(storage)) == 1
    writer.add([ok("e")])
    assert len(paths(storage)) == 2
    assert [row["key"] for row in outcomes(storage)] == list("abcde")


@pytest.mark.parametrize("late", [False, True])
def test_a_failed_flush_loses_nothing(tmp_path, late):
    storage = Unsteady(str(tmp_path))
    writer = PartWriter(storage, "run", 1, clock=Clock())
    writer.add([ok("a")])
    storage.failures, storage.late = 2, late
    for _ in range(2):
        with pytest.raises(StorageError, match="network"):
            writer.flush()
        writer.add([ok("b")])
    writer.flush()
    assert [row["key"] for row in outcomes(storage)] == ["a", "b"]


def test_two_attempts_under_one_lease_are_refused(tmp_path):
    storage = Storage(str(tmp_path))
    for outcome, refused in ((ok("a"), False), (failed("a"), True)):
        writer = PartWriter(storage, "run", 1, clock=Clock())
        writer.add([outcome])
        if refused:
            with pytest.raises(StorageError, match="same lease"):
                writer.flush()
        else:
            writer.flush()
    assert [row["status"] for row in outcomes(storage)] == ["ok"]


def test_ok_wins_then_the_later_lease_then_the_later_part(tmp_path):
    storage = Storage(str(tmp_path))
    written = [
        (2, [ok("a", worker="2"), ok("b", worker="2"), failed("c")]),
        (10, [failed("a"), ok("b", worker="10"), replace(failed("c"), message="later"), ok("d", worker="0")]),
        (1, [ok("b", worker="1"), ok("e", worker="1")]),
    ]
    for lease, rows in written:
        writer = PartWriter(storage, "run", lease, clock=Clock())
        writer.add(rows)
        writer.flush()
        writer.add([replace(row, worker="last") for row in rows if row.key == "d"])
        writer.flush()
    other = PartWriter(storage, "run2", 99, clock=Clock())
    other.add([ok("z")])
    other.flush()
    got = outcomes(storage)
    assert [(row["key"], row["status"], row["worker"]) for row in got] == [
        ("a", "ok", "2"), ("b", "ok", "10"), ("c", "failed", None), ("d", "ok", "last"), ("e", "ok", "1"),
    ]  # fmt: skip
    assert got[2]["message"] == "later"


def test_a_damaged_part_is_an_error_that_names_it(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write(part_path("run", 1, 0), b"PAR1 not really")
    with pytest.raises(StorageError, match=r"000001-000000\.parquet cannot be read"):
        outcomes(storage)
    assert outcomes(storage, "other") == []


def test_only_objects_that_are_there_are_done(tmp_path):
    storage = Storage(str(tmp_path))
    with planned([concept(name) for name in "abcd"], [{"prompt": "{product}"}]) as db:
        queue = WorkQueue(db, group_size=4, render_batch=4)
        writer = PartWriter(storage, "run", 1, clock=Clock())
        while unit := queue.next():
            rows = made(storage, unit)
            queue.record(rows)
            writer.add(rows)
        list_objects(db, storage)
        assert load_done(db, storage) == 0
        writer.flush()
        list_objects(db, storage)
        assert load_done(db, storage) == 8
        assert (count_plan(db).concepts.reused, count_plan(db).renders.to_do) == (4, 0)
        [(uri, digest, size)] = db.connection.execute(
            "SELECT uri, sha256, bytes FROM done WHERE key = (SELECT min(key) FROM done WHERE kind = 'render')"
        ).fetchall()
        keys = sorted(key for (key,) in db.connection.execute("SELECT render_key FROM requests").fetchall())
        assert (uri, size) == (storage.uri(image_path(keys[0])), storage.size(image_path(keys[0])))
        assert len(digest) == 64
        storage.delete(image_path(keys[0]))
        storage.write(image_path(keys[1]), b"cut")
        storage.write("images/zz/stray.png", b"x")
        [(first,)] = db.connection.execute("SELECT min(concept_key) FROM concept_keys").fetchall()
        storage.delete(weights_path(first))
        list_objects(db, storage)
        assert load_done(db, storage) == 5
        counted = count_plan(db)
    assert (counted.renders.reused, counted.renders.to_do) == (2, 2)
    assert (counted.concepts.reused, counted.concepts.keys_to_do) == (3, 1)
