"""The edit of convolutions: against loops and changed weights, in mixed batches, its training and its file."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perfusion_ops import regions
from perfusion_ops.attention import convolutions
from perfusion_ops.attention.convolutions import (
    ConvolutionBatch,
    ConvolutionEdit,
    added,
    edited,
    edited_layers,
    fresh,
    widths,
)
from perfusion_ops.concept import OffsetConcept, References
from perfusion_ops.concept_file import ConceptFileError, read_concept, write_concept
from perfusion_ops.conditioning import prompt_row
from perfusion_ops.config import RECIPE_DEFAULTS, TrainingConfig
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.tensors import tensor_file
from perfusion_ops.training.checkpoint import read_checkpoint, restore_moments, write_checkpoint
from perfusion_ops.training.state import Example, start
from perfusion_ops.training.trainer import Trainer
from tests.support.concepts import offset_concept
from tests.support.tiny_base import random_metric, small_base

SAMPLER = Sampler(16, 16, 4, 4.0, "ddim")


@pytest.fixture(scope="module")
def base():
    return small_base(dtype=torch.float64)


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


def edit(base, seed, rank=1, scale=0.3) -> ConvolutionEdit:
    made = fresh(edited_layers(base.denoiser), rank, seed)
    g = torch.Generator().manual_seed(seed + 1)
    return replace(made, writes=scale * torch.randn(made.writes.shape, generator=g))


def concept(base, metric, seed, *, rank=1, superclass="mug", photos=0) -> OffsetConcept:
    g = torch.Generator().manual_seed(seed + 2)
    kept = References(torch.randn(photos, 4, 8, 8, generator=g), torch.ones(photos, 8, 8) > 0) if photos else None
    edits = edit(base, seed, rank) if rank else None
    return offset_concept(base, metric, seed, superclass, scale=0.5, references=kept, convolutions=edits)


def row(text, *concepts, seed=0, combine="paper", strength=1.0) -> RenderRow:
    acts = {"bias": 0.6, "temperature": 0.15, "lock": "local"}
    positive = prompt_row(text, concepts, combine=combine, strength=strength, **acts)
    return RenderRow(positive, prompt_row("", (), **acts), seed)


def example(seed=0, **config) -> Example:
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
    chosen = {"steps": 4, "batch": 4, "seed": seed, "recipe": "offset", **RECIPE_DEFAULTS["offset"], "conv_rank": 2}
    return Example("mug", latents, torch.ones(4, 1, 8, 8).double(), TrainingConfig(**{**chosen, **config}))


# The edit


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), slots=st.integers(1, 2), rank=st.integers(1, 2))
def test_it_adds_what_the_formula_says(seed, slots, rank):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    hidden, reads, writes = draw(2, 3, 4, 5), draw(2, slots, rank, 27), draw(2, slots, rank, 6)
    masks = torch.rand(2, slots, 4, 5, generator=g, dtype=torch.float64)
    expected = torch.zeros(2, 6, 4, 5, dtype=torch.float64)
    for b in range(2):
        for y in range(4):
            for x in range(5):
                for j in range(slots):
                    for r in range(rank):
                        kernel, seen = reads[b, j, r].view(3, 3, 3), 0.0
                        for dy in (-1, 0, 1):
                            for dx in (-1, 0, 1):
                                if 0 <= y + dy < 4 and 0 <= x + dx < 5:
                                    seen += float(kernel[:, dy + 1, dx + 1] @ hidden[b, :, y + dy, x + dx])
                        expected[b, :, y, x] += masks[b, j, y, x] * seen * writes[b, j, r]
    torch.testing.assert_close(added(hidden, reads, writes, masks), expected, rtol=1e-10, atol=1e-10)


def test_everywhere_it_is_a_denoiser_with_other_weights(base):
    """Each row has its own; rows before them, the unconditional ones, have none."""
    layers, kinds = edited_layers(base.denoiser), [edit(base, seed, 2) for seed in (1, 2)]
    batch = ConvolutionBatch(
        *(torch.stack([getattr(each, name) for each in kinds])[:, None].double() for name in ("reads", "writes"))
    )
    g = torch.Generator().manual_seed(3)
    sample, kv = (
        torch.randn(3, 4, 8, 8, generator=g).double(),
        torch.randn(3, 7, len(base.stack.weight), generator=g).double(),
    )
    ones = torch.ones(2, 1, 1, 1).double()
    with edited(layers, batch, lambda _height, _width: ones):
        got = base.denoiser(sample, 300, kv).sample
    for n, change in enumerate([None, *kinds]):
        other = copy.deepcopy(base.denoiser)
        if change is not None:
            for layer in edited_layers(other):
                reads, writes = change.reads[:, layer.reads].double(), change.writes[:, layer.writes].double()
                layer.module.weight.data += (writes.T @ reads).view(layer.module.weight.shape)
        wanted = other(sample[n : n + 1], 300, kv[n : n + 1]).sample
        torch.testing.assert_close(got[n : n + 1], wanted, rtol=1e-9, atol=1e-9)
    assert not any(layer.module._forward_hooks for layer in layers)


def test_where_no_edit_acts_the_denoiser_is_what_it_is(base):
    layers = edited_layers(base.denoiser)
    made = edit(base, 1)
    batch = ConvolutionBatch(made.reads[None, None].double(), made.writes[None, None].double())
    sample, kv = torch.ones(1, 4, 8, 8).double(), torch.ones(1, 7, len(base.stack.weight)).double()
    plain = base.denoiser(sample, 300, kv).sample
    with edited(layers, batch, lambda _height, _width: None):
        assert torch.equal(base.denoiser(sample, 300, kv).sample, plain)
    with edited(layers, None, lambda _height, _width: None):
        assert torch.equal(base.denoiser(sample, 300, kv).sample, plain)


def test_a_new_edit_reads_at_the_scale_of_its_input_and_changes_nothing(base):
    layers = edited_layers(base.denoiser)
    made = fresh(layers, 3, 0)
    assert made.reads.shape == (3, widths(layers)[0])
    assert not made.writes.any()
    for layer in layers:
        assert 0.7 < float(made.reads[:, layer.reads].norm(dim=1).mean()) < 1.3
    assert torch.equal(made.reads, fresh(layers, 3, 0).reads)
    assert not torch.equal(made.reads, fresh(layers, 3, 1).reads)


# Rows


def test_mixed_rows_equal_each_alone(base, metric):
    mug, bear = concept(base, metric, 1, rank=2), concept(base, metric, 2, superclass="teddy bear", photos=1)
    plain = concept(base, metric, 3, rank=0)
    rows = [
        row("a {0} on the beach", mug, seed=1),
        row("a {0} and a {1}", mug, bear, seed=2),
        row("a {0} and a {1}", mug, bear, seed=2, combine="regional"),
        row("a {0} and a {1}", plain, bear, seed=3),
        row("a {0}", plain, seed=4),
        row("a mug", seed=5),
    ]
    together = render(base, metric, rows, SAMPLER)
    for each, picture in zip(rows, together, strict=True):
        [alone] = render(base, metric, [each], SAMPLER)
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1
    # Rows without an edit are what they are in a batch without edits, to the bit.
    assert all(
        np.array_equal(one, other)
        for one, other in zip(together[4:], render(base, metric, rows[4:], SAMPLER), strict=True)
    )


def test_renders_edit_where_the_masks_of_the_step_are(base, metric, monkeypatch):
    """Each layer sees the step's own masks at its side, and in the first step, which has none, nothing is edited."""
    made, seen = [], []
    find = regions.masks
    monkeypatch.setattr(regions, "masks", lambda *given: made.append(find(*given)) or made[-1])
    monkeypatch.setattr(
        convolutions, "added", lambda *given: seen.append((given[0].shape[2:], given[3])) or added(*given)
    )
    both = concept(base, metric, 1), concept(base, metric, 2, superclass="teddy bear")
    render(base, metric, [row("a {0} and a {1}", *both)], SAMPLER)
    layers = len(edited_layers(base.denoiser))
    assert len(made) == SAMPLER.steps - 1
    assert len(seen) == layers * len(made)
    for number, (side, masks) in enumerate(seen):
        step = made[number // layers]
        assert float(step.std()) > 0, "masks that are alike everywhere would show nothing"
        assert torch.equal(masks, torch.nn.functional.adaptive_avg_pool2d(step, side))


def test_it_changes_the_picture_as_far_as_the_strength_says(base, metric):
    mug = concept(base, metric, 1)
    [full], [half], [without] = (
        render(base, metric, [row("a {0}", each, strength=strength)], SAMPLER)
        for each, strength in ((mug, 1.0), (mug, 0.5), (replace(mug, convolutions=None), 1.0))
    )
    assert np.abs(full.astype(int) - without.astype(int)).max() > 4
    assert np.abs(full.astype(int) - half.astype(int)).max() > 2
    [off] = render(base, metric, [row("a {0}", mug, strength=0.0)], SAMPLER)
    [none] = render(base, metric, [row("a {0}", replace(mug, convolutions=None), strength=0.0)], SAMPLER)
    assert np.array_equal(off, none)


def test_other_shapes_are_refused(base, metric):
    mug = concept(base, metric, 1)
    other = replace(mug, convolutions=replace(mug.convolutions, reads=mug.convolutions.reads[:, 1:]))
    with pytest.raises(ValueError, match="edits convolutions of another shape than the base model's: train it again"):
        render(base, metric, [row("a {0}", other)], SAMPLER)


# Training


def test_a_group_equals_each_alone_whatever_the_micro_batch(base, metric):
    examples = [example(1), example(2, conv_rank=1), example(3, conv_rank=0), example(4, recipe="paper", conv_rank=0)]
    together = Trainer(base, metric, examples, micro_batch=3)
    together.run()
    for number, single in enumerate(examples):
        alone = Trainer(base, metric, [single])
        alone.run()
        learned = alone.states[0].parameters()
        assert ("conv_writes" in learned) == bool(single.config.conv_rank)
        for name, parameter in learned.items():
            torch.testing.assert_close(together.states[number].parameters()[name], parameter, rtol=1e-8, atol=1e-8)


def test_the_first_step_equals_that_of_a_denoiser_whose_weights_learn(base, metric):
    """The gradient of u at the start, by autograd through changed weights; Adam's first step is almost its sign."""
    single = example(5, steps=1, batch=1, conv_rank=1, lr_conv=0.01)
    trainer = Trainer(base, metric, [single])
    [draw] = Trainer(base, metric, [single]).draw(0)
    other, begin = copy.deepcopy(base), trainer.states[0].convolutions["conv_reads"].detach().clone()
    layers = edited_layers(other.denoiser)
    for layer in layers:
        layer.module.weight.requires_grad_(True)
    kv, _ = trainer._conditioning([(0, draw.template)], [0], trainer._targets([0]))
    clean, noise = single.latents[draw.image][None], draw.noise[None].double()
    noisy = base.scheduler.add_noise(clean, noise, torch.tensor([draw.timestep]))
    predicted = other.denoiser(noisy, draw.timestep, kv.kv.detach()).sample
    (predicted - noise).square().mean().backward()
    trainer.run()
    for layer in layers:
        gradient = layer.module.weight.grad.flatten(1) @ begin[0, layer.reads]
        moved = trainer.states[0].convolutions["conv_writes"][0, layer.writes]
        wanted = -0.01 * gradient / (gradient.abs() + trainer.optimizer.defaults["eps"])
        torch.testing.assert_close(moved, wanted, rtol=1e-6, atol=1e-9)


def test_a_resumed_training_equals_an_uninterrupted_one(base, metric):
    whole = Trainer(base, metric, [example()], checkpointed=True)
    whole.run()
    first = Trainer(base, metric, [example()])
    first.advance(2)
    state, moments = read_checkpoint(write_checkpoint(first.states[0], first.optimizer), start(base, example()))
    rest = Trainer(base, metric, [example()], states=[state])
    restore_moments(rest.optimizer, state, moments)
    rest.run()
    for name, parameter in whole.states[0].parameters().items():
        torch.testing.assert_close(rest.states[0].parameters()[name], parameter, rtol=1e-12, atol=1e-12)
    assert float(whole.states[0].convolutions["conv_writes"].detach().abs().max()) > 0


def test_it_belongs_to_recipe_offset():
    assert TrainingConfig().conv_rank == 0
    assert TrainingConfig(recipe="offset", conv_rank=2).overridden({"recipe": "paper"}).conv_rank == 0
    with pytest.raises(ValidationError, match="conv_rank"):
        TrainingConfig(conv_rank=9)


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


@pytest.mark.parametrize("photos", [0, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_the_file_keeps_it_in_eight_bits(base, metric, photos, shared):
    made = replace(concept(base, metric, 4, rank=3, photos=photos), text_digest="t" * 64 if shared else "")
    data = write_concept(made, packed=shared)
    back = read(data, base, metric)
    for name in ("reads", "writes"):
        one, other = getattr(made.convolutions, name), getattr(back.convolutions, name)
        assert one.shape == other.shape
        assert (one - other).abs().max() <= one.abs().max() / 127 / 2 * 1.01
    assert (back.references is None) == (photos == 0)
    assert back.text_digest == made.text_digest
    # What is read is written as the same bytes again.
    assert write_concept(back, packed=shared) == data


def test_a_trained_edit_is_kept(base, metric):
    trainer = Trainer(base, metric, [example()])
    trainer.run()
    made = trainer.states[0].concept(trainer.examples[0], base, metric)
    assert made.convolutions.reads.shape[0] == 2
    assert made.convolutions.writes.any()
    assert read(write_concept(made), base, metric).convolutions is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_reads": None}, "has no conv_reads: it is damaged"),
        ({"conv_writes_scale": None}, "has no conv_writes_scale: it is damaged"),
        ({"conv_reads": torch.zeros(5, dtype=torch.int8)}, r"conv_reads has the shape \(5,\), expected 1 to 8 ranks"),
        ({"conv_reads": torch.zeros(9, 5, dtype=torch.int8)}, r"conv_reads has the shape \(9, 5\)"),
        ({"conv_writes": torch.zeros(2, 5)}, "conv_writes is torch.float32"),
        ({"conv_reads_scale": torch.ones(2).half()}, r"with \(2,\) scales, expected"),
        (
            {"conv_writes": torch.zeros(3, 4, dtype=torch.int8), "conv_writes_scale": torch.ones(1).half()},
            "conv_reads has 2 ranks and conv_writes 3",
        ),
        ({"more": torch.ones(6)}, "the concept file holds"),
    ],
)
def test_a_damaged_file_is_refused(base, metric, change, message):
    metadata, tensors = tensor_file.read(write_concept(concept(base, metric, 4, rank=2)), "perfusion-convolution-1")
    broken = {name: each for name, each in {**tensors, **change}.items() if each is not None}
    with pytest.raises(ConceptFileError, match=message):
        read(tensor_file.write(broken, metadata), base, metric)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_neither_written_nor_read(base, metric, value):
    made = concept(base, metric, 4)
    metadata, tensors = tensor_file.read(write_concept(made), "perfusion-convolution-1")
    tensors["conv_reads_scale"][0] = value
    with pytest.raises(ConceptFileError, match="values that are not finite"):
        read(tensor_file.write(tensors, metadata), base, metric)
    made.convolutions.writes[0, 0] = value
    with pytest.raises(ConceptFileError, match=r"conv_writes of the concept cannot be stored .a value is not finite"):
        write_concept(made)


def test_two_ranks_at_the_width_of_stable_diffusion_fit_into_100_kb():
    with torch.device("meta"):
        layers = edited_layers(UNet2DConditionModel(cross_attention_dim=768))  # Stable Diffusion 1.5
    assert len(layers) == 6
    assert widths(layers) == (9 * 3 * (640 + 320), 3 * (640 + 320))
    made = OffsetConcept("mug", torch.zeros(768), torch.zeros(12_480), "d" * 64, "m" * 64)
    one, two = (len(write_concept(replace(made, convolutions=fresh(layers, rank, 0)))) for rank in (1, 2))
    assert one < 58_000
    assert two < 88_000
