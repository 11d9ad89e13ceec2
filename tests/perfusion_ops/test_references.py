"""Photos that a concept keeps: attention to them against loops, rows that see them, their file, their settings."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perfusion_ops.attention.maps import grid
from perfusion_ops.attention.references import ReferenceAttention, installed, seeing, self_attentions
from perfusion_ops.concept import OffsetConcept, References
from perfusion_ops.concept_file import ConceptFileError, read_concept, write_concept
from perfusion_ops.conditioning import prompt_row
from perfusion_ops.config import RECIPE_DEFAULTS, TrainingConfig
from perfusion_ops.regions import acting, condition_regions, has_references
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.tensors import tensor_file
from perfusion_ops.training.state import Example, start
from tests.support.concepts import offset_concept
from tests.support.tiny_base import random_metric, small_base

SAMPLER = Sampler(16, 16, 6, 4.0, "ddim")


@pytest.fixture(scope="module")
def base():
    """A base whose self-attention counts for more than that of random weights."""
    made = small_base(dtype=torch.float64)
    for _, attention in self_attentions(made.denoiser):
        attention.to_out[0].weight.data *= 30
    return made


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


def photos(seed, count, side=8, channels=4) -> References:
    g = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, side, side, generator=g) < 0.4
    return References(torch.randn(count, channels, side, side, generator=g), masks)


def concept(base, metric, seed, count, superclass="mug") -> OffsetConcept:
    kept = photos(seed, count) if count else None
    return offset_concept(base, metric, seed, superclass, scale=0.5, references=kept)


def row(text, *concepts, seed=0, combine="paper") -> RenderRow:
    acts = {"bias": 0.6, "temperature": 0.15, "lock": "local"}
    return RenderRow(prompt_row(text, concepts, combine=combine, **acts), prompt_row("", (), **acts), seed)


# The attention


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), concepts=st.integers(1, 3), heads=st.sampled_from([1, 2, 3]))
def test_attention_to_photos_has_the_weights_of_the_formula(seed, concepts, heads):
    g = torch.Generator().manual_seed(seed)
    rows, queries, own, seen, width = 2, 5, 4, 6, 4 * heads
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    query, k, v, photo_k, photo_v = (draw(rows, n, width) for n in (queries, own, own, seen, seen))
    cover, weight = draw(rows, queries, concepts), draw(rows, seen)
    slots = torch.randint(concepts, (rows, seen), generator=g)
    got = seeing(query, (k, v), (photo_k, photo_v), cover, (slots, weight), heads=heads, scale=0.4)
    for b in range(rows):
        for head in range(heads):
            part = slice(4 * head, 4 * head + 4)
            for x in range(queries):
                weights = [math.exp(0.4 * float(query[b, x, part] @ k[b, y, part])) for y in range(own)]
                for z in range(seen):
                    there = math.exp(float(cover[b, x, slots[b, z]])) * math.exp(float(weight[b, z]))
                    weights.append(math.exp(0.4 * float(query[b, x, part] @ photo_k[b, z, part])) * there)
                shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
                expected = shares @ torch.cat([v[b, :, part], photo_v[b, :, part]])
                torch.testing.assert_close(got[b, x, part], expected, rtol=1e-9, atol=1e-9)


class Naive:
    """Self-attention that sees the photos, with weights written out, one row at a time."""

    def __init__(self, batch, masks, size):
        self.batch, self.masks, self.size, self.kept, self.photos = batch, masks, size, {}, False

    def processor(self, name):
        def call(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            if self.photos:
                self.kept[name] = k, v
            out, width = torch.zeros_like(q), q.shape[2] // attn.heads
            for n in range(len(q)):
                for head in range(attn.heads):
                    part = slice(head * width, (head + 1) * width)
                    weights, values = (q[n, :, part] @ k[n, :, part].T * attn.scale).exp(), v[n, :, part]
                    for photo, slot in self.seen(n - (len(q) - len(self.batch.shown))):
                        keys, more = (each[photo, :, part] for each in self.kept[name])
                        there = self.shrunk(self.batch.masks[photo], len(keys))
                        here = self.shrunk(self.masks[n - len(q), slot], q.shape[1])
                        seen = (q[n, :, part] @ keys.T * attn.scale).exp() * here[:, None] * there
                        weights, values = torch.cat([weights, seen], 1), torch.cat([values, more])
                    out[n, :, part] = (weights / weights.sum(1, keepdim=True)) @ values
            return attn.to_out[1](attn.to_out[0](out))

        return call

    def seen(self, row):
        if row < 0 or self.photos:
            return []
        pairs = zip(self.batch.shown[row].tolist(), self.batch.slots[row].tolist(), strict=True)
        return [(photo, slot) for photo, slot in pairs if photo >= 0]

    def shrunk(self, mask, places):
        return torch.nn.functional.adaptive_avg_pool2d(mask[None], grid(places, self.size)).flatten().clamp_min(1e-6)


def prompts_of_two(base, metric):
    first, second = concept(base, metric, 1, 2), concept(base, metric, 2, 1, "teddy bear")
    acts = {"bias": 0.6, "temperature": 0.15, "lock": "local"}
    return [prompt_row("a {0} and a {1}", (first, second), **acts), prompt_row("a {0}", (second,), **acts)]


@pytest.mark.parametrize("unconditional", [True, False])
def test_the_denoiser_sees_photos_as_loops_do(base, metric, unconditional):
    told, regions = condition_regions(base, metric, prompts_of_two(base, metric))
    batch = regions.references
    assert batch.shown.tolist() == [[0, 1, 2], [2, -1, -1]]
    assert batch.slots[0].tolist() == [0, 0, 1]
    kv = torch.cat([torch.zeros_like(told.kv), told.kv]) if unconditional else told.kv
    g = torch.Generator().manual_seed(3)
    sample = torch.randn(len(kv), 4, 8, 8, generator=g, dtype=torch.float64)
    masks = torch.rand(2, 2, 8, 8, generator=g, dtype=torch.float64)
    attention = ReferenceAttention(base.denoiser, batch)
    with torch.no_grad(), installed(base.denoiser, attention):
        attention.begin(torch.tensor(40), masks, (8, 8))
        found = base.denoiser(sample, 40, kv).sample

    naive, before = Naive(batch, masks, (8, 8)), base.denoiser.attn_processors
    base.denoiser.set_attn_processor(
        {name: naive.processor(name) if "attn1" in name else AttnProcessor() for name in before}
    )
    try:
        with torch.no_grad():
            share = base.scheduler.alphas_cumprod[40].double()
            naive.photos = True
            noisy = share.sqrt() * batch.latents.double() + (1 - share).sqrt() * batch.noise.double()
            base.denoiser(noisy, 40, batch.kv)
            naive.photos = False
            expected = base.denoiser(sample, 40, kv).sample
    finally:
        base.denoiser.set_attn_processor(before)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        plain = base.denoiser(sample, 40, kv).sample
    assert (found[-2:] - plain[-2:]).abs().max() > 1e-3
    torch.testing.assert_close(found[:-2], plain[:-2], rtol=1e-9, atol=1e-9)  # unconditional rows see nothing


def test_photos_are_seen_in_the_second_half_of_the_schedule_alone(base, metric):
    told, regions = condition_regions(base, metric, prompts_of_two(base, metric))
    sample, masks = torch.ones(2, 4, 8, 8, dtype=torch.float64), torch.ones(2, 2, 8, 8, dtype=torch.float64)
    attention = ReferenceAttention(base.denoiser, regions.references)
    with torch.no_grad(), installed(base.denoiser, attention):
        for timestep, covered, opens in ((51, masks, False), (50, masks, True), (3.7, masks, True), (0, None, False)):
            attention.begin(timestep, covered, (8, 8))
            assert attention.is_open == opens
            drawn = base.denoiser(sample, timestep, told.kv).sample
            assert drawn.isfinite().all()


def test_the_processors_are_given_back(base, metric):
    before = {name: type(each) for name, each in base.denoiser.attn_processors.items()}
    _, regions = condition_regions(base, metric, prompts_of_two(base, metric))
    with pytest.raises(KeyError, match="inside"), acting(base, regions, 3):
        raise KeyError("inside")
    assert {name: type(each) for name, each in base.denoiser.attn_processors.items()} == before
    assert AttnProcessor2_0 in before.values()


# Rows


def test_mixed_rows_equal_each_alone(base, metric):
    few, many, none = concept(base, metric, 1, 1), concept(base, metric, 2, 3), concept(base, metric, 3, 0, "hat")
    rows = [
        row("a photo of a {0}", few, seed=1),
        row("a {0} on a table", many, seed=2),
        row("a {0}", none, seed=3),
        row("a {0} next to a {1}", few, many, seed=4, combine="regional"),
        row("a {0} next to a {1}", none, many, seed=5),
        row("a table", seed=6),
        row("a {0} on a table", many, seed=7),
    ]
    together = render(base, metric, rows, SAMPLER)
    for each, picture in zip(rows, together, strict=True):
        [alone] = render(base, metric, [each], SAMPLER)
        assert abs(alone.astype(int) - picture.astype(int)).max() <= 1


def test_rows_without_photos_keep_their_bytes(base, metric):
    with_photos, none = concept(base, metric, 2, 3), concept(base, metric, 3, 0, "hat")
    plain = [row("a {0}", none, seed=3), row("a {0} here", none, seed=4)]
    alone = render(base, metric, plain, SAMPLER)
    mixed = render(base, metric, [plain[0], row("a {0}", with_photos, seed=1), plain[1]], SAMPLER)
    assert (mixed[0] == alone[0]).all()
    assert (mixed[2] == alone[1]).all()


def test_photos_change_the_picture_and_all_of_them_count(base, metric):
    kept = concept(base, metric, 2, 3)
    first = replace(kept, references=References(kept.references.latents[:1], kept.references.masks[:1]))
    unseen = replace(kept, references=References(kept.references.latents, torch.zeros(3, 8, 8, dtype=torch.bool)))
    none = replace(kept, references=None)
    three, one, covered, without = (
        render(base, metric, [row("a {0}", each, seed=1)], SAMPLER)[0].astype(int)
        for each in (kept, first, unseen, none)
    )
    assert abs(three - one).max() > 2
    assert abs(one - without).max() > 2
    assert abs(covered - without).max() <= 1  # a photo without a product shows nothing


def test_a_concept_that_a_prompt_does_not_name_is_not_seen(base, metric):
    kept, none = concept(base, metric, 2, 3), concept(base, metric, 3, 0, "hat")
    without = replace(kept, references=None)
    first, second = (render(base, metric, [row("a {1}", each, none, seed=1)], SAMPLER)[0] for each in (kept, without))
    assert abs(first.astype(int) - second.astype(int)).max() <= 1


def test_videos_and_other_latents_are_refused(base, metric):
    rows = [row("a {0}", concept(base, metric, 1, 2))]
    assert has_references(rows[0].positive)
    with pytest.raises(ValueError, match="videos are drawn: train it with references 0"):
        render(base, metric, rows, replace(SAMPLER, frames=2))
    folder = replace(base.folder, drawn_by="inpaint")
    with pytest.raises(ValueError, match="the base model is for inpainting: train it with references 0"):
        condition_regions(replace(base, folder=folder), metric, [rows[0].positive])
    other = replace(rows[0].positive.concepts[0], references=photos(1, 2, channels=5))
    with pytest.raises(ValueError, match="another shape than the base model's: train it again"):
        render(base, metric, [row("a {0}", other)], SAMPLER)


# Training and settings


def example(photos=4, **config) -> Example:
    g = torch.Generator().manual_seed(0)
    trained = {"recipe": "offset", **RECIPE_DEFAULTS["offset"], **config}
    masks = torch.rand(photos, 1, 8, 8, generator=g).double()
    return Example("mug", torch.randn(photos, 4, 8, 8, generator=g).double(), masks, TrainingConfig(**trained))


@pytest.mark.parametrize(
    ("references", "photos", "flip", "kept"), [(0, 4, False, 0), (2, 4, False, 2), (8, 4, False, 4), (3, 4, True, 2)]
)
def test_the_first_photos_are_kept_as_many_as_there_are(base, metric, references, photos, flip, kept):
    made = example(photos, references=references, flip=flip)
    found = start(base, made).concept(made, base, metric)
    if not kept:
        assert found.references is None
        return
    torch.testing.assert_close(found.references.latents, made.latents[:kept].float())
    assert torch.equal(found.references.masks, made.masks[:kept, 0] > 0.5)


def test_references_belong_to_recipe_offset():
    with pytest.raises(ValidationError, match="less than or equal to 8"):
        TrainingConfig(references=9)
    offset = TrainingConfig().overridden({"recipe": "offset", "references": 2})
    assert offset.references == 2
    assert offset.overridden({"recipe": "paper"}).references == 0


# The file


def read(data, base, metric):
    return read_concept(
        data,
        base_digest=base.folder.digest,
        metric_digest=metric.digest,
        embedding_width=24,
        text_width=24,
        value_width=base.stack.key_rows,
    )


def test_the_file_keeps_photos_in_eight_bits(base, metric):
    made = concept(base, metric, 4, 3)
    data = write_concept(made)
    assert data == write_concept(made)
    back = read(data, base, metric)
    step = made.references.latents.abs().max() / 127
    assert (back.references.latents - made.references.latents).abs().max() <= step / 2 * 1.01
    assert torch.equal(back.references.masks, made.references.masks)
    # What is read is written as the same bytes again.
    assert write_concept(back) == data
    assert tensor_file.read(data, "perfusion-reference-1")[0]["format"] == "perfusion-reference-1"


def test_a_packed_concept_for_siblings_keeps_photos(base, metric):
    made = replace(concept(base, metric, 4, 3), text_digest="t" * 64)
    back = read(write_concept(made, packed=True), base, metric)
    assert back.text_digest == "t" * 64
    assert back.references.latents.shape == (3, 4, 8, 8)
    assert (back.value_offset - made.value_offset).abs().max() < 0.02


def test_four_photos_of_stable_diffusion_fit_into_100_kb():
    g = torch.Generator().manual_seed(0)
    kept = References(torch.randn(4, 4, 64, 64, generator=g), torch.rand(4, 64, 64, generator=g) < 0.4)
    made = OffsetConcept("mug", torch.zeros(768), torch.zeros(12_480), "d" * 64, "m" * 64, references=kept)
    one = replace(made, references=References(kept.latents[:1], kept.masks[:1]))
    assert len(write_concept(one)) < 46_000
    assert len(write_concept(made)) < 100_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_masks": None}, "has no reference_masks: it is damaged"),
        ({"reference_latents_scale": None}, "has no reference_latents_scale: it is damaged"),
        ({"reference_latents": torch.zeros(4, 8, 8, dtype=torch.int8)}, r"has the shape \(4, 8, 8\), expected 1 to 8"),
        ({"reference_latents": torch.zeros(9, 4, 8, 8, dtype=torch.int8)}, r"has the shape \(9, 4, 8, 8\)"),
        ({"reference_latents": torch.zeros(3, 4, 8, 8)}, "reference_latents is torch.float32"),
        ({"reference_latents": torch.zeros(3, 4, 8, 2000, dtype=torch.int8)}, "sides of at most 1024"),
        (
            {"reference_masks": torch.zeros(3, 7, dtype=torch.uint8)},
            r"reference_masks is torch.uint8 of shape \(3, 7\), e",
        ),
        ({"reference_masks": torch.zeros(3, 8)}, r"reference_masks is torch.float32"),
        ({"reference_latents_scale": torch.full((6,), torch.inf).half()}, "values that are not finite"),
        ({"reference_latents_scale": torch.ones(5).half()}, r"with \(5,\) scales, expected"),
        ({"reference_latents_scale": torch.ones(6)}, "reference_latents_scale is torch.float32"),
        ({"more": torch.ones(6)}, "the concept file holds"),
    ],
)
def test_a_damaged_file_is_refused(base, metric, change, message):
    data = write_concept(concept(base, metric, 4, 3))
    metadata, tensors = tensor_file.read(data, "perfusion-reference-1")
    broken = {name: each for name, each in {**tensors, **change}.items() if each is not None}
    with pytest.raises(ConceptFileError, match=message):
        read(tensor_file.write(broken, metadata), base, metric)


def test_latents_that_are_not_finite_are_not_written(base, metric):
    made = concept(base, metric, 4, 3)
    made.references.latents[0, 0, 0, 0] = torch.nan
    with pytest.raises(ConceptFileError, match="reference_latents of the concept cannot be stored"):
        write_concept(made)
