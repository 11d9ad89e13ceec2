"""Several concepts in one picture, each from a prompt of its own where its product is."""

from dataclasses import replace

import pytest
import torch

from perfusion_ops.concept import Spelled
from perfusion_ops.conditioning import PromptRow, condition, prompt_tokens
from perfusion_ops.regions import acting, condition_regions, is_regional, prompts_of, row_regions, spelled
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text import substitute, tokenize
from tests.support.concepts import gated_concept, offset_concept
from tests.support.naive_regions import naive_steps
from tests.support.tiny_base import random_metric, small_base

SAMPLER = Sampler(16, 16, 4, 4.0, "ddim")


@pytest.fixture(scope="module")
def base():
    return small_base(dtype=torch.float64)


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


def row(prompt, *concepts, combine="regional", lock="local"):
    return PromptRow(prompt, concepts, (0.3,) * len(concepts), (0.15,) * len(concepts), lock, combine)


def test_only_rows_with_several_concepts_are_regional(base, metric):
    one, two = gated_concept(base, metric, 1), offset_concept(base, metric, 2, scale=3)
    assert is_regional(row("a {0} on a {1}", one, two))
    assert not is_regional(row("a {0} on a {1}", one, two, combine="paper"))
    assert not is_regional(row("a {0}", one))
    assert not is_regional(row("a mug"))


def test_a_spelled_concept_is_its_words_and_nothing_else(base, metric):
    told = row(
        "a {0} next to a {1} on a {2}",
        gated_concept(base, metric, 1, "teddy bear"),
        offset_concept(base, metric, 2, scale=3),
        Spelled("hat"),
    )
    tokens = prompt_tokens(base, spelled(told))
    plain = tokenize(base.tokenizer, "a teddy bear next to a mug on a hat")
    assert tokens.ids == plain.ids
    assert set(tokens.slots) == {-1}
    ends = [tokens.nouns.index(number) for number in range(3)]
    assert [base.tokenizer.decode(tokens.ids[end]).strip() for end in ends] == ["bear", "mug", "hat"]
    same = condition(base, metric, [PromptRow("a teddy bear next to a mug on a hat")]).kv
    assert torch.equal(condition(base, metric, [spelled(told)]).kv, same)
    assert torch.equal(condition(base, metric, [spelled(replace(told, lock="global"))]).kv, same)


def test_a_single_prompt_has_one_concept_and_the_words_of_the_others(base, metric):
    one, two = gated_concept(base, metric, 1, "teddy bear"), offset_concept(base, metric, 2, scale=3)
    told = row("a {0} next to a {1}", one, two)
    plain, first, second = prompts_of(told)
    assert [type(concept) for concept in plain.concepts] == [Spelled, Spelled]
    assert first.concepts == (one, Spelled("mug"))
    assert second.concepts == (Spelled("teddy bear"), two)
    alone = PromptRow("a {0} next to a mug", (one,), (0.3,), (0.15,))
    torch.testing.assert_close(
        condition(base, metric, [first]).kv, condition(base, metric, [alone]).kv, rtol=1e-9, atol=1e-9
    )
    words = PromptRow("a teddy bear next to a {0}", (two,), (0.3,), (0.15,))
    assert torch.equal(condition(base, metric, [second]).kv, condition(base, metric, [words]).kv)


@pytest.mark.parametrize("name", ["a {0} next to a {1}", "a {1} on a {0} and the {1}"])
def test_spelled_concepts_are_aligned_under_the_global_lock(base, name):
    nouns, superclasses = ["hat", ""], ["hat", "teddy bear"]
    tokens = tokenize(base.tokenizer, name, nouns, [0])
    plain, align = substitute(base.tokenizer, name, superclasses, nouns, [0])
    for place in range(tokens.length):
        if tokens.slots[place] < 0:
            assert tokens.ids[place] == plain.ids[align[place]]
        else:
            assert base.tokenizer.decode(plain.ids[align[place]]).strip() == "bear"


@pytest.mark.parametrize("lock", ["local", "global"])
def test_regions_equal_a_naive_attention(base, metric, lock):
    rows = [
        row(
            "a {0} next to a {1}",
            gated_concept(base, metric, 1),
            offset_concept(base, metric, 2, "teddy bear", scale=3),
            lock=lock,
        ),
        row(
            "a {0} on a {1} and a {2}",
            offset_concept(base, metric, 3, scale=3),
            offset_concept(base, metric, 4, "hat", scale=3),
            gated_concept(base, metric, 5),
        ),
    ]
    conditioning, regions = condition_regions(base, metric, rows)
    assert regions.own is not None
    assert regions.own.shape[:2] == (2, 3)
    assert regions.used.tolist() == [[True, True, False], [True, True, True]]
    conditioning = conditioning.kv
    assert torch.equal(conditioning, condition(base, metric, [spelled(each) for each in rows]).kv)
    empty = condition(base, metric, [PromptRow("")]).kv.expand(2, -1, -1)
    whole = torch.cat([empty, conditioning])
    latents = torch.randn(3, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad(), acting(base, regions, 20):
        found = [base.denoiser(sample, 7, whole).sample for sample in latents]
    for one_found, one_expected in zip(found, naive_steps(base, regions, whole, latents), strict=True):
        torch.testing.assert_close(one_found, one_expected, rtol=1e-6, atol=1e-8)
    plain = base.denoiser(latents[2], 7, whole).sample
    torch.testing.assert_close(found[2][:2], plain[:2], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(found[2][2:], plain[2:])


def test_a_concept_that_covers_the_picture_is_drawn_as_alone(base, metric):
    """With one concept and M = 1, the attention to its own prompt replaces the plain one."""
    told = row("a {0}", offset_concept(base, metric, 1, scale=3))
    conditioning = condition(base, metric, [spelled(told)]).kv
    own = condition(base, metric, [told]).kv
    regions = replace(row_regions(base, [told], [spelled(told)]), own=own[:, None])
    moved = own.clone()
    moved[..., base.stack.key_rows :] += told.concepts[0].value_offset.double()
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    # Without a noun, D is one everywhere, so M is one half: twice the change is the whole change.
    half = replace(regions, nouns=regions.nouns * 0)
    with torch.no_grad():
        with acting(base, half, 20):
            base.denoiser(sample, 7, conditioning)
            found = base.denoiser(sample, 7, conditioning).sample
        plain, alone = (base.denoiser(sample, 7, each).sample for each in (conditioning, moved))
    assert not torch.allclose(found, plain)
    assert not torch.allclose(found, alone)
    with torch.no_grad(), acting(base, replace(half, own=conditioning[:, None], values=half.values * 0), 20):
        base.denoiser(sample, 7, conditioning)
        same = base.denoiser(sample, 7, conditioning).sample
    torch.testing.assert_close(same, plain, rtol=1e-9, atol=1e-10)


def rows_of_all_kinds(base, metric):
    one, two, three = (
        gated_concept(base, metric, 1),
        offset_concept(base, metric, 2, "teddy bear", scale=3),
        gated_concept(base, metric, 3, "hat"),
    )
    prompts = [
        row("a {0} next to a {1}", one, two),
        row("a photo of a mug"),
        row("a {0} in a {1}", one, three),
        row("a {0} in a {1}", one, three, combine="paper"),
        row("a {0}", one),
        row("a {0}", two),
        row("a {0} next to a {1}", two, one, combine="paper"),
    ]
    return [RenderRow(each, PromptRow(""), seed) for seed, each in enumerate(prompts)]


def test_rows_of_all_kinds_in_a_batch_equal_one_by_one(metric):
    base = small_base()
    rows = rows_of_all_kinds(base, metric)
    together = render(base, metric, rows, SAMPLER)
    for each, picture in zip(rows, together, strict=True):
        [alone] = render(base, metric, [each], SAMPLER)
        assert abs(alone.astype(int) - picture.astype(int)).max() <= 1
    assert (together[2] != together[3]).any()


@pytest.mark.usefixtures("one_thread")
def test_rows_with_one_concept_or_none_are_the_same_bytes_whatever_combine_says(metric):
    base = small_base()
    rows = rows_of_all_kinds(base, metric)
    kept = [rows[1], rows[4], rows[5]]
    paper = [replace(each, positive=replace(each.positive, combine="paper")) for each in kept]
    for one, other in zip(render(base, metric, kept, SAMPLER), render(base, metric, paper, SAMPLER), strict=True):
        assert (one == other).all()
