"""What is printed: JSON that parses whatever SQL gives, tables that fit or turn into blocks, short paths."""

import datetime as dt
import io
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.output import cell, complain, counted, duration, location, plain, refuse, say_json, table, writing


class Color(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Mug:
    color: Color
    sizes: tuple[int, ...]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Mug(Color.RED, (1, 2)), {"color": "red", "sizes": [1, 2]}),
        (Decimal(12345678901234567890123), 12345678901234567890123),
        (Decimal("1.50"), 1.5),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (b"\x00\xff", "00ff"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.datetime(2024, 2, 29, 1, 2, 3, tzinfo=dt.UTC), "2024-02-29T01:02:03+00:00"),
        (dt.time(1, 2), "01:02:00"),
        (dt.timedelta(days=1), "1 day, 0:00:00"),
        (Path("a/b"), "a/b"),
        ({1: [None, True]}, {"1": [None, True]}),
    ],
)
def test_plain_is_what_json_knows(value, expected, capsys):
    assert plain(value) == expected
    say_json({"value": value})
    assert json.loads(capsys.readouterr().out) == {"value": expected}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=80)
@given(json_values)
def test_json_stays_what_it_is(value):
    assert plain(value) == value
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (True, "true"),
        (3, "3"),
        (0.1 + 0.2, "0.3"),
        (1234567.0, "1.23457e+06"),
        (["a", None, 2], "a;;2"),
        ([], ""),
        ([["a"]], '[["a"]]'),
        ({"a": 1}, '{"a": 1}'),
        ("text", "text"),
    ],
)
def test_cells_for_people(value, expected):
    assert cell(value) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7322, "2 h 02 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_counts_have_their_plural():
    assert [counted(number, "bad row") for number in (0, 1, 2, 1234)] == [
        "0 bad rows", "1 bad row", "2 bad rows", "1,234 bad rows"
    ]  # fmt: skip


def test_locations_are_short_where_they_are_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert location(f"file://{tmp_path}/a/b.html") == "a/b.html"
    assert location(f"{tmp_path}/a") == "a"
    assert location(f"file://{tmp_path}") == "."
    assert location("file:///somewhere/else") == "/somewhere/else"
    assert location(f"{tmp_path}-other/a") == f"{tmp_path}-other/a"
    assert location("s3://bucket/a") == "s3://bucket/a"
    assert location("run run-1") == "run run-1"
    monkeypatch.chdir("/")
    assert location("file:///srv/shop/results") == "/srv/shop/results"


NAMES = ("name", "count")
ROWS = [("mug", 7), ("a long name " * 20, 12_345), (None, None)]


def test_on_a_pipe_a_table_is_as_wide_as_it_needs_to_be(capsys):
    table(NAMES, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["name", "count"]
    assert lines[2].split() == [*("a long name " * 20).split(), "12345"]
    assert lines[1].rstrip().endswith(" 7")
    assert len(lines[1].rstrip()) == len(lines[2].rstrip()), "numbers stand to the right"


def test_text_cannot_break_the_table_or_the_terminal(capsys):
    table(("a[bold]", "b"), [("two\nlines", "\x1b[31mred"), ("[red]markup[/red] :smile:", "x")])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    assert "\x1b" not in out
    assert r"two\nlines" in out
    assert "[red]markup[/red] :smile:" in out
    assert "a[bold]" in out


def test_an_empty_table_has_its_names(capsys):
    table(NAMES, [])
    assert capsys.readouterr().out.split() == ["name", "count"]


def on_a_terminal(code, columns):
    """What Python code writes to a terminal of that width, without its escapes."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environment) as process:
        os.close(theirs)
        found = io.BytesIO()
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux: the other end was closed
                break
            if not piece:
                break
            found.write(piece)
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", found.getvalue().decode()).replace("\r\n", "\n")


def test_on_a_narrow_terminal_a_wide_table_becomes_blocks():
    code = f"from jobs.output import table; table({NAMES!r}, {ROWS[:2]!r})"
    assert on_a_terminal(code, 300).splitlines()[0].split() == ["name", "count"]
    assert on_a_terminal(code, 80) == (
        "row 1\n  name   mug\n  count  7\n"
        f"row 2\n  name   {'a long name ' * 20}\n  count  12345\n"
    )  # fmt: skip


def test_refusals_are_messages_on_stderr(capsys, tmp_path):
    complain("one thing")
    with pytest.raises(typer.Exit) as ended:
        refuse("another")
    assert ended.value.exit_code == 2
    (tmp_path / "file").touch()
    with pytest.raises(typer.Exit), writing("out"):
        (tmp_path / "file" / "inside").write_text("x")
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == [
        "perfusion: one thing",
        "perfusion: another",
        "perfusion: out cannot be written to: Not a directory; choose another folder",
    ]
