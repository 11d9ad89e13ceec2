"""Rows of JSON lines: a line that is no object is one bad row, and another notation is refused with the remedy."""

import pytest

from pipeline.contract.errors import ManifestError
from pipeline.files import read_json
from pipeline.files import rows as shared
from pipeline.files.read_json import read_json_lines
from pipeline.files.rows import Columns, Notices
from pipeline.manifest.prompts import load_prompts
from tests.support.manifests import rows

COLUMNS = Columns(frozenset({"prompt", "seed", "images"}), frozenset({"prompt"}), frozenset({"seed"}), frozenset())
ARRAY = "p.jsonl is a JSON array, not JSON lines: write one object a line, for example with jq -c '.[]'"
SPREAD = (
    "p.jsonl has a JSON object over several lines, not JSON lines: write one object a line, for example with jq -c ."
)


@pytest.fixture
def read(tmp_path):
    def call(text):
        (tmp_path / "p.jsonl").write_bytes(text.encode())
        return list(read_json_lines(tmp_path / "p.jsonl", "p.jsonl", COLUMNS, Notices()))

    return call


def test_known_cells_keep_their_values_and_extra_ones_become_text_with_their_kinds(read):
    [batch] = read(
        '{"prompt": "a", "images": ["x", 1, null], "seed": 1.5, "k": 1.10, "none": null}\n'
        '{"prompt": null, "k": [1.10], "l": "1"}\n'
    )
    assert batch.cells == [{"prompt": "a", "images": ["x", 1, None], "seed": 1.5}, {"prompt": None}]
    assert batch.extra.to_pydict() == {"k": ["1.10", "[1.10]"], "none": [None, None], "l": [None, "1"]}
    assert batch.kinds == {"k": {"float", "json"}, "none": set(), "l": {"str"}}
    assert batch.broken == {}


def test_blank_lines_are_no_rows_but_count_as_lines(read):
    [batch] = read('\ufeff\n{"prompt": "a"}\n \t\r\n{"prompt": }\n')
    assert batch.cells == [{"prompt": "a"}, {}]
    assert batch.broken == {1: "line 4 of p.jsonl is no JSON object ('{\"prompt\": }\\n'): correct it"}


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff", " \n"])
def test_a_file_of_blank_lines_has_no_rows(read, text):
    assert read(text) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("null", "is no JSON object ('null\\n'): correct it"),
        ("7", "is no JSON object ('7\\n'): correct it"),
        ('"text"', "is no JSON object ('\"text\"\\n'): correct it"),
        ("[1]", "is no JSON object ('[1]\\n'): correct it"),
        ("{'prompt': 1}", "is no JSON object (\"{'prompt': 1}\\n\"): correct it"),
        ('{"prompt": "b"} x', 'is no JSON object (\'{"prompt": "b"} x\\n\'): correct it'),
        ('{"prompt": "b", "k": 1, "prompt": "c"}', "has the key 'prompt' twice in one object: remove one"),
        ('{"prompt": "b", "k": [{"x": 1, "x": 1}]}', "has the key 'x' twice in one object: remove one"),
        ('{"prompt": "b"},', "ends with a comma: remove it, because JSON lines have none between objects"),
        ('{"prompt": "b"}, ', "ends with a comma: remove it, because JSON lines have none between objects"),
        ("{,", "is no JSON object ('{,\\n'): correct it"),
        ("x" * 70, f"is no JSON object ('{'x' * 60}'): correct it"),
    ],
)
def test_a_line_that_is_no_object_is_one_bad_row(read, line, fault):
    [batch] = read(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "c"}}\n')
    assert batch.cells == [{"prompt": "a"}, {}, {"prompt": "c"}]
    assert batch.broken == {1: f"line 2 of p.jsonl {fault}"}


def test_a_line_that_is_too_long_is_one_bad_row_and_the_next_one_is_read(read, monkeypatch):
    monkeypatch.setattr(read_json, "MAX_RECORD", 40)
    fits = '{"prompt": "a"' + " " * 25 + "}"
    [batch] = read(f'{fits}\n{fits} \n{{"prompt": "{"x" * 200}"}}\n{{"prompt": "d"}}')
    assert (len(fits), [row.get("prompt") for row in batch.cells]) == (40, [None, None, None, "d"])
    long = "is longer than 40 characters: shorten its values"
    assert batch.broken == {index: f"line {index + 1} of p.jsonl {long}" for index in range(3)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", ARRAY),
        ('[{"prompt": "a"}]', ARRAY),
        ('[{"prompt": "a"}, {"prompt": "b"}]\n', ARRAY),
        ('[\n{"prompt": "a"}\n]\n', ARRAY),
        ('[{"prompt": "a"},\n{"prompt": "b"}]\n', ARRAY),
        ("{", SPREAD),
        ('\n{\n  "prompt": "a"\n}\n', SPREAD),
    ],
)
def test_another_notation_is_refused_with_the_remedy(read, text, message):
    with pytest.raises(ManifestError) as refused:
        read(text)
    assert str(refused.value) == message


@pytest.mark.parametrize("first", ["[1]", "[null, {}]", "{"])
def test_a_first_line_that_only_resembles_another_notation_is_one_bad_row(read, first):
    [batch] = read(f'{first}\n{{"prompt": "a"}}\n')
    assert (batch.cells, list(batch.broken)) == ([{}, {"prompt": "a"}], [0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"b": 1}\n', "p.jsonl has no column 'prompt' (it has 'a', 'b'): add it or rename one"),
        ('{"prompt": "a"}\n{"Prompt": "b"}\n', "column 'Prompt' of p.jsonl differs from 'prompt' only by case"),
        ('{"prompt": "a", "k": 1}\n{"prompt": "a", "K": 1}\n', "column 'K' of p.jsonl differs from 'k' only by case"),
        ('{"prompt": "a", "": 1}\n', "column 2 of p.jsonl has the name '': give it a plain name"),
    ],
)
def test_names_of_all_lines_are_checked_as_those_of_one_file(read, text, message):
    with pytest.raises(ManifestError) as refused:
        read(text)
    assert str(refused.value).startswith(message)


def test_a_batch_has_every_column_that_was_met_so_far(read, monkeypatch):
    monkeypatch.setattr(shared, "BATCH_ROWS", 2)
    batches = read('{"prompt": "a"}\n[1]\n{"prompt": "c", "k": 1}\n{"l": true}\n{"prompt": "e"}\nx\n')
    assert [batch.extra.to_pydict() for batch in batches] == [
        {},
        {"k": ["1", None], "l": [None, "true"]},
        {"k": [None, None], "l": [None, None]},
    ]
    assert [list(batch.broken) for batch in batches] == [[1], [], [1]]
    assert [batch.kinds for batch in batches] == [{}, {"k": {"int"}, "l": {"bool"}}, {"k": set(), "l": set()}]


def test_a_batch_ends_when_its_lines_are_long(read, monkeypatch):
    monkeypatch.setattr(shared, "BATCH_BYTES", 60)
    batches = read("".join(f'{{"prompt": "{name * size}"}}\n' for name, size in (("a", 1), ("b", 80), ("c", 1))))
    assert [[row["prompt"][0] for row in batch.cells] for batch in batches] == [["a", "b"], ["c"]]


def test_a_required_column_is_enough_in_one_line_of_the_file(read, monkeypatch):
    monkeypatch.setattr(shared, "BATCH_ROWS", 1)
    assert [batch.cells for batch in read('{"k": 1}\n{"prompt": "b"}\n')] == [[{}], [{"prompt": "b"}]]


def test_lines_that_cannot_be_read_are_rows_too(db, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a {product}"}\n\n{"prompt": \n[1]\n{"prompt": "b {product}", "brand": "x"}\n')
    load_prompts(db, str(path))
    found = rows(db, "prompts")
    assert [row["error_code"] for row in found] == [None, "wrong_type", "wrong_type", None]
    assert "line 3 of" in found[1]["error_message"]
    assert rows(db, "prompts_extra") == [{"row": n, "brand": "x" if n == 4 else None} for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ('{"prompt": "a"},\n{"prompt": "b"},\n', "ends with a comma"),
        ("prompt\nseed\n", "is no JSON object"),
        ('{"k": 1, "k": 2}\n', "has the key 'k' twice"),
    ],
)
def test_a_file_without_any_object_says_what_is_wrong_with_its_first_line(read, text, first):
    with pytest.raises(ManifestError) as raised:
        read(text)
    assert str(raised.value).startswith(f"p.jsonl holds no JSON object: line 1 of p.jsonl {first}")


def test_an_array_whose_objects_repeat_a_key_is_still_an_array(read):
    with pytest.raises(ManifestError) as raised:
        read('[{"prompt": "a", "prompt": "b"}]\n')
    assert str(raised.value) == ARRAY
