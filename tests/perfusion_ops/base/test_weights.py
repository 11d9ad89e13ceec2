"""Weights of words are read, counted and applied as they are written, and after the edit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.base.folder import describe
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer
from perfusion_ops.base.weights import fragments, texts
from perfusion_ops.conditioning import PromptRow, condition
from perfusion_ops.mini import base_folder
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text import substitute, tokenize
from tests.support.concepts import gated_concept
from tests.support.tiny_base import random_metric, small_base

TOKENIZER = load_tokenizer(describe(base_folder()))


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a mug", [("a mug", 1.0)]),
        ("", []),
        ("a (red)1.3 mug", [("a ", 1.0), ("red", 1.3), (" mug", 1.0)]),
        ("(a {0} mug)0", [("a {0} mug", 0.0)]),
        ("(a)1.5(b)2.c", [("a", 1.5), ("b", 2.0), (".c", 1.0)]),
        (r"a mug \(red\)", [("a mug (red)", 1.0)]),
        (r"(\(red\))2 \mug", [("(red)", 2.0), (r" \mug", 1.0)]),
    ],
)
def test_weights_are_read(prompt, wanted):
    assert fragments(prompt) == wanted


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("a (red) mug", "character 3"),
        ("a red)1.2", "character 6"),
        ("((red)1.2)1.1", "character 1"),
        ("a (red", "character 3"),
        ("(red)6", "weight 6 is too large"),
    ],
)
def test_other_parentheses_are_refused(prompt, why):
    with pytest.raises(ValueError, match=why):
        fragments(prompt)


PIECES = st.sampled_from(
    ["a ", "(red)1.3", "mug", " ", "(a ", "b)0.5", r"\(", r"\)", "(teddy bear)2", "é", "1", "{0}", ",", "\\"]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(PIECES, max_size=10).map("".join))
def test_a_count_is_what_the_prompt_is_tokenised_as(prompt):
    try:
        found = fragments(prompt)
    except ValueError:
        return
    assert "".join(texts(prompt)) == "".join(text for text, _ in found)
    tokens = tokenize(TOKENIZER, prompt, weighted=True)
    counter = TokenCounter(TOKENIZER).of_weights()
    around = prompt.split("{0}")
    assert tokens.length == 2 + len(around) - 1 + sum(map(counter.count, around))
    plain, align = substitute(TOKENIZER, prompt, ["mug"], weighted=True)
    assert len(align) == len(plain.ids)
    assert plain.length == tokens.length


def test_tokens_carry_the_weight_of_their_group():
    tokens = tokenize(TOKENIZER, "a (red {0})1.3 mug", weighted=True)
    words = tokenize(TOKENIZER, "a red {0} mug")
    assert (tokens.ids, tokens.slots) == (words.ids, words.slots)
    place = tokens.slots.index(0)
    assert [tokens.weights[place - 1], tokens.weights[place]] == [1.3, 1.3]
    assert sum(weight != 1 for weight in tokens.weights) == 2
    assert tokenize(TOKENIZER, "a (red)1 mug", weighted=True).weights == ()
    assert tokenize(TOKENIZER, "a (red)1.3 mug").ids != tokenize(TOKENIZER, "a red mug").ids


@pytest.fixture(scope="module")
def base():
    return small_base()


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


@pytest.mark.parametrize("lock", ["local", "global"])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.7])
def test_keys_and_values_move_from_those_of_the_empty_prompt_after_the_edit(base, metric, lock, weight):
    acting = ((gated_concept(base, metric, 1),), (0.3,), (0.15,), lock)
    rows = [
        PromptRow("a photo of a {0} in the snow", *acting),
        PromptRow(f"a photo of a ({{0}} in){weight} the snow", *acting, weighted=True),
        PromptRow(""),
    ]
    plain, weighted, empty = condition(base, metric, rows).kv
    weights = torch.tensor(tokenize(base.tokenizer, rows[1].prompt, weighted=True).weights)[:, None]
    assert (weights != 1).sum() == 2
    torch.testing.assert_close(weighted, empty + weights * (plain - empty), rtol=1e-5, atol=1e-5)
    untouched = (weights == 1)[:, 0]
    assert (weighted[untouched] == plain[untouched]).all()


def test_without_concepts_it_is_the_weighted_encoding_of_the_unmodified_model(base, metric):
    text = "a (mug)1.5 on the beach"
    tokens = [base.texts.tokenize(each, weighted=True) for each in (text, "")]
    e, e0 = base.texts.encode(tokens).encodings
    weights = torch.tensor(tokens[0].weights)[:, None]
    wanted = (e0 + weights * (e - e0)) @ base.stack.weight.mT
    found = condition(base, metric, [PromptRow(text, weighted=True)]).kv[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_only_weights_other_than_one_change_a_picture_and_parentheses_keep_their_meaning_otherwise(base, metric):
    def picture(text, weighted):
        row = RenderRow(PromptRow(text, weighted=weighted), PromptRow(""), 1)
        return render(base, metric, [row], Sampler(16, 16, 3, 4.0, "ddim"))[0]

    plain = picture("a red mug", False)
    assert (picture("a (red)1 mug", True) == plain).all()
    assert (picture("a (red)2 mug", True) != plain).any()
    assert (picture(r"a mug \(red\)", True) == picture("a mug (red)", False)).all()
    assert (picture("a (red)2 mug", False) != picture("a (red)2 mug", True)).any()
