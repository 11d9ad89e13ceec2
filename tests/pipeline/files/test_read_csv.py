"""CSV rows: the delimiter is found, cells have the type of their column, and notices say what is skipped or assumed."""

import pytest

from pipeline.contract.errors import ManifestError
from pipeline.files import rows as shared
from pipeline.files.read_csv import read_csv
from pipeline.files.rows import Columns, ListText, Notices
from pipeline.manifest.prompts import load_prompts
from tests.support.manifests import rows

COLUMNS = Columns(
    frozenset({"prompt", "seed", "images"}), frozenset({"prompt"}), frozenset({"seed"}), frozenset({"images"})
)


@pytest.fixture
def read(tmp_path):
    """Read a text: (its batches, its notices)."""

    def call(text, name="p.csv"):
        (tmp_path / name).write_bytes(text.encode())
        notices = Notices()
        batches = list(read_csv(tmp_path / name, name, COLUMNS, notices))
        return batches, list(notices.messages("M"))

    return call


def only(batches):
    """The one batch of a small file."""
    [batch] = batches
    return batch


def refusal(read, text):
    with pytest.raises(ManifestError) as refused:
        read(text)
    return str(refused.value)


# Delimiter and header


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.csv", "prompt,seed\na;b,1\n", None),
        ("p.csv", "prompt;seed\na;1\n", "semicolons"),
        ("p.csv", "prompt\tseed\na\t1\n", "tabs"),
        ("p.csv", "prompt|seed\na|1\n", "vertical bars"),
        ("p.tsv", "prompt\tseed\na\t1\n", None),
        ("P.TSV", "prompt,seed\na,1\n", "commas"),
        ("p.csv", "sep=,\nprompt,seed\na,1\n", None),
        ("p.csv", '"sep=;",,\r\nprompt;seed\r\na;1\r\n', "semicolons"),
        ("p.csv", "SEP=#\nprompt#seed\na#1\n", "'#'"),
        ("p.csv", "\ufeffprompt,seed\na,1\n", None),
        ("p.csv", "\n,,\n ;\nprompt,seed\na,1\n", None),
        ("p.csv", "prompt,seed\ra,1\r", None),
        ("p.csv", "prompt\na\n", None),
    ],
    ids=repr,
)
def test_the_delimiter_gives_the_required_columns_and_an_unusual_one_is_in_a_notice(read, name, text, words):
    batches, notices = read(text, name)
    row = {"prompt": "a;b" if "a;b" in text else "a"} | ({"seed": 1} if "seed" in text else {})
    assert only(batches).cells == [row]
    shown = f"M: 1 file read with {words} between cells, as the first line shows ({name}): correct that line if this is"
    assert notices == ([f"{shown} wrong"] if words else [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.csv is empty: write a header line and rows"),
        ("\n \n,;|\n", "p.csv is empty: write a header line and rows"),
        ("sep=;\n", "p.csv is empty: write a header line and rows"),
        ("a,b\n1,2\n", "p.csv has no column 'prompt' (it has 'a', 'b'): add it or rename one"),
        ("a;b\n1;2\n", "p.csv has no column 'prompt' (it has 'a;b'): add it or rename one"),
        # The first line is believed, even if another delimiter would give the required columns.
        ("sep=;\nprompt,seed\n", "p.csv has no column 'prompt' (it has 'prompt,seed'): add it or rename one"),
        ("prompt,,k\na,0,x\n", "column 2 of p.csv has the name '': give it a plain name"),
        ("prompt,Seed\na,0\n", "column 'Seed' of p.csv differs from 'seed' only by case: rename it"),
        (
            '\nprompt,"seed\na,0\n',
            'line 2 of p.csv, the header, opens a quote that is not closed: close it, or write "" for a quote inside a '
            "quoted cell",
        ),
        (
            ",prompt\n0,a\n2,b\n",
            "column 1 of p.csv has no name and does not count 0, 1, 2, ...: name it or remove it",
        ),
        (
            ',prompt\n0,a\n"1",b\nx,c\n',
            "column 1 of p.csv has no name and does not count 0, 1, 2, ...: name it or remove it",
        ),
    ],
    ids=repr,
)
def test_a_header_that_cannot_be_used_is_refused(read, text, message):
    assert refusal(read, text) == message


def test_a_file_that_is_not_utf8_names_the_byte(tmp_path):
    (tmp_path / "p.csv").write_bytes("prompt\ncafé\n".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError, match="0xe9"):
        list(read_csv(tmp_path / "p.csv", "p.csv", COLUMNS, Notices()))


@pytest.mark.parametrize("first", [0, 1])
def test_a_first_column_that_only_counts_is_left_out(read, first):
    batches, notices = read("".join([",prompt,k\n", *(f"{first + n},p{n},x\n" for n in range(3)), "\n"]))
    assert only(batches).cells == [{"prompt": f"p{n}"} for n in range(3)]
    assert only(batches).extra.to_pydict() == {"k": ["x"] * 3}
    [notice] = notices
    assert notice == (
        "M: 1 file whose first column has no name and only counts its rows, left out (p.csv): "
        "name the column to carry it through"
    )


def test_a_broken_row_does_not_break_the_count(read):
    batches, _ = read(',prompt\n0,a\n1,"b" c\n2,d\n')
    assert only(batches).cells == [{"prompt": "a"}, {"prompt": 'b" c'}, {"prompt": "d"}]
    assert list(only(batches).broken) == [1]


def test_blanks_around_names_are_removed_only_where_a_required_name_needs_it(read):
    batches, notices = read(" prompt , k \na, x \n")
    assert (only(batches).cells, only(batches).extra.to_pydict()) == ([{"prompt": "a"}], {"k": [" x "]})
    assert notices == [
        "M: 1 file with blanks around column names, removed (p.csv): write the names without blanks",
    ]
    batches, notices = read("prompt, seed, k\na,1,x\n")
    assert (only(batches).cells, only(batches).extra.to_pydict()) == ([{"prompt": "a"}], {" seed": ["1"], " k": ["x"]})
    assert notices == [
        "M: 1 file with the column ' seed', carried through, whose name differs from a known one by blanks (p.csv): "
        "remove the blanks to have it used",
    ]


# Rows


def test_columns_at_the_end_without_name_and_value_are_left_out_and_a_value_there_is_a_bad_row(read):
    batches, notices = read("prompt,k,,\na,1,,\nb,2\nc,3,, x\nd\ne,5,,,\n")
    batch = only(batches)
    assert batch.cells == [{"prompt": name} for name in "abcde"]
    assert batch.extra.to_pydict() == {"k": ["1", "2", "3", None, "5"]}
    assert batch.broken == {
        2: "line 4 of p.csv has a value in column 4, which has no name: name the column or clear the cell",
        3: "line 5 of p.csv has 1 cell, the header 2: quote cells with commas",
        4: "line 6 of p.csv has 5 cells, the header 2: quote cells with commas",
    }
    assert notices == [
        "M: 1 file with columns at the end that have neither a name nor a value, left out (p.csv): "
        "name what should be carried",
    ]


def test_rows_of_separators_and_repeated_headers_are_skipped_and_counted(read):
    batches, notices = read("\ufeffprompt,k\na,1\n,\n , \n\n\ufeffprompt,k\nb,2\nprompt,k\n")
    assert only(batches).cells == [{"prompt": "a"}, {"prompt": "b"}]
    assert notices == [
        "M: 2 rows of nothing but separators skipped (p.csv): fill a cell in where a row is meant",
        "M: 2 repeated header lines skipped (p.csv): files were joined; nothing is lost",
    ]


def test_a_row_of_one_blank_cell_is_a_row_where_there_is_one_column(read):
    batches, notices = read("prompt\na\n\n \n")
    assert only(batches).cells == [{"prompt": "a"}, {"prompt": " "}]
    assert notices == []


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("007", 7),
        ("+2", 2),
        ("-1", -1),
        ("9223372036854775808", 2**63),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-Inf", float("-inf")),
        ("1_0", "1_0"),
        ("0x10", "0x10"),
        ("1,5", "1,5"),
        ("١", "١"),  # a digit, but not one of ours
        ("x", "x"),
        (" ", " "),
        ("9" * 4000, "9" * 4000),  # too long for Python: the check refuses the text
        ("", None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_cell_of_a_column_of_numbers_is_a_number_or_stays_text(read, cell, value):
    batches, _ = read(f'prompt,seed,k\na,"{cell}","{cell}"\n')
    [row] = only(batches).cells
    assert (row["seed"], type(row["seed"])) == (value, type(value))
    assert only(batches).extra.to_pydict() == {"k": [cell or None]}, "an extra column is text"
    assert only(batches).kinds == {"k": {"text"}}


def test_nan_is_a_number_that_the_check_refuses(read):
    [row] = only(read("prompt,seed\na,nan\n")[0]).cells
    assert isinstance(row["seed"], float)
    assert row["seed"] != row["seed"]


def test_a_cell_of_a_column_of_lists_stays_whole_and_an_empty_one_is_null(read):
    batches, _ = read('prompt,images\na,"x.png, y.png"\nb,\n')
    assert [row["images"] for row in only(batches).cells] == [ListText("x.png, y.png"), None]


def test_a_broken_record_names_its_lines_and_keeps_the_cells_that_could_be_read(read):
    batches, _ = read('prompt,k\na,1\nb,"12" tall\nmid\nend",2\nc,3\n')
    assert only(batches).broken == {
        1: 'line 3 of p.csv has a quote inside a quoted cell: write "" for a quote there; '
        "what follows up to line 4 belongs to it",
        2: "line 5 of p.csv may be the rest of the broken line above it: correct that line",
    }


def test_indexes_of_bad_rows_count_from_the_start_of_their_batch(read, monkeypatch):
    monkeypatch.setattr(shared, "BATCH_ROWS", 2)
    batches, _ = read("prompt,k\na,1\nb,2\nc,3\nd\ne,5\n")
    assert [len(batch.cells) for batch in batches] == [2, 2, 1]
    assert [list(batch.broken) for batch in batches] == [[], [1], []]
    assert [batch.extra.to_pydict()["k"] for batch in batches] == [["1", "2"], ["3", None], ["5"]]


def test_a_batch_ends_when_its_rows_are_long(read, monkeypatch):
    monkeypatch.setattr(shared, "BATCH_BYTES", 60)
    batches, _ = read(f"prompt,k\na,1\nb,{'2' * 80}\nc,3\n")
    assert [[row["prompt"] for row in batch.cells] for batch in batches] == [["a", "b"], ["c"]]


def test_csv_rows_of_another_length_are_rows_too(db, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,seed,sku\na {product},1,007\na {product}, or two,2,008\nb {product}\n\nc {product},x,010\n")
    load_prompts(db, str(path))
    found = rows(db, "prompts")
    assert [row["error_code"] for row in found] == [None, "wrong_type", "wrong_type", "wrong_type"]
    assert "has 4 cells, the header 3" in found[1]["error_message"]
    assert "seed is 'x'" in found[3]["error_message"]
    assert [row["sku"] for row in rows(db, "prompts_extra")] == ["007", "2", None, "010"]
