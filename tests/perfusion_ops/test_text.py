"""Placeholders of concepts are found while tokenising, at any position."""

import pytest
import torch

from perfusion_ops.text import PromptTooLongError, encode, pieces, renumber, substitute, tokenize, words
from tests.support.tiny_base import small_base


@pytest.fixture(scope="module")
def base():
    return small_base()


@pytest.mark.parametrize(
    "prompt",
    ["{0}", "{0} on the beach", "a photo of a {0}, in the snow.", "on the beach, a {0} next to a {1}", "a {1}{0}"],
)
def test_a_concept_with_the_superclass_embedding_is_the_superclass(base, prompt):
    table = base.texts.models[0].encoder.get_input_embeddings().weight
    names = ["mug", "bear"]
    embeddings = torch.stack([table[words(base.tokenizer, name)[0]] for name in names])[None]
    spelt = prompt.replace("}{", "} {").format(*names)
    plain = base.tokenizer(spelt, padding="max_length", return_tensors="pt")["input_ids"]
    assert torch.equal(
        encode(base.texts.models[0].encoder, [tokenize(base.tokenizer, prompt)], embeddings),
        base.texts.models[0].encoder(plain).last_hidden_state,
    )


def test_substitution_spells_the_superclass_and_aligns_by_meaning(base):
    prompt = "a photo of a {0} next to a {1} on the beach"
    concept = tokenize(base.tokenizer, prompt)
    plain, align = substitute(base.tokenizer, prompt, ["teddy bear", "mug"])
    wanted = base.tokenizer("a photo of a teddy bear next to a mug on the beach", padding="max_length")["input_ids"]
    assert list(plain.ids) == wanted
    bear, mug = words(base.tokenizer, "teddy bear")[-1], words(base.tokenizer, "mug")[-1]
    for position, slot in enumerate(concept.slots):
        there = plain.ids[align[position]]
        assert there == {-1: concept.ids[position], 0: bear, 1: mug}[slot]


def test_a_prompt_that_does_not_fit_is_an_error_not_cut(base):
    prompt = "a photo of a {0} " + "on the beach " * 20
    with pytest.raises(PromptTooLongError, match=r"the text encoder takes 32: shorten"):
        tokenize(base.tokenizer, prompt)
    edge = "{0} " + "a " * 29
    assert tokenize(base.tokenizer, edge).length == 32
    with pytest.raises(PromptTooLongError):
        substitute(base.tokenizer, edge, ["teddy bear"])


def test_pieces_split_at_numbers():
    assert pieces("a {0} and {12}.") == (("a ", " and ", "."), (0, 12))


def test_the_gradient_reaches_the_concepts_embedding_alone(base):
    embeddings = torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tokens = [tokenize(base.tokenizer, "a photo of a {0}"), tokenize(base.tokenizer, "the beach")]
    encode(base.texts.models[0].encoder, tokens, embeddings).square().sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad[0].abs().sum() > 0
    assert embeddings.grad[1].abs().sum() == 0
    assert all(parameter.grad is None for parameter in base.texts.models[0].encoder.parameters())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("no concept", ("no concept", ())),
        ("a {0}", ("a {0}", (0,))),
        ("{1} and {0}", ("{0} and {1}", (1, 0))),
        ("a {7}, a {3}, a {7}{7} end", ("a {0}, a {1}, a {0}{0} end", (7, 3))),
    ],
)
def test_concepts_are_renumbered_by_first_appearance(prompt, expected):
    assert renumber(prompt) == expected
