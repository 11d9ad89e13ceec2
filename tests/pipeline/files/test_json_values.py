"""JSON values without loss: each keeps its kind, and each number its characters where a double would change it."""

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract.messages import storable
from pipeline.files.json_values import RepeatedKeyError, json_kind, json_text, json_value
from tests.support.carried import from_json


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        ("true", "bool"),
        ("0", "int"),
        ("-0", "int"),
        ("12345678901234567890", "int"),
        ("9" * 4000, "int"),
        ("9" * 4001, "number"),  # Python would refuse to read it
        ('"1"', "str"),
        ('""', "str"),
        ("1.10", "float"),
        ("-0.0", "float"),
        ("1E3", "float"),
        ("1e22", "float"),
        ("9007199254740992.0", "float"),
        ("9007199254740993.0", "number"),
        ("0.1234567890123456789", "number"),
        ("1e400", "number"),
        ("-1e-400", "number"),
        ("1e99999999999999999999", "number"),
        ("NaN", "number"),
        ("-Infinity", "number"),
        ("[]", "json"),
        ("{}", "json"),
        ("[1]", "json"),
    ],
    ids=lambda value: value[:24],
)
def test_kind_is_that_of_the_value_and_a_float_has_a_double_that_equals_it(spelling, kind):
    value = json_value(spelling)
    assert json_kind(value) == kind
    assert json_text(value) == ("0" if spelling == "-0" else spelling.strip('"'))


@pytest.mark.parametrize(
    "text",
    ["", " ", "{", "[1,]", "nul", "'a'", "1 2", "01", "1.", "\ufeff1", "[" * 100_000, "[" * 100_000 + "]" * 100_000],
    ids=lambda text: repr(text[:10]),
)
def test_what_is_no_json_or_nested_without_end_has_no_value(text):
    assert json_value(text) is None


def test_text_of_null_is_null_and_text_stays_as_it_is():
    assert json_text(None) is None
    assert json_text(json_value("null")) is None
    assert json_text(' "a"\n') == ' "a"\n'
    assert json_text(json_value(r'"\ud800é"')) == r"\ud800é", "UTF-8 holds no half of a pair"


def test_nested_values_keep_their_numbers_and_get_the_spacing_of_json_dumps():
    text = r'{"b":[1.10,1e400,{"\"k\"":-0.0}],"ü":"é","":null,"c":true,"d":"\ud83d\ude00"}'
    shown = r'{"b": [1.10, 1e400, {"\"k\"": -0.0}], "ü": "é", "": null, "c": true, "d": "😀"}'
    assert json_text(json_value(text)) == shown


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6).map(json.dumps)
NESTED = st.recursive(
    NUMBERS | TEXTS | st.sampled_from(["true", "false", "null"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(TEXTS, inner), max_size=3, unique_by=lambda pair: json.loads(pair[0])).map(
            lambda items: f"{{{','.join(map(':'.join, items))}}}"
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(NESTED)
def test_any_nested_value_is_the_same_value_as_text(text):
    def exact(json_text):
        return json.loads(json_text, parse_float=Decimal, parse_int=Decimal)

    assert exact(json_text(json_value(f"[{text}]"))) == exact(f"[{text}]")


# In the database


@pytest.mark.parametrize(
    ("spellings", "kind", "printed"),
    [
        (["1", "-20"], "BIGINT", ["1", "-20"]),
        (["1.10", "2", "1E3", "-0.0"], "DOUBLE", ["1.1", "2.0", "1000.0", "-0.0"]),
        (["true", "false"], "BOOLEAN", ["true", "false"]),
        # numbers that have no double keep every digit
        (["12345678901234567890"], "VARCHAR", ["12345678901234567890"]),
        (["1e400", "1.10"], "VARCHAR", ["1e400", "1.10"]),
        (["1e-400"], "VARCHAR", ["1e-400"]),
        (["1e99999999999999999999"], "VARCHAR", ["1e99999999999999999999"]),
        (["0.1234567890123456789"], "VARCHAR", ["0.1234567890123456789"]),
        (["12345678901234567", "0.5"], "VARCHAR", ["12345678901234567", "0.5"]),
        (["9" * 5000], "VARCHAR", ["9" * 5000]),
        (["NaN", "1.5", "Infinity"], "VARCHAR", ["NaN", "1.5", "Infinity"]),
        # text is text
        (['"1"', '"2"'], "VARCHAR", ["1", "2"]),
        (['"true"'], "VARCHAR", ["true"]),
        (["1", '"a"', "1.10"], "VARCHAR", ["1", "a", "1.10"]),
        (["1", "true"], "VARCHAR", ["1", "true"]),
        # nested numbers are spelt as in the file
        (['{"w": 1.10, "h": [1e400, 12345678901234567890, null, "é"]}'], "VARCHAR",
         ['{"w": 1.10, "h": [1e400, 12345678901234567890, null, "é"]}']),
    ],
    ids=str,
)  # fmt: skip
def test_json_values_keep_their_value(spellings, kind, printed):
    found, _, texts = from_json(*spellings)
    assert (found, texts) == (kind, printed)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
        min_size=1,
        max_size=4,
    )
)
def test_any_json_number_keeps_its_value(spellings):
    assert [Decimal(text) for text in from_json(*spellings)[2]] == [Decimal(spelling) for spelling in spellings]


def test_a_value_nested_deeper_than_calls_go_is_carried():
    deep = "[" * 900 + "1.10, {" + '"k": 0.10}' + "]" * 900
    assert from_json(deep)[2] == [deep]


@settings(max_examples=100)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    )
)
def test_any_nested_value_is_written_as_the_library_writes_it(value):
    text = json.dumps([value], ensure_ascii=False)
    assert json_text(json_value(text)) == storable(text)


def test_a_key_that_an_object_has_twice_is_an_error_at_any_depth():
    for text in ('{"a": 1, "b": 2, "a": 1}', '[[{"x": {"a": 1, "a": 2}}]]'):
        with pytest.raises(RepeatedKeyError) as raised:
            json_value(text)
        assert str(raised.value) == "a"
    assert json_value('{"a": {"b": 1}, "b": {"a": 1}}') == {"a": {"b": 1}, "b": {"a": 1}}
