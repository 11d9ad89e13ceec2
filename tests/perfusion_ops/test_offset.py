"""Recipe `offset`: its masks, its hooks against a naive denoiser, its training, and what it leaves alone."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.attention.masks import density, masks
from perfusion_ops.concept import OffsetConcept
from perfusion_ops.concept_file import ConceptFileError, read_concept, write_concept
from perfusion_ops.conditioning import PromptRow, condition, prompt_row
from perfusion_ops.config import RECIPE_DEFAULTS, TrainingConfig
from perfusion_ops.regions import Regions, acting, everywhere, has_offsets, row_regions
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text import encode, substitute, tokenize
from perfusion_ops.training.checkpoint import read_checkpoint, restore_moments, write_checkpoint
from perfusion_ops.training.draws import draw_rows
from perfusion_ops.training.state import Example, start
from perfusion_ops.training.trainer import Trainer
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


def example(seed=0, *, superclass="mug", photos=4, **config) -> Example:
    g = torch.Generator().manual_seed(seed)
    latents = torch.randn(photos, 4, 8, 8, generator=g).double()
    settings = {"steps": 4, "batch": 4, "seed": seed, "recipe": "offset", **RECIPE_DEFAULTS["offset"], **config}
    return Example(superclass, latents, torch.ones(photos, 1, 8, 8).double(), TrainingConfig(**settings))


# Text


def test_the_superclass_follows_the_token_and_its_end_is_known(base):
    tokens = tokenize(base.tokenizer, "a {0} next to a {1}", ["teddy bear", ""])
    spelt = base.tokenizer.convert_ids_to_tokens(list(tokens.ids[: tokens.length]))
    at = tokens.slots.index(0)
    assert [word.removesuffix("</w>") for word in spelt[at + 1 : at + 3]] == ["teddy", "bear"]
    assert [place for place, noun in enumerate(tokens.nouns) if noun == 0] == [at + 2]
    assert 1 not in tokens.nouns
    assert len(tokens.nouns) == len(tokens.slots) == len(tokens.ids)
    assert tokenize(base.tokenizer, "a {0}", [""]) == tokenize(base.tokenizer, "a {0}")


def test_a_spelt_out_superclass_is_aligned_word_by_word(base):
    prompt, nouns = "a {0} on a {1}", ["teddy bear", ""]
    tokens = tokenize(base.tokenizer, prompt, nouns)
    plain, align = substitute(base.tokenizer, prompt, ["teddy bear", "mug"], nouns)
    for place, there in enumerate(align):
        if tokens.slots[place] < 0 and place < tokens.length:
            assert tokens.ids[place] == plain.ids[there], place
    assert plain.ids[align[tokens.slots.index(0)]] == plain.ids[align[tokens.nouns.index(0)]]


# Masks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 3))
def test_masks_divide_the_picture_and_leave_unused_slots_out(seed, slots, used_slots):
    g = torch.Generator().manual_seed(seed)
    seen = torch.rand(2, slots, 6, 5, generator=g).double() * 3
    used = torch.zeros(2, slots, dtype=torch.bool)
    used[0, : min(slots, used_slots)] = True
    found = masks(seen, used)
    assert (found >= 0).all()
    assert (found.sum(1) <= 1 + 1e-9).all()
    assert (found[~used] == 0).all()
    count = int(used[0].sum())
    for y in range(6):
        for x in range(5):
            d = [max(float(seen[0, j, y, x]), 1e-6) for j in range(count)]
            powers = [value**6 for value in d]
            shown = 1 / (1 + max(d) ** -4)
            for j in range(count):
                assert float(found[0, j, y, x]) == pytest.approx(powers[j] / sum(powers) * shown, rel=1e-6, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 50))
def test_density_has_a_mean_of_one_whatever_the_layers_scale(seed, scale):
    g = torch.Generator().manual_seed(seed)
    maps = [torch.rand(2, 2, 4, 4, generator=g) + 0.01, torch.rand(2, 2, 8, 8, generator=g) + 0.01]
    found = density(maps, (16, 16))
    torch.testing.assert_close(found.mean((2, 3)), torch.ones(2, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(density([maps[0] * scale, maps[1]], (16, 16)), found, rtol=1e-3, atol=1e-4)


# Hooks


def test_hooks_equal_a_naive_attention(base, metric):
    one, two = offset_concept(base, metric, 1), offset_concept(base, metric, 2, "teddy bear")
    rows = [
        PromptRow("a {0} next to a {1}", (one, two), (0.5,) * 2, (0.1,) * 2),
        PromptRow("a {0}", (two,), (0.5,), (0.1,)),
    ]
    offsets = row_regions(base, rows)
    conditioning = torch.cat(
        [condition(base, metric, [PromptRow("")]).kv.expand(2, -1, -1), condition(base, metric, rows).kv]
    )
    latents = torch.randn(3, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad(), acting(base, offsets, 20):
        found = [base.denoiser(sample, 7, conditioning).sample for sample in latents]

    expected = naive_steps(base, offsets, conditioning, latents)
    for one_found, one_expected in zip(found, expected, strict=True):
        torch.testing.assert_close(one_found, one_expected, rtol=1e-6, atol=1e-8)
    plain = base.denoiser(latents[2], 7, conditioning).sample
    # Unconditional rows are not touched, and no hook is left behind.
    torch.testing.assert_close(found[2][:2], plain[:2], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(found[2][2:], plain[2:])
    torch.testing.assert_close(base.denoiser(latents[0], 7, conditioning).sample, found[0], rtol=1e-9, atol=1e-10)


def test_an_offset_everywhere_is_an_offset_of_the_values(base, metric):
    """The identity that the recipe rests on: attention weights add up to one."""
    row = PromptRow("a {0}", (offset_concept(base, metric, 3),), (0.5,), (0.1,))
    found = condition(base, metric, [row])
    conditioning, moved = found.kv, everywhere(base, [row], found).kv
    split = base.stack.key_rows
    assert torch.equal(moved[..., :split], conditioning[..., :split])
    torch.testing.assert_close(
        moved[..., split:] - conditioning[..., split:], row.concepts[0].value_offset.double().expand(1, 32, -1)
    )
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    offsets = row_regions(base, [row])
    # Without a noun, D is one everywhere, so M is one half.
    doubled = Regions(offsets.values * 2, offsets.nouns * 0, offsets.used)
    with torch.no_grad():
        with acting(base, doubled, 20):
            base.denoiser(sample, 7, conditioning)
            found = base.denoiser(sample, 7, conditioning).sample
        torch.testing.assert_close(found, base.denoiser(sample, 7, moved).sample, rtol=1e-6, atol=1e-7)


def test_strength_scales_the_offset_and_nothing_else(base, metric):
    row = PromptRow("a {0}", (offset_concept(base, metric, 3),), (0.5,), (0.1,))
    half = replace(row, strength=0.5)
    assert torch.equal(row_regions(base, [half]).values, 0.5 * row_regions(base, [row]).values)
    assert torch.equal(condition(base, metric, [half]).kv, condition(base, metric, [row]).kv)


@pytest.mark.usefixtures("one_thread")
def test_without_strength_a_picture_is_that_of_the_word_alone(metric):
    base = small_base()
    row = small_rows(base, metric)[0]
    concept = OffsetConcept(**{**vars(row.positive.concepts[0]), "value_offset": torch.zeros(base.stack.key_rows)})
    word = replace(row, positive=replace(row.positive, concepts=(concept,)))
    still = replace(row, positive=replace(row.positive, strength=0.0))
    [one], [other] = (render(base, metric, [each], SAMPLER) for each in (word, still))
    assert (one == other).all()


def test_a_concept_that_the_prompt_does_not_name_adds_nothing(base, metric):
    row = prompt_row(
        "a mug", (), bias=0.5, temperature=0.1, lock="local", everywhere=(offset_concept(base, metric, 1),)
    )
    assert has_offsets(row)
    assert not row_regions(base, [row]).used.any()


# Rendering


def small_rows(base, metric):
    a, b = offset_concept(base, metric, 1, scale=3), offset_concept(base, metric, 2, "teddy bear", scale=3)
    gated = gated_concept(base, metric, 3, "hat")
    negative = PromptRow("")
    return [
        RenderRow(PromptRow("a {0} on the beach", (a,), (0.5,), (0.1,)), negative, 1),
        RenderRow(PromptRow("a photo of a mug"), negative, 2),
        RenderRow(PromptRow("a {0} next to a {1}", (b, a), (0.5,) * 2, (0.1,) * 2), negative, 3),
        RenderRow(PromptRow("a {0} and a {1}", (gated, a), (0.5,) * 2, (0.1,) * 2, "global"), negative, 4),
        RenderRow(PromptRow("a {0}", (gated,), (0.5,), (0.1,)), negative, 5),
    ]


def test_rows_of_all_kinds_in_a_batch_equal_one_by_one(metric):
    base = small_base()
    rows = small_rows(base, metric)
    together = render(base, metric, rows, SAMPLER)
    for row, picture in zip(rows, together, strict=True):
        [alone] = render(base, metric, [row], SAMPLER)
        assert abs(alone.astype(int) - picture.astype(int)).max() <= 1


@pytest.mark.usefixtures("one_thread")
def test_rows_without_an_offset_are_the_same_bytes_as_in_a_batch_of_their_own(metric):
    base = small_base()
    rows = small_rows(base, metric)
    together = render(base, metric, rows, SAMPLER)
    apart = render(base, metric, [rows[1], rows[4]], SAMPLER)
    assert (together[1] == apart[0]).all()
    assert (together[4] == apart[1]).all()


def test_an_offset_changes_the_picture(metric):
    base = small_base()
    row = small_rows(base, metric)[0]
    word = OffsetConcept(**{**vars(row.positive.concepts[0]), "value_offset": torch.zeros(base.stack.key_rows)})
    plain = RenderRow(PromptRow(row.positive.prompt, (word,), (0.5,), (0.1,)), row.negative, row.seed)
    [with_it], [without] = (render(base, metric, [each], SAMPLER) for each in (row, plain))
    assert (with_it != without).any()


# Training


def test_exactly_the_embedding_and_the_offset_learn(base, metric):
    weight = base.stack.weight.clone()
    before = {name: tensor.clone() for name, tensor in base.texts.models[0].encoder.state_dict().items()}
    trainer = Trainer(base, metric, [example()])
    fresh = start(base, example())
    assert (fresh.value_target == 0).all()
    trainer.run()
    [state] = trainer.states
    assert (state.embedding != fresh.embedding).any()
    assert (state.value_target != 0).any()
    assert torch.equal(base.stack.weight, weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.texts.models[0].encoder.state_dict().items())
    concept = state.concept(trainer.examples[0], base, metric)
    assert isinstance(concept, OffsetConcept)
    assert set(concept.tensors()) == {"embedding", "value_offset"}


def test_the_first_step_equals_a_hand_made_one(base, metric):
    trainer = Trainer(base, metric, [example(batch=1, photos=1, steps=1, decay="none")])
    [state] = trainer.states
    generator = torch.Generator().manual_seed(0)
    torch.randint(1, (1,), generator=generator)
    template = int(torch.randint(3, (1,), generator=generator))
    step = int(torch.randint(100, (1,), generator=generator))
    torch.randint(2, (1,), generator=generator)
    for _ in range(2):
        torch.randperm(1, generator=generator)
    noise = torch.randn((1, 4, 8, 8), generator=generator).double()
    embedding = state.embedding.detach().clone().requires_grad_()
    offset = torch.zeros(base.stack.key_rows, dtype=torch.float64, requires_grad=True)
    text = base.folder.settings.templates[template].format("{0}")
    e = encode(base.texts.models[0].encoder, [tokenize(base.tokenizer, text, ["mug"])], embedding[None, None])
    keys = e @ base.stack.keys.T
    values = e @ base.stack.values.T + offset
    latents = trainer.examples[0].latents
    noisy = base.scheduler.add_noise(latents, noise, torch.tensor([step]))
    predicted = base.denoiser(noisy, step, torch.cat([keys, values], -1)).sample
    (predicted - noise).square().mean().backward()
    trainer.run()
    # Adam's first step is the sign of the gradient times the step size.
    torch.testing.assert_close(state.value_target, -0.01 * offset.grad.sign(), rtol=1e-3, atol=1e-5)
    moved = state.embedding - embedding
    torch.testing.assert_close(moved, -0.006 * embedding.grad.sign(), rtol=1e-3, atol=1e-5)


def test_both_recipes_in_one_group_equal_each_alone(base, metric):
    examples = [
        example(1),
        example(2, recipe="paper", decay="none", stratified=False),
        example(3, superclass="hat", steps=6),
    ]
    together = Trainer(base, metric, examples)
    together.run()
    for number, single in enumerate(examples):
        alone = Trainer(base, metric, [single])
        alone.run()
        for name, parameter in alone.states[0].parameters().items():
            torch.testing.assert_close(together.states[number].parameters()[name], parameter, rtol=1e-8, atol=1e-8)


def test_a_resumed_training_follows_the_same_decay(base, metric):
    whole = Trainer(base, metric, [example()])
    whole.run()
    first = Trainer(base, metric, [example()])
    first.advance(2)
    data = write_checkpoint(first.states[0], first.optimizer)
    state, moments = read_checkpoint(data, start(base, example()))
    rest = Trainer(base, metric, [example()], states=[state])
    restore_moments(rest.optimizer, state, moments)
    rest.run()
    torch.testing.assert_close(rest.states[0].value_target, whole.states[0].value_target, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rest.states[0].embedding, whole.states[0].embedding, rtol=1e-12, atol=1e-12)


def test_step_sizes_fall_as_a_cosine(base, metric):
    rates = []
    trainer = Trainer(base, metric, [example(steps=10, lr_value=1.0, lr_embedding=0.5)])
    trainer.run(lambda each: rates.append([group["lr"] for group in each.optimizer.param_groups]))
    for step, (embedding, value) in enumerate(rates):
        expected = 0.02 + 0.98 * (1 + math.cos(math.pi * step / 10)) / 2
        assert value == pytest.approx(expected)
        assert embedding == pytest.approx(expected / 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 6))
def test_stratified_rows_cover_timesteps_and_photos(seed, batch, photos):
    generator = torch.Generator().manual_seed(seed)
    given = example(seed, batch=batch, photos=photos)
    for _ in range(3):
        draws = draw_rows(0, given, generator, templates=3, timesteps=100)
        for row, draw in enumerate(draws):
            assert row * 100 // batch <= draw.timestep <= ((row + 1) * 100 - 1) // batch
        counts = [sum(draw.image == photo for draw in draws) for photo in range(photos)]
        assert max(counts) - min(counts) <= 1


# Settings and files


def test_another_recipe_brings_its_own_defaults():
    paper = TrainingConfig(steps=200, batch=4, lr_value=0.02)
    offset = paper.overridden({"recipe": "offset"})
    assert (offset.steps, offset.batch, offset.lr_value, offset.decay) == (200, 4, 0.01, "cosine")
    assert paper.overridden({"recipe": "offset", "lr_value": 0.5}).lr_value == 0.5
    assert paper.overridden({"recipe": "paper"}) == paper
    assert offset.overridden({"recipe": "paper"}).lr_value == 0.03
    assert offset.overridden({"steps": 7}).decay == "cosine"


def test_a_concept_file_of_each_recipe_is_read_as_what_it_is(base, metric):
    concept = offset_concept(base, metric, 1, "teddy bear")
    data = write_concept(concept, key="k" * 64)
    sizes = {"embedding_width": 24, "text_width": 24, "value_width": base.stack.key_rows}
    binding = {"base_digest": base.folder.digest, "metric_digest": metric.digest}
    back = read_concept(data, **binding, **sizes, key="k" * 64)
    assert isinstance(back, OffsetConcept)
    assert back.superclass == "teddy bear"
    torch.testing.assert_close(back.value_offset, concept.value_offset, rtol=1e-3, atol=1e-3)
    for changed in ({"value_width": 3}, {"embedding_width": 3}):
        with pytest.raises(ConceptFileError, match="expected float16 or float32"):
            read_concept(data, **binding, **{**sizes, **changed})
    with pytest.raises(ConceptFileError, match="another base model"):
        read_concept(data, **{**binding, "base_digest": "e" * 64}, **sizes)
    with pytest.raises(ConceptFileError, match="has the format 'perfusion-other"):
        read_concept(data.replace(b"perfusion-offset-1", b"perfusion-otherx-1"), **binding, **sizes)


def test_a_file_at_the_width_of_stable_diffusion_is_small():
    concept = OffsetConcept("teddy bear", torch.zeros(768), torch.zeros(12_480), "d" * 64, "m" * 64, 0.1)
    assert sum(tensor.numel() for tensor in concept.tensors().values()) == 13_248
    assert len(write_concept(concept, key="k" * 64)) <= 27_500
