"""Prompts that use the product's own columns: which text they get, what has no text, and keys that follow the text."""

import datetime as dt
import re
from decimal import Decimal

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.contract.errors import Code
from pipeline.plan.expand import count_plan
from pipeline.run import execute
from tests.support import reference_keys as keys
from tests.support.plans import concept, planned, requests
from tests.support.runs import Engines, Silent, run_settings
from tests.support.shop import CONCEPTS, stock, tables

CATALOGUE = [
    concept("mug-1", season="summer", price=5),
    concept("mug-2", season=" late \n winter\t", price=9),
    concept("hat-1", superclass="wide hat", season="summer", price=20),
]


def one(cell, prompt="a {product} in {product.cell} light", **more):
    """The request for one product whose column `cell` has this value."""
    with planned([concept("mug-1", cell=cell), *more.pop("others", [])], [{"prompt": prompt, **more}]) as db:
        return requests(db, "prompt", "task_prompt", "error_code", "error_column", "error_message", "render_key")[0]


def test_one_row_has_the_words_of_each_product():
    prompts = [{"prompt": "{product.SEASON}: a {product}, {season} light", "negative_prompt": "no {product.price}!"}]
    with planned(CATALOGUE, prompts) as db:
        got = requests(db, "concept_ids", "prompt", "task_prompt", "negative_prompt", "task_negative_prompt")
    assert got == [
        (["hat-1"], "summer: a {hat-1}, summer light", "summer: a {0}, summer light", "no 20!", "no 20!"),
        (["mug-1"], "summer: a {mug-1}, summer light", "summer: a {0}, summer light", "no 5!", "no 5!"),
        (["mug-2"], "late winter: a {mug-2}, late winter light", "late winter: a {0}, late winter light",
         "no 9!", "no 9!"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (7, "7"),
        (2**63 - 1, "9223372036854775807"),
        (5.0, "5"),
        (-0.0, "0"),
        (0.25, "0.25"),
        (1e15, "1000000000000000"),
        (Decimal("5.00"), "5.00"),
        ("\u00a0Füße  of \r\n 3 ", "Füße of 3"),
        ("50% (off) 'now' \\1 {", None),
    ],
)
def test_text_and_numbers_are_written_plainly(cell, text):
    prompt, task, code, *_ = one(cell)
    if text is None:
        assert code == Code.BAD_CHARACTER
        text = str(cell).removesuffix(" {")
        prompt, task, code, *_ = one(text)
    assert (prompt, task, code) == (f"a {{mug-1}} in {text} light", f"a {{0}} in {text} light", None)


@pytest.mark.parametrize(
    ("cell", "other", "code", "word"),
    [
        (None, "x", Code.MISSING_VALUE, "concept 'mug-1' has no value in column 'cell', which prompt uses: fill it in"),
        (" \n ", "x", Code.MISSING_VALUE, "no value in column 'cell'"),
        (None, 5, Code.MISSING_VALUE, "no value in column 'cell'"),
        ("a {0}", "x", Code.BAD_CHARACTER, "'a {0}' in column 'cell', which prompt uses: braces mark placeholders"),
        ("{product}", "x", Code.BAD_CHARACTER, "braces"),
        ("{=1}", "x", Code.BAD_CHARACTER, "braces"),
        ("a\x00b", "x", Code.BAD_CHARACTER, "control character"),
        ("a\x9bb", "x", Code.BAD_CHARACTER, "control character"),
        ("x" * 201, "x" * 200, Code.TEXT_TOO_LONG, "201 characters in column 'cell', which prompt uses: shorten it to"),
        (float("nan"), 1.0, Code.NOT_FINITE, "'nan' in column 'cell'"),
        (float("-inf"), 1.0, Code.NOT_FINITE, "'-inf'"),
        (1e20, 1.0, Code.OUT_OF_RANGE, "'1e+20' in column 'cell', which prompt uses: write the column as text"),
        (1e-7, 1.0, Code.OUT_OF_RANGE, "'1e-07'"),
    ],
)
def test_a_cell_without_a_text_is_a_fault_of_the_renders_of_its_product_alone(cell, other, code, word):
    rows = [concept("mug-1", cell=cell), concept("mug-2", cell=other)]
    with planned(rows, [{"prompt": "a {product} in {product.cell} light"}, {"prompt": "a {product}"}]) as db:
        got = requests(db, "prompt_row", "concept_ids[1]", "error_code", "error_column", "render_key IS NULL")
        [(message, prompt, task)] = db.connection.execute(
            "SELECT error_message, prompt, task_prompt FROM requests WHERE error_code IS NOT NULL"
        ).fetchall()
        assert count_plan(db).renders.invalid == 1
    assert got == [
        (1, "mug-1", code, "prompt", True),
        (1, "mug-2", None, None, False),
        (2, "mug-1", None, None, False),
        (2, "mug-2", None, None, False),
    ]
    assert word in message
    assert prompt == "a {mug-1} in {product.cell} light"
    assert task == "a {0} in  light"


@pytest.mark.parametrize(
    "cell", [True, ["x"], {"a": 1}, b"x", dt.date(2026, 5, 1), dt.datetime(2026, 5, 1, tzinfo=dt.UTC)]
)
def test_a_column_of_another_type_is_a_fault_of_the_row(cell):
    prompt, task, code, column, message, key = one(cell, negative_prompt="no {cell}", prompt="a {product}")
    assert (prompt, task, key) == ("a {product}", None, None)
    assert (code, column) == (Code.WRONG_TYPE, "negative_prompt")
    assert "negative_prompt has {cell}, and column 'cell' of the concepts manifest has the type" in message
    assert "only text and numbers" in message


@pytest.mark.parametrize("name", ["cell", "product.cell"])
def test_the_id_of_a_concept_comes_before_a_column(name):
    other = concept(name, cell="winter")
    mug = {"where_expr": "concept_id = 'mug-1'"}
    prompt, task, code, *_ = one("summer", f"a {{product}} in {{{name}}} light", others=[other], **mug)
    assert (prompt, task, code) == (f"a {{mug-1}} in {{{name}}} light", "a {0} in {1} light", None)
    bad = concept(name, error_code="no_images", error_column="images", error_message="list one")
    _, _, code, _, message, _ = one("summer", f"a {{product}} in {{{name}}} light", others=[bad])
    assert code == Code.CONCEPT_INVALID
    assert f"'{name}'" in message


def test_columns_of_the_program_and_columns_with_odd_names():
    odd = {"Größe cm": 3, "product.x": "y", "o'clock": "nine", "select": "all"}
    prompt = "{product}: {product.superclass} {concept_id}, {product.größe CM}"
    prompt += " {product.product.x} {product.o'clock} {select}"
    with planned([concept("mug-1", **odd)], [{"prompt": prompt}]) as db:
        assert requests(db, "task_prompt", "error_message") == [("{0}: mug mug-1, 3 y nine all", None)]


@pytest.mark.parametrize(
    ("cells", "code", "column", "words"),
    [
        (
            {"prompt": "a {product} in {product.seasn}"},
            Code.BAD_PLACEHOLDER,
            "prompt",
            ["no column 'seasn'", "write {product.season} if", "concept_id, superclass, season, price"],
        ),
        ({"prompt": "a {product} {product.xyzzy}"}, Code.BAD_PLACEHOLDER, "prompt", ["no column 'xyzzy': its columns"]),
        ({"prompt": "a {product} {product.images}"}, Code.BAD_PLACEHOLDER, "prompt", ["no column 'images'"]),
        ({"prompt": "a {product} in {seasn}"}, Code.UNKNOWN_CONCEPT, "prompt", ["write 'product.season' if"]),
        (
            {"prompt": "a {product}", "negative_prompt": "{mug-11}"},
            Code.UNKNOWN_CONCEPT,
            "negative_prompt",
            ["write 'mug-1' if"],
        ),
        ({"prompt": "a {mug-1} {product.season}"}, Code.BAD_PLACEHOLDER, "prompt", ["has no {product} whose column"]),
        ({"prompt": "a {mug-1} in {season}"}, Code.UNKNOWN_CONCEPT, "prompt", ["write 'product.season' if"]),
        (
            {"prompt": "{product}", "negative_prompt": "{product.season} {product.nothing}"},
            Code.BAD_PLACEHOLDER,
            "negative_prompt",
            ["no column 'nothing'"],
        ),
    ],
)
def test_a_name_that_is_neither_is_told_with_what_comes_near(cells, code, column, words):
    with planned(CATALOGUE, [cells, {"prompt": "a {product} in {season}"}]) as db:
        [bad, *good] = requests(db, "error_code", "error_column", "error_message", "concept_ids", "prompt")
    assert bad[:2] == (code, column)
    assert [word for word in words if word not in bad[2]] == []
    assert bad[4] == cells["prompt"]
    assert not any("product." in name for name in bad[3] or [])
    assert [row[:3] for row in good] == [(None, None, None)] * 3


def test_where_and_named_concepts_and_several_renders():
    prompts = [{"prompt": "a {product} by {mug-1} for {price}", "where_expr": "season = 'summer'", "num_images": 2}]
    with planned(CATALOGUE, prompts) as db:
        got = requests(db, "concept_ids", "image_index", "prompt", "task_prompt")
    assert got == [
        (["hat-1", "mug-1"], 0, "a {hat-1} by {mug-1} for 20", "a {0} by {1} for 20"),
        (["hat-1", "mug-1"], 1, "a {hat-1} by {mug-1} for 20", "a {0} by {1} for 20"),
        (["mug-1"], 0, "a {mug-1} by {mug-1} for 5", "a {0} by {0} for 5"),
        (["mug-1"], 1, "a {mug-1} by {mug-1} for 5", "a {0} by {0} for 5"),
    ]


TEXT = st.text(alphabet="ab ü,'\"\\$%(1.5)=\t\n\u3000", max_size=8)
NAMES = st.sampled_from(["{product}", "{mug-1}", "{product.words}", "{words}", "{Number}", "{product.superclass}"])


def words_of(value):
    return " ".join(re.split("[\t\n \u3000]+", value)).strip(" ")


# A template is planned as if each product had a row of its own in which its words are written out.
@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes
@given(
    parts=st.lists(st.tuples(st.text(alphabet="ab ,'é", max_size=5), NAMES), max_size=5),
    negative=st.lists(st.tuples(st.text(alphabet="ab ,'é", max_size=5), NAMES), max_size=3),
    cells=st.lists(st.tuples(TEXT, st.integers(-(10**6), 10**6)), min_size=3, max_size=3),
    num_images=st.integers(1, 2),
)
def test_a_template_is_as_if_each_product_had_a_row_of_its_own(parts, negative, cells, num_images):
    names = ["mug-1", "mug-2", "hat-1"]
    rows = [
        concept(name, superclass=f"kind {name}", words=words, number=number)
        for name, (words, number) in zip(names, cells, strict=True)
    ]
    prompt, other = ("".join(map("".join, each)) for each in ([*parts, ("", "{product}")], negative))
    written, faulty = [], []
    for name, (words, number) in zip(names, cells, strict=True):
        texts = {"words": words_of(words), "number": str(number), "superclass": f"kind {name}"}
        used = {each.lower().removeprefix("product.") for each in re.findall(r"\{(.*?)\}", prompt + other)}
        if "words" in used and not texts["words"]:
            faulty.append(name)
            continue
        spelt = {"{product}": f"{{{name}}}"} | {
            f"{{{prefix}{column}}}": texts[column.lower()]
            for column in ("words", "superclass", "Number")
            for prefix in ("", "product.")
        }
        own = [prompt, other]
        for mark, text in spelt.items():
            own = [each.replace(mark, text) for each in own]
        written.append({"row_of": name, "prompt": own[0], "negative_prompt": own[1]})
    columns = ["concept_ids", "image_index", "prompt", "task_prompt", "negative_prompt", "task_negative_prompt"]
    columns += ["concept_keys", "seed", "render_key", "error_code"]
    more = {"num_images": num_images}
    with planned(rows, [{"prompt": prompt, "negative_prompt": other, **more}]) as db:
        filled = requests(db, *columns)
    plain = [{"prompt": row["prompt"], "negative_prompt": row["negative_prompt"], **more} for row in written]
    with planned(rows, plain) as db:
        expected = requests(db, *columns)
    bad = [row for row in filled if row[-1]]
    assert sorted(row for row in filled if not row[-1]) == sorted(expected)
    assert [row[8:] for row in bad] == [(None, Code.MISSING_VALUE)] * len(faulty) * num_images
    assert all(set(faulty).intersection(row[0]) for row in bad)


def test_keys_are_those_of_the_reference_and_follow_the_text_alone():
    with planned(CATALOGUE, [{"prompt": "a {product} in {product.season} light"}]) as db:
        got = dict(requests(db, "concept_ids[1]", "(render_key, seed, concept_keys)"))
    key, seed, concepts = got["mug-2"]
    material = keys.render_material(
        base_digest="base", concepts=concepts, prompt="a {0} in late winter light", negative_prompt="", steps=50,
        guidance=6.0, scheduler="ddim", width=None, height=None, bias=0.6, temperature=0.15, lock="local",
        edit_unconditional=False)  # fmt: skip
    assert seed == keys.default_seed(material, 0, 0)
    assert key == keys.render_key(material, seed)
    assert got["mug-1"][0] != got["hat-1"][0]  # the same words, and two products
    others = [{**row, "price": 0, "season": row["season"].strip()} for row in CATALOGUE]
    with planned(others, [{"prompt": "a {product} in {season} light"}]) as db:
        assert dict(requests(db, "concept_ids[1]", "(render_key, seed, concept_keys)")) == got


def test_more_columns_in_a_later_chunk(monkeypatch):
    monkeypatch.setattr("pipeline.plan.expand._PROMPTS_PER_CHUNK", 2)
    prompts = [{"prompt": f"{{product}} {each}"} for each in ("{price}", "a", "b", "c", "{season}", "{price}")]
    with planned(CATALOGUE[:1], prompts) as db:
        texts = [task for (task,) in requests(db, "task_prompt")]
    assert texts == ["{0} 5", "{0} a", "{0} b", "{0} c", "{0} summer", "{0} 5"]


def test_a_run_draws_the_words_of_each_product_and_tells_why_one_is_drawn_again(shop, root):
    def go():
        return execute(run_settings(root, shop), make_engine=Engines(), observer=Silent(), explain=True)

    prompts = [{"prompt": "a photo of a {product} in {product.season} light"}]
    stock(shop, prompts=prompts)
    first = go()
    found = {row["concept_id"]: row for row in tables(root, first.run_id)["renders"]}
    assert {name: (row["prompt"], row["season"], row["status"]) for name, row in found.items()} == {
        "mug-1": ("a photo of a {mug-1} in winter light", "winter", "ok"),
        "bag-1": ("a photo of a {bag-1} in summer light", "summer", "ok"),
        "shoe-1": ("a photo of a {shoe-1} in summer light", "summer", "ok"),
    }
    assert go().planned.changes.renders == {}
    stock(shop, [{**CONCEPTS[0], "season": "spring"}, {**CONCEPTS[1], "season": ""}, CONCEPTS[2]], prompts)
    second = go()
    assert (second.planned.changes.concepts, second.planned.changes.renders) == ({}, {"prompt": 1})
    again = {row["concept_id"]: row for row in tables(root, second.run_id)["renders"]}
    assert again["mug-1"]["prompt"] == "a photo of a {mug-1} in spring light"
    assert again["mug-1"]["sha256"] != found["mug-1"]["sha256"]
    assert (again["bag-1"]["status"], again["bag-1"]["error_code"]) == ("invalid", Code.MISSING_VALUE)
    assert (again["shoe-1"]["origin"], again["shoe-1"]["sha256"]) == ("reused", found["shoe-1"]["sha256"])
