"""`perfusion query`: rows as JSON, as CSV and as a table."""

import csv
import io
import json

from tests.support.command import only_object, rows_of


def test_query_as_json_is_one_object_a_row(done, perfusion):
    run_id = json.loads(done.run.stdout)["run_id"]
    out = rows_of(
        done,
        perfusion,
        f"SELECT status, concept_ids, error_code, bytes, accelerator_s, finished_at FROM renders "
        f"WHERE run_id = '{run_id}' ORDER BY manifest_row, concept_id",
        "--json",
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["status"] for row in rows] == ["ok", "ok", "invalid", "invalid", "invalid"]
    assert sorted(row["concept_ids"][0] for row in rows[:2]) == sorted(row["concept_id"] for row in done.concepts)
    assert rows[0]["error_code"] is None
    assert rows[4]["concept_ids"] is None
    assert isinstance(rows[0]["bytes"], int)
    total = json.loads(rows_of(done, perfusion, "SELECT sum(bytes) AS s, sum(bytes) AS s FROM current", "--json"))
    assert total.keys() == {"s", "s_1"}
    assert isinstance(total["s"], int)


NESTED = """
SELECT ['a', NULL, 'b'] AS l, [[1]] AS deep, {'k': 1} AS s, NULL AS n, '' AS e, '\\xff'::BLOB AS b, INTERVAL 1 DAY AS i,
    0.5 AS d
"""


def test_query_as_csv_takes_every_type(done, perfusion):
    out = rows_of(done, perfusion, NESTED, "--csv")
    [names, cells] = list(csv.reader(io.StringIO(out)))
    assert names == ["l", "deep", "s", "n", "e", "b", "i", "d"]
    assert cells == ["a;;b", "[[1]]", '{"k": 1}', "", "", "ff", "[0, 1, 0]", "0.5"]
    assert ',,"",' in out.splitlines()[1], "nothing and an empty text differ"
    assert rows_of(done, perfusion, "SELECT status FROM renders WHERE false", "--csv") == '"status"\n'


def test_query_as_a_table(done, perfusion):
    out = rows_of(done, perfusion, "SELECT concept_ids, error_code, bytes FROM renders WHERE status = 'ok'")
    lines = out.splitlines()
    assert lines[0].split() == ["concept_ids", "error_code", "bytes"]
    assert lines[1].split()[0] in {row["concept_id"] for row in done.concepts}
    assert rows_of(done, perfusion, NESTED).splitlines()[1].startswith("a;;b")
    assert rows_of(done, perfusion, "SELECT 1 AS a, 2 AS a").split() == ["a", "a", "1", "2"]


def test_query_without_sql_counts_and_takes_a_spec(done, perfusion):
    code, out, _ = perfusion("query", str(done.folder / "spoilt.yaml"))
    assert code == 0
    assert out.splitlines()[0].split() == ["status", "origin", "rows", "bytes"]


def test_nothing_published_yet_is_said(perfusion, shop):
    code, out, err = perfusion("query", shop.spec("good"), "SELECT count(*) AS n FROM renders", "--json")
    assert (code, only_object(out)) == (0, {"n": 0})
    assert "nothing is published under" in err
