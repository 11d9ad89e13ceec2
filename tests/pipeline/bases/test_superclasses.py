"""A superclass that the base model cannot read is refused before any training, with its count and the room for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer
from perfusion_ops.base.tokenizer import words as tokens
from perfusion_ops.mini import base_folder
from pipeline.bases.superclasses import superclass_check
from pipeline.contract.errors import Code, RowError
from tests.support.tokenizer_folders import small_clip

TOKENIZERS = {"mini": load_tokenizer(describe(base_folder())), "clip": small_clip(40)}
MINI = TokenCounter(TOKENIZERS["mini"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("mug", None),
        ("wide brimmed hat", None),
        ("mug 😀", None),
        ("😀", Code.EMPTY_SUPERCLASS),
        ("杯子", Code.EMPTY_SUPERCLASS),
        ("<|endoftext|>", Code.EMPTY_SUPERCLASS),
        ("a " * 26, None),
        ("a " * 27, Code.TEXT_TOO_LONG),
    ],
)
def test_a_superclass_must_have_a_word_and_fit_the_training_prompts(words, code):
    check = superclass_check(MINI, ["a photo of a {}", "{}"])
    if code is None:
        assert check(" ".join(words.split())) is None
        return
    with pytest.raises(RowError) as error:
        check(" ".join(words.split()))
    assert error.value.code == code
    assert "superclass" in str(error.value)


def test_training_prompts_without_room_are_the_bases_fault():
    with pytest.raises(BaseError, match="shorten the templates"):
        superclass_check(MINI, ["a " * 30 + "{}"])


def refused(templates, words, counter=MINI):
    with pytest.raises(RowError) as error:
        superclass_check(counter, templates)(words)
    return error.value


def test_a_superclass_without_a_known_character_names_itself_and_the_remedy():
    error = refused(["a photo of a {}"], "杯子")
    assert (error.code, error.column) == (Code.EMPTY_SUPERCLASS, "superclass")
    assert str(error) == (
        "superclass is '杯子', of which the base model's tokenizer knows no character: "
        "name the kind of thing in words that it knows, such as 'mug'"
    )


def test_a_superclass_that_is_too_long_names_its_tokens_and_the_room():
    words = " ".join(["a"] * 27)
    error = refused(["a photo of a {}", "{}"], words)
    assert (error.code, error.column) == (Code.TEXT_TOO_LONG, "superclass")
    assert str(error) == (
        f"superclass '{words}' has 27 tokens, the base model's training prompts have room for 26: "
        "name the kind of thing in a word or two"
    )
    shown = str(refused(["{}"], "a " * 60 + "b"))
    assert shown.startswith(f"superclass '{('a ' * 60)[:76]}... has ")


@pytest.mark.parametrize("templates", [["a {} a a"], ["{}", "a a a {}"], ["a a a {}", "{}"], ["a a {} a", "a {}"]])
def test_the_longest_training_prompt_gives_the_room_with_its_words_on_both_sides(templates):
    check = superclass_check(MINI, templates)
    assert check(" ".join(["a"] * 27)) is None
    assert "has 28 tokens, the base model's training prompts have room for 27" in str(
        refused(templates, "a " * 27 + "a")
    )


def test_the_last_token_of_room_is_enough_for_a_base():
    assert superclass_check(MINI, ["a " * 29 + "{}"])("mug") is None
    with pytest.raises(BaseError, match="has more than the 32 tokens that it reads"):
        superclass_check(MINI, ["a " * 30 + "{}"])


WORDS = st.lists(st.sampled_from(["mug", "a", "brimmed", "submarine", "teddy", "杯", "x1"]), min_size=1, max_size=34)
TEMPLATES = st.lists(st.sampled_from(["{}", "a photo of a {}", "the {} on a table"]), min_size=1, max_size=3)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@settings(max_examples=60)
@given(words=WORDS.map(" ".join), templates=TEMPLATES)
def test_what_passes_fits_every_training_prompt_and_what_is_too_long_does_not(name, words, templates):
    tokenizer = TOKENIZERS[name]
    counter, longest = (
        TokenCounter(tokenizer),
        max(2 + len(tokens(tokenizer, each.format(words))) for each in templates),
    )
    try:
        found = superclass_check(counter, templates)(words)
    except RowError as error:
        found = error.code
    long = Code.TEXT_TOO_LONG if longest > counter.limit else None
    assert found == (long if counter.knows(words) else Code.EMPTY_SUPERCLASS)


def test_a_superclass_is_counted_once():
    class Spy(TokenCounter):
        def knows(self, text):
            asked.append(text)
            return super().knows(text)

    asked = []
    check = superclass_check(Spy(TOKENIZERS["mini"]), ["{}"])
    for _ in range(3):
        check("mug")
        with pytest.raises(RowError):
            check("杯")
    assert asked == ["mug", "杯"]
