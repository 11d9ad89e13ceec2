"""A file of points is read in every format, and refused as a whole if one of its rows is wrong."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB
from pipeline.manifest.points import load_points
from tests.support.plans import concept, fill

ROWS = [
    {"concept_id": "mug-1", "guidance": 4.5, "strength": 1.25, "bias": None, "lock": "global"},
    {"concept_id": "mug-2", "guidance": 3, "strength": None, "bias": 0.5, "lock": None},
]


@pytest.fixture
def db():
    with PlanDB(memory_limit="200MB", threads=1) as db:
        fill(db, "concepts", [concept("mug-1"), concept("mug-2")])
        yield db


def written(folder, kind, rows):
    path = folder / f"points.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        names = list(rows[0])
        lines = [",".join("" if row.get(name) is None else str(row[name]) for name in names) for row in rows]
        path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_every_format(db, tmp_path, kind):
    found = load_points(db, written(tmp_path, kind, ROWS))
    assert (found.rows, found.notices) == (2, ())
    rows = db.connection.execute("FROM points ORDER BY concept_id").fetchall()
    assert rows == [("mug-1", 4.5, 1.25, None, None, "global"), ("mug-2", 3.0, None, 0.5, None, None)]
    other = load_points(db, written(tmp_path, kind, ROWS[:1]))
    assert other.digest != found.digest
    assert db.connection.execute("SELECT count(*) FROM points").fetchall() == [(1,)], "the table is filled again"


def test_evidence_is_not_read(db, tmp_path):
    rows = [{"concept_id": "mug-1", "guidance": 3.0, "text_similarity": 9.0, "renders": 4, "select": "knee"}]
    assert load_points(db, written(tmp_path, "parquet", rows)).rows == 1


def test_points_of_other_concepts_are_a_notice(db, tmp_path):
    uri = written(tmp_path, "csv", [*ROWS, {"concept_id": "bag-9", "guidance": 3}, {"concept_id": "bag-8"}])
    assert load_points(db, uri).notices == (
        f"{uri}: 2 points are of concepts that the concepts manifest does not have, such as 'bag-8': "
        "they change nothing",
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"concept_id": "mug-1", "guidence": 3}],
            "has the column 'guidence': a file of points has concept_id and any",
        ),
        ([{"guidance": 3}], "row 1 of .*: concept_id has no value: fill it in"),
        ([*ROWS, {"concept_id": "mug-1"}], "row 3 of .* is a second point of 'mug-1': remove one of them"),
        ([{"concept_id": "mug-1", "guidance": 99}], "row 1 of .*: guidance is 99.*: it must lie between 0 and 50"),
        ([{"concept_id": "mug 1"}], "row 1 of .*: concept_id is 'mug 1': use 1 to 128 letters"),
        ([{"concept_id": None, "guidance": 3}], "row 1 of .*: concept_id has no value: fill it in"),
        ([{"concept_id": "mug-1", "lock": "shut", "bias": 7}], "row 1 .*: bias is 7.*; also: lock is 'shut'"),
    ],
)
def test_a_wrong_row_is_refused(db, tmp_path, rows, message):
    with pytest.raises(ManifestError, match=message):
        load_points(db, written(tmp_path, "jsonl", rows))


def test_no_file_and_no_rows(db, tmp_path):
    with pytest.raises(ManifestError, match="there is no manifest at"):
        load_points(db, str(tmp_path / "none.parquet"))
    pq.write_table(pa.table({"concept_id": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(ManifestError, match="holds no points: add at least one row, or leave `points` out of the spec"):
        load_points(db, str(tmp_path / "empty.parquet"))
