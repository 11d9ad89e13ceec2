"""CSV records: good files mean what Python's own reader says, and one broken line costs itself alone."""

import csv
import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files import csv_records
from pipeline.files.csv_records import Lines, records


def read(text, width, delimiter=","):
    found = records(Lines(io.StringIO(text, newline="")), delimiter, range(width, width + 1))
    return [record for record in found if record.cells or record.fault]


def good(found, width):
    return [record.cells for record in found if not record.fault and len(record.cells) == width]


def written(rows, end="\n", delimiter=","):
    text = io.StringIO(newline="")
    # Python's writer quotes the line end that it writes and no other, which its own reader then takes for one.
    lone = any("\r" in cell or "\n" in cell for row in rows for cell in row)
    quoting = csv.QUOTE_ALL if lone else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue()


hostile = st.text(st.sampled_from('ab",;\t|\n\r \0'), max_size=8)
simple = st.text(st.sampled_from("ab c"), max_size=6)


def tables(cells, width):
    return st.lists(st.lists(cells, min_size=width, max_size=width), max_size=6)


@settings(deadline=None, max_examples=300)
@given(
    table=st.integers(1, 4).flatmap(lambda width: tables(hostile, width)),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    delimiter=st.sampled_from(",;\t|"),
    cut=st.booleans(),
)
def test_what_a_writer_writes_is_read_back(table, end, delimiter, cut):
    text = written(table, end, delimiter)
    text = text.removesuffix(end) if cut else text
    found = read(text, len(table[0]) if table else 1, delimiter)
    reference = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    assert [record.cells for record in found] == [row for row in reference if row] == table
    assert not any(record.fault for record in found)


def around(width, before, after):
    return st.tuples(tables(before, width), tables(after, width))


def check_one_broken(width, before, after, broken, place):
    line = ["k"] * width
    line[place % width] = broken
    start = written(before)
    found = read(start + ",".join(line) + "\n" + written(after), width)
    assert good(found, width) == before + after
    (bad,) = [record for record in found if record.fault or len(record.cells) != width]
    assert bad.line == 1 + len(start.splitlines(keepends=True))
    assert bad.cells[: place % width] == ["k"] * (place % width)


@settings(deadline=None, max_examples=300)
@given(
    rows=st.integers(2, 4).flatmap(lambda width: st.tuples(st.just(width), *[tables(hostile, width)] * 2)),
    broken=st.sampled_from(['"12" tall"', '"a"b"', '"x"y"z"', '"a\\"b"']),
    place=st.integers(0, 3),
)
def test_a_stray_quote_costs_its_own_line(rows, broken, place):
    # A lone \r ends a line too, and `splitlines` of a written table must count as the reader does.
    width, before, after = rows
    before = [[cell.replace("\r", "") for cell in row] for row in before]
    check_one_broken(width, before, after, broken, place)


@settings(deadline=None, max_examples=300)
@given(
    rows=st.integers(2, 4).flatmap(
        lambda width: st.tuples(st.just(width), tables(hostile, width), tables(simple, width))
    ),
    broken=st.sampled_from(['"12" tall', '"x', '"', '"""', '"a""', '"a, b']),
    place=st.integers(0, 3),
)
def test_a_quote_that_never_closes_costs_its_own_line(rows, broken, place):
    width, before, after = rows
    before = [[cell.replace("\r", "") for cell in row] for row in before]
    check_one_broken(width, before, after, broken, place)


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.sampled_from('ab",\n\r'), max_size=60), width=st.integers(1, 3))
def test_any_text_is_read_to_its_end_and_no_line_counts_twice(text, width):
    found = read(text, width)
    lines = [record.line for record in found]
    assert lines == sorted(set(lines))
    assert all(record.line <= record.last for record in found)
    assert all(one.last < two.line for one, two in itertools.pairwise(found) if not one.fault)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('a,"12" tall",c\nb,"13" tall",d\ne,y,f\n', [(1, True), (2, True), (3, False)]),
        ('a,"line one\n12" tall",c\nb,"x",d\n', [(1, True), (3, False)]),
        ('a,"12" tall\nmid\nend",c\nb,x,d\n', [(1, True), (4, False)]),
        ('a,"12" tall\nmid\n",c\nb,x,d\n', [(1, True), (4, False)]),
        ('a,"x,c\nb,"y,c\nz,y,x\n', [(1, True), (2, True), (3, False)]),
        ('a,"12 tall,c\nb,x,d\ne,5",f,g\nh,i,j\n', [(1, True), (2, False), (3, False), (4, False)]),
        ('a,5" pipe,c\nb,6",d\n', [(1, False), (2, False)]),
        ('a,"x\nand b" y,z,c\n', [(1, True), (2, True)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_where_a_broken_record_ends(text, lines):
    assert [(record.line, bool(record.fault)) for record in read(text, 3)] == lines


def test_a_row_that_is_too_long_is_one_bad_record(monkeypatch):
    monkeypatch.setattr(csv_records, "MAX_RECORD", 100)
    text = "a,b\nk," + "x" * 99 + "\nc,d\n" + 'k,"' + "x\n" * 60 + '"\ne,f\nk,' + "x" * 500
    found = read(text, 2)
    assert good(found, 2) == [["a", "b"], ["c", "d"], ["e", "f"]]
    bad = [(record.line, record.last, record.cells[0]) for record in found if record.fault]
    assert bad == [(2, 2, "k"), (4, 64, "k"), (66, 66, "k")]
    assert read("k," + "x" * 97 + "\n", 2)[0].fault is None
