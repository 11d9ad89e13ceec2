"""Counts of staged outcomes: those of `read_parts`, and each part is read once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.layout import part_lease, part_path, parts_folder
from pipeline.contract.units import Outcome
from pipeline.database.memory import in_memory
from pipeline.runs import staged
from pipeline.runs.parts import PartWriter, read_parts
from pipeline.runs.staged import StagedCounts
from pipeline.storage.objects import Storage, StorageError


def ended(kind, key, status):
    if status == Status.OK:
        return Outcome(kind, key, status, origin=Origin.RENDERED)
    return Outcome(kind, key, status, Code.INTERNAL, "it broke")


def write(storage, lease, sequence, outcomes):
    writer = PartWriter(storage, "r1", lease, clock=lambda: 0.0)
    writer.written = [""] * sequence
    writer.add(outcomes)
    writer.flush()


def listed(storage):
    return [path for path, _ in storage.list(parts_folder("r1"))]


def naive(storage):
    with in_memory() as connection:
        read_parts(connection, storage, "r1")
        rows = connection.execute("SELECT kind, status, count(*) FROM outcomes GROUP BY ALL").fetchall()
    return {f"{name}s": {status: n for kind, status, n in rows if kind == name} for name in ("concept", "render")}


OUTCOMES = st.lists(
    st.builds(ended, st.sampled_from(["concept", "render"]), st.sampled_from("abcdef"), st.sampled_from(list(Status))),
    min_size=1,
    max_size=12,
    unique_by=lambda outcome: (outcome.kind, outcome.key),
)


@settings(max_examples=25)
@given(parts=st.lists(OUTCOMES, min_size=1, max_size=6), split=st.integers(0, 6), merge=st.sampled_from([1, 5, 10**6]))
def test_the_counts_are_those_of_all_parts_however_often_they_are_read(tmp_path_factory, parts, split, merge):
    storage = Storage(str(tmp_path_factory.mktemp("parts")))
    counts = StagedCounts(storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staged, "_ROWS_PER_MERGE", merge)
        for number, outcomes in enumerate(parts):
            write(storage, 1 + number // 2, number % 2, outcomes)
            if number >= split:
                counts.add(listed(storage))
        counts.add(listed(storage))
    assert counts.statuses() == naive(storage)
    for lease in (1, 2, 3):
        own = [row for part in parts[2 * lease - 2 : 2 * lease] for row in part]
        assert counts.rows(lease, "renders") == sum(row.kind == "render" for row in own)


def test_a_part_is_read_once(tmp_path):
    storage, counts = Storage(str(tmp_path)), StagedCounts(Storage(str(tmp_path)))
    write(storage, 1, 0, [ended("render", "a", Status.OK)])
    counts.add(listed(storage))
    (tmp_path / part_path("r1", 1, 0)).write_bytes(b"no parquet any more")
    write(storage, 1, 1, [ended("render", "b", Status.FAILED)])
    counts.add(listed(storage))
    assert counts.statuses() == {"concepts": {}, "renders": {"ok": 1, "failed": 1}}
    with pytest.raises(StorageError, match="cannot be read"):
        StagedCounts(storage).add(listed(storage))


def test_the_lease_of_a_part_is_in_its_path():
    assert part_lease(part_path("r1", 12, 3)) == 12
    assert part_lease("runs/r1/parts/other.parquet") == 0
