"""Columns of text become numbers and booleans only where each value prints as the text that the file has."""

import csv
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.carried import carried


def from_csv(*texts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([("prompt", "x"), *(("{product}", text) for text in texts)])
        return carried(path)


def from_folders(*texts):
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            path = Path(folder) / "p" / f"x={text}" / f"{number}.csv"
            path.parent.mkdir(parents=True)
            path.write_text("prompt\n{product}\n")
        return carried(Path(folder) / "p")


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["1", "-20", "0", "9223372036854775807"], "BIGINT"),
        (["1.5", "-0.25", "2.0", "1e-07", "1e+16", "-0.0"], "DOUBLE"),
        (["true", "false"], "BOOLEAN"),
        # what would print as another text
        (["47583311587E590003", "10E12"], "VARCHAR"),
        *(([text], "VARCHAR") for text in (
            "1E3", "1e3", "1.10", "1.", ".5", "007", "+7", "-0", "0x1F", "0b1", "1_000", "1,000", "1 000",
            " 1", "1 ", "١", "9223372036854775808", "12345678901234567890", "0.1234567890123456789", "1e400", "1e-400",
            "1e16", "1.0e+16",
            "inf", "-inf", "Infinity", "nan", "NaN", "NULL", "null", "None", "N/A",
            "True", "TRUE", "t", "T", "yes", "no", "on", "f", "False", "FALSE",
            "2024-02-29", "2024-02-29 01:02:03", "2024-02-29T01:02:03Z", "01:02:03", "12:30",
            "1 day", "1/2", "50%", "$5",
            "{}", "[1]", "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        )),
        # one value decides for all
        (["5", "7.5", "10"], "VARCHAR"),
        (["1", "2", "007A"], "VARCHAR"),
        (["1", "true"], "VARCHAR"),
        (["1.5", "1.50"], "VARCHAR"),
        (["true", "True"], "VARCHAR"),
        (["1.5", "nan"], "VARCHAR"),
    ],
    ids=str,
)  # fmt: skip
def test_text_becomes_what_prints_as_it_does(texts, kind):
    found, values, printed = from_csv(*texts)
    assert (found, printed) == (kind, texts)
    if kind == "VARCHAR":
        assert values == texts


SPELLINGS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\n"), min_size=1, max_size=8),
    st.from_regex(r"[+-]?[0-9]{1,20}(\.[0-9]{0,4})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.integers().map(str),
    st.floats().map(repr),
    st.decimals(allow_nan=True).map(str),
    st.sampled_from(["true", "false", "TRUE", "True", "inf", "-0", "007", "1E3", "0x10", "1_0", "2024-02-29", "1.10"]),
)
COLUMNS = st.one_of(
    st.lists(SPELLINGS, min_size=1, max_size=5),
    st.lists(st.integers(-(2**64), 2**64).map(str), min_size=1, max_size=5),
    st.lists(st.floats(allow_nan=False).map(repr), min_size=1, max_size=5),
    st.lists(st.sampled_from(["true", "false"]), min_size=1, max_size=5),
)


@settings(deadline=None, max_examples=150)
@given(COLUMNS)
@example(["47583311587E590003", "10E12"])
def test_any_column_of_text_prints_as_the_file_has_it(texts):
    kind, values, printed = from_csv(*texts)
    assert printed == texts
    # Python is another reader: its own spelling of the published values is the file's as well.
    assert [json.dumps(value) if kind == "BOOLEAN" else str(value) for value in values] == texts


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["2025", "2026"], "BIGINT"),
        (["01", "02"], "VARCHAR"),
        (["SS26", "10E12"], "VARCHAR"),
        (["1.5"], "DOUBLE"),
        (["True"], "VARCHAR"),
    ],
)
def test_folders_named_like_columns_are_text_of_that_kind(texts, kind):
    found, _, printed = from_folders(*texts)
    assert (found, sorted(printed)) == (kind, sorted(texts))
