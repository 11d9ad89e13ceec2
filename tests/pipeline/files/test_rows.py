"""What all formats share: names of columns are checked, batches have a bounded size, notices count and name files."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB
from pipeline.files import rows
from pipeline.files.rows import Columns, Notice, Notices, check_names, check_required, chunked
from pipeline.manifest.prompts import load_prompts

COLUMNS = Columns(frozenset({"prompt", "seed", "where"}), frozenset({"prompt"}), frozenset({"seed"}), frozenset())
SKIPPED = Notice("row", "skipped", "fill it in")


# Column names


def test_extra_columns_are_those_that_are_not_known_in_the_order_of_the_file():
    assert check_names(["b", "prompt", "a b", "seed", "ü"], COLUMNS, "f.csv") == ["b", "a b", "ü"]
    assert check_names(["seed"], COLUMNS, "f.csv") == []
    assert check_names([], COLUMNS, "f.csv") == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["prompt", ""], "column 2 of f.csv has the name '': give it a plain name"),
        (["\u00a0 ", "prompt"], r"column 1 of f.csv has the name '\xa0 ': give it a plain name"),
        (["prompt", "a\x1fb"], r"column 2 of f.csv has the name 'a\x1fb': give it a plain name"),
        (["prompt", "a\udc80"], r"column 2 of f.csv has the name 'a\udc80': give it a plain name"),
        (["prompt", "a", "b", "a"], "f.csv has the column 'a' more than once: rename or remove one"),
        (["prompt", "prompt"], "f.csv has the column 'prompt' more than once: rename or remove one"),
        (["Brand", "prompt", "bRAND"], "column 'bRAND' of f.csv differs from 'Brand' only by case: rename it"),
        (["prompt", "Seed"], "column 'Seed' of f.csv differs from 'seed' only by case: rename it"),
        (["PROMPT", "prompt"], "column 'PROMPT' of f.csv differs from 'prompt' only by case: rename it"),
    ],
    ids=repr,
)
def test_names_that_are_not_plain_or_not_distinct_are_refused(names, message):
    with pytest.raises(ManifestError) as refused:
        check_names(names, COLUMNS, "f.csv")
    assert str(refused.value) == message


def test_missing_required_columns_are_named_with_the_first_twenty_that_are_there():
    check_required(["k", "prompt"], COLUMNS, "f.csv")
    with pytest.raises(ManifestError) as refused:
        check_required([f"c{number}" for number in range(30)], COLUMNS, "f.csv")
    there = ", ".join(f"'c{number}'" for number in range(20))
    assert str(refused.value) == f"f.csv has no column 'prompt' (it has {there}): add it or rename one"
    both = Columns(frozenset("yxz"), frozenset("zyx"), frozenset(), frozenset())
    with pytest.raises(ManifestError, match=r"f\.csv has no column 'x', 'z' \(it has 'y'\)"):
        check_required(["y"], both, "f.csv")


# Batches


@settings(max_examples=100)
@given(sizes=st.lists(st.integers(0, 12), max_size=40), most_rows=st.integers(1, 7), most_bytes=st.integers(1, 20))
def test_a_batch_ends_at_its_number_of_rows_or_bytes_and_not_before(sizes, most_rows, most_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BATCH_ROWS", most_rows)
        patch.setattr(rows, "BATCH_BYTES", most_bytes)
        found = list(chunked(enumerate(sizes), lambda item: item[1]))
    assert [item for chunk in found for item in chunk] == list(enumerate(sizes))
    for number, chunk in enumerate(found, 1):
        held = [size for _, size in chunk]
        assert 1 <= len(chunk) <= most_rows
        assert sum(held[:-1]) < most_bytes
        assert number == len(found) or len(chunk) == most_rows or sum(held) >= most_bytes


def test_a_batch_is_given_before_the_next_row_is_read(monkeypatch):
    monkeypatch.setattr(rows, "BATCH_ROWS", 3)
    taken = []
    found = chunked((taken.append(number) or number for number in range(7)), lambda _: 1)
    assert (next(found), taken) == ([0, 1, 2], [0, 1, 2])
    assert list(found) == [[3, 4, 5], [6]]


# Notices


def test_a_notice_says_what_is_counted_in_the_singular_or_the_plural():
    notices = Notices("/shop")
    assert notices.messages("M") == ()
    notices.add(SKIPPED, "/shop/a.csv")
    assert notices.messages("M") == ("M: 1 row skipped (a.csv): fill it in",)
    notices.add(SKIPPED, "/shop/a.csv", 1234)
    assert notices.messages("M") == ("M: 1,235 rows skipped (a.csv): fill it in",)


def test_a_count_of_zero_is_no_notice():
    notices = Notices()
    notices.add(SKIPPED, "a.csv", 0)
    assert notices.messages("M") == ()


@pytest.mark.parametrize(
    ("files", "shown"),
    [(5, "f0, f1, f2, f3, f4"), (6, "f0, f1, f2, f3, f4 and 1 more"), (1505, "f0, f1, f2, f3, f4 and 1,500 more")],
)
def test_a_notice_names_five_files(files, shown):
    notices = Notices("top")
    for number in range(files):
        notices.add(SKIPPED, f"top/f{number}")
    assert notices.messages("M") == (f"M: {files:,} row{'s' * (files > 1)} skipped ({shown}): fill it in",)


def test_notices_are_in_the_order_of_their_first_occurrence_and_fit_for_utf8():
    first, second = Notice("link", "skipped", "copy it"), SKIPPED
    notices = Notices()
    for notice, where in ((first, "b\udcff"), (second, "a"), (first, "a")):
        notices.add(notice, where)
    assert notices.messages("M") == (r"M: 2 links skipped (b\udcff, a): copy it", "M: 1 row skipped (a): fill it in")


def test_a_notice_counts_over_all_files_and_names_the_first_few(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.csv").write_text(f"prompt;k\n{{product}};{number}\n;\n;\n")
    with PlanDB(threads=1) as db:
        summary = load_prompts(db, str(tmp_path))
    assert (summary.rows, summary.good) == (7, 7)
    assert summary.notices == (
        f"file://{tmp_path}: 7 files read with semicolons between cells, as the first line shows "
        "(0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 2 more): correct that line if this is wrong",
        f"file://{tmp_path}: 14 rows of nothing but separators skipped "
        "(0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 2 more): fill a cell in where a row is meant",
    )
