"""Whatever type a query gives prints as text, JSON and CSV, without pandas or pytz, and JSON and CSV lose nothing."""

import csv
import io
import json
import sys
from decimal import Decimal

import duckdb
import pytest

from jobs.commands.query import command
from jobs.output import json_text
from jobs.results.csv_file import write_csv
from jobs.results.values import result_rows

WITH_TYPES = duckdb.connect()
ALL = WITH_TYPES.sql("FROM test_all_types()")
OF_ALL = dict(zip(ALL.columns, map(str, ALL.types), strict=True))
# Types and values that DuckDB's own list lacks.
OTHERS = {
    "variant": "{'a': 1.5, 'b': [TIMESTAMP_NS '2024-01-01 00:00:00.000000001']}::VARIANT",
    "json": """'{"a": 1.10}'::JSON""",
    "null": "NULL",
    "type": "get_type(1)",
    "infinite date": "DATE 'infinity'",
    "infinite dates": "[DATE '-infinity', DATE 'infinity']",
    "infinite timestamp": "TIMESTAMP '-infinity'",
    "infinite timestamptz": "TIMESTAMPTZ 'infinity'",
    "far": "TIMESTAMP '200000-01-01 00:00:00.5'",
    "bc": "DATE '0044-03-15 (BC)'",
    "struct of times": "{'a b\"c': TIMESTAMP_NS '2024-02-29 01:02:03.000000004', 'z': TIMETZ '01:02:03'}",
    "map of dates": "MAP {DATE '2024-02-29': TIMETZ '01:02:03+05:30'}",
    "map of lists": "MAP {[1, 2]: 'a'}",
    "map of structs": "MAP {{'key': 1}: INTERVAL 1 DAY}",
    "map of arrays": "MAP {['key', 'value']::VARCHAR[2]: 1}",
    "union in a list": "[union_value(k := 2), NULL]",
    "hugeints": "[170141183460469231731687303715884105727]",
    "interval": "INTERVAL '-14 months 3 days -100 hours'",
    "nameless": "(1, DATE '2024-02-29')",
    "not finite": "['nan'::DOUBLE, '-inf'::DOUBLE, -0.0]",
    "variant with nan": "{'a': 'nan'::FLOAT}::VARIANT",
    "big number": f"'{'9' * 5000}'::BIGNUM",
}  # fmt: skip


def queries():
    for name in OF_ALL:
        yield f'SELECT "{name}" AS x FROM test_all_types()'
    for value in OTHERS.values():
        yield f"SELECT {value} AS x"


class Without:
    """A finder by which pandas and pytz are not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pandas", "pytz"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture(autouse=True)
def without_pandas_and_pytz(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pandas", "pytz")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])


def test_every_type_of_the_database_is_tried():
    known = {name for (name,) in WITH_TYPES.execute("SELECT DISTINCT logical_type FROM duckdb_types()").fetchall()}
    tried = " ".join(str(WITH_TYPES.sql(sql).types[0]) for sql in queries())
    marks = {"ARRAY": "[3]", "LIST": "[]", "BIGNUM": "BIGNUM", "NULL": '"NULL"'}
    assert {name for name in known if marks.get(name, name) not in tried} == set()


@pytest.mark.parametrize("words", [{}, {"json": True}, {"csv": True}], ids=["text", "json", "csv"])
@pytest.mark.parametrize("sql", list(queries()), ids=[*OF_ALL, *OTHERS])
def test_every_type_prints(sql, words, tmp_path, capsys):
    command(str(tmp_path), sql, **words)
    lines = capsys.readouterr().out.splitlines()
    rows = WITH_TYPES.execute(f"SELECT count(*) FROM ({sql})").fetchall()[0][0]
    assert len(lines) >= rows
    if "json" in words:
        assert all(json.loads(line, parse_int=Decimal).keys() == {"x"} for line in lines)


OTHERWISE = ("STRUCT", "MAP", "UNION", "TUPLE", "INTERVAL")
SCALARS = {name: kind for name, kind in OF_ALL.items() if not kind.endswith("]") and not kind.startswith(OTHERWISE)}


@pytest.mark.parametrize("name", SCALARS)
def test_json_and_csv_lose_nothing(name, tmp_path, capsys):
    sql = f'SELECT "{name}" AS x FROM test_all_types()'
    whole = {"parse_float": str, "parse_int": str}
    command(str(tmp_path), sql, json=True)
    told = [json.loads(line, **whole)["x"] for line in capsys.readouterr().out.splitlines()]
    command(str(tmp_path), sql, csv=True)
    [_, *cells] = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    back = "from_hex(v)" if SCALARS[name] == "BLOB" else f"CAST(v AS {SCALARS[name]})"
    for texts in (told, [cell[0] if cell else None for cell in cells]):
        values = [None if text is None else str(text) for text in texts]
        found = WITH_TYPES.execute(f"SELECT CAST({back} AS VARCHAR) FROM (SELECT unnest(?::VARCHAR[]) AS v)", [values])
        found = found.fetchall()
        assert found == WITH_TYPES.execute(f"SELECT CAST(x AS VARCHAR) FROM ({sql})").fetchall()


@pytest.mark.parametrize(
    ("value", "told", "cell"),
    [
        (
            "TIMESTAMP_NS '2024-02-29 01:02:03.000000004'",
            "2024-02-29T01:02:03.000000004",
            "2024-02-29 01:02:03.000000004",
        ),
        ("TIMESTAMP '2024-02-29 01:02:03'", "2024-02-29T01:02:03", "2024-02-29 01:02:03.000000"),
        ("TIMESTAMP_MS '2024-02-29 01:02:03.5'", "2024-02-29T01:02:03.500000", "2024-02-29 01:02:03.500"),
        ("TIMESTAMPTZ '2024-02-29 01:02:03+02'", "2024-02-28T23:02:03+00:00", "2024-02-28 23:02:03.000000+0000"),
        ("TIMETZ '01:02:03+05:30'", "01:02:03+05:30", "01:02:03.000000+0530"),
        ("TIMESTAMP '0044-03-15 (BC) 01:02:03'", "0044-03-15 (BC) 01:02:03", "0044-03-15 (BC) 01:02:03"),
        ("DATE 'infinity'", "infinity", "infinity"),
        (
            "INTERVAL '-14 months 3 days -100 hours -1.5 seconds'",
            [-14, 3, -360_001_500_000_000],
            "[-14, 3, -360001500000000]",
        ),
        ("1.10::DECIMAL(38, 20)", Decimal("1.10000000000000000000"), "1.10000000000000000000"),
        (
            "12345678901234567890.0123456789::DECIMAL(38, 10)",
            Decimal("12345678901234567890.0123456789"),
            "12345678901234567890.0123456789",
        ),
        ("(2::HUGEINT ** 100)::HUGEINT", 2**100, str(2**100)),
        ("0.1::FLOAT", Decimal("0.10000000149011612"), "0.1"),
        ("union_value(k := DATE '2024-02-29')", {"k": "2024-02-29"}, '{"k": "2024-02-29"}'),
        ("MAP {DATE '2024-02-29': 1}", [["2024-02-29", 1]], '[["2024-02-29", 1]]'),
        ("MAP {{'key': 1}: 2}", [[{"key": 1}, 2]], '[[{"key": 1}, 2]]'),
        ("{'d': 1.10::DECIMAL(4, 2)}::VARIANT", {"d": Decimal("1.10")}, '{"d": 1.10}'),
        ("['a', NULL, 'b']", ["a", None, "b"], "a;;b"),
        ("['a;b']", ["a;b"], '["a;b"]'),
        ("['a', '']", ["a", ""], '["a", ""]'),
        ("[NULL]", [None], "[null]"),
        ("[]", [], ""),
        ("['[1]']", ["[1]"], '["[1]"]'),
    ],
)
def test_values_as_they_are_printed(value, told, cell):
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        relation = connection.sql(f"SELECT {value} AS x")
        [(found,)] = rows = list(result_rows(connection, relation))
        file = io.StringIO()
        write_csv(file, relation.columns, relation.types, rows)
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [["x"], [cell]]
    with_json = json.loads(json_text(found), parse_float=Decimal)
    assert with_json == told


def test_columns_of_one_name_and_other_statements(tmp_path, capsys):
    command(str(tmp_path), "SELECT DATE '2024-02-29' AS a, 2 AS a, 3 AS \"A\"", json=True)
    assert json.loads(capsys.readouterr().out) == {"a": "2024-02-29", "a_1": 2, "A": 3}
    for sql in ("DESCRIBE renders", "SHOW TABLES", "VALUES (DATE 'infinity')", "FROM range(2)"):
        command(str(tmp_path), sql)
        assert capsys.readouterr().out
