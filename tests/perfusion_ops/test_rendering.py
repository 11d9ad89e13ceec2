"""Conditioning and rendering: mixed batches equal single runs, locks do what they say, pipelines stay unmodified."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from perfusion_ops.concept_file import read_concept, write_concept
from perfusion_ops.conditioning import PromptRow, condition
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text import PromptTooLongError, encode, substitute, tokenize
from tests.support.concepts import gated_concept
from tests.support.tiny_base import naive_edit, random_metric, small_base, small_parts

SAMPLER = Sampler(16, 16, 4, 4.0, "ddim")


@pytest.fixture(scope="module")
def base():
    return small_base()


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


@pytest.fixture(scope="module")
def rows(base, metric):
    a, b, c = (
        gated_concept(base, metric, 1),
        gated_concept(base, metric, 2, "teddy bear"),
        gated_concept(base, metric, 3, "hat", lock="trained"),
    )
    return [
        PromptRow("a photo of a {0} on the beach", (a,), (0.5,), (0.15,)),
        PromptRow("on the beach, a {1} next to a {0}", (a, b), (0.4, 0.7), (0.1, 0.3)),
        PromptRow("a photo of a mug"),
        PromptRow("a {0} in the snow", (b,), (0.4,), (0.15,), "global"),
        PromptRow("a {0}", (c,), (0.6,), (0.2,), "trained"),
        PromptRow("a {0} and a {0}", (b,), (0.6,), (0.2,)),
        PromptRow("a {0} and a {1} and a {2}", (c, a, b), (0.6, 0.5, 0.4), (0.2, 0.15, 0.1), "global"),
    ]


def test_a_mixed_batch_equals_one_by_one(base, metric, rows):
    together = condition(base, metric, rows).kv
    for index, row in enumerate(rows):
        torch.testing.assert_close(together[index], condition(base, metric, [row]).kv[0], rtol=1e-4, atol=1e-4)


def test_conditioning_equals_the_naive_reference(base, metric, rows):
    for index in (0, 1, 5):
        row = rows[index]
        embeddings = torch.stack([item.embedding for item in row.concepts])[None]
        e = encode(base.texts.models[0].encoder, [tokenize(base.tokenizer, row.prompt)], embeddings)[0].detach()
        outputs = [item.outputs(base.stack) for item in row.concepts]
        wanted = torch.stack(
            [
                naive_edit(
                    token,
                    base.stack.weight,
                    metric.inverse,
                    [
                        (item.target_input, o, bias, temperature)
                        for item, o, bias, temperature in zip(
                            row.concepts, outputs, row.bias, row.temperature, strict=True
                        )
                    ],
                )
                for token in e
            ]
        )
        torch.testing.assert_close(condition(base, metric, [row]).kv[0].double(), wanted, rtol=1e-3, atol=1e-3)


def test_an_unedited_row_in_an_edited_batch_is_the_unmodified_model_to_the_bit(base, metric, rows):
    ids = base.tokenizer("a photo of a mug", padding="max_length", return_tensors="pt")["input_ids"]
    alone = condition(base, metric, [rows[2]]).kv
    assert torch.equal(alone[0], base.texts.models[0].encoder(ids).last_hidden_state[0] @ base.stack.weight.T)
    beside = condition(base, metric, [rows[2], rows[2], rows[0]]).kv
    torch.testing.assert_close(beside[0], alone[0], rtol=1e-5, atol=1e-5)


def test_global_lock_takes_the_keys_of_the_superclass_prompt_and_keeps_the_values(base, metric, rows):
    row = rows[3]
    local = PromptRow(row.prompt, row.concepts, row.bias, row.temperature, "local")
    here, there = condition(base, metric, [row, local]).kv
    split = base.stack.key_rows
    torch.testing.assert_close(here[:, split:], there[:, split:], rtol=1e-5, atol=1e-5)
    tokens, align = substitute(base.tokenizer, row.prompt, ["teddy bear"])
    plain = encode(base.texts.models[0].encoder, [tokens])[0] @ base.stack.keys.T
    torch.testing.assert_close(here[:, :split], plain[list(align)], rtol=1e-5, atol=1e-5)


def test_only_a_trained_lock_uses_trained_keys(base, metric):
    one = gated_concept(base, metric, 3, "hat", lock="trained")
    split = base.stack.key_rows
    assert torch.equal(one.outputs(base.stack, trained_keys=True)[:split], one.key_target)
    torch.testing.assert_close(one.outputs(base.stack)[:split], base.stack.keys @ one.superclass_input)
    rows = [PromptRow("a {0}", (one,), (0.5,), (0.15,), lock) for lock in ("local", "trained")]
    local, trained = condition(base, metric, rows).kv
    assert (local[:, :split] != trained[:, :split]).any()
    torch.testing.assert_close(local[:, split:], trained[:, split:], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="learned no keys"):
        condition(base, metric, [PromptRow("a {0}", (gated_concept(base, metric, 1),), (0.5,), (0.15,), "trained")])


def test_a_local_lock_maps_the_concept_to_the_superclass_key(base, metric):
    one = gated_concept(base, metric, 1)
    torch.testing.assert_close(one.outputs(base.stack)[: base.stack.key_rows], base.stack.keys @ one.superclass_input)


def test_a_prompt_without_the_concept_drifts_less_with_a_higher_bias(base, metric):
    one = gated_concept(base, metric, 1)
    plain = condition(base, metric, [PromptRow("a car in the city")]).kv
    drift = [
        (condition(base, metric, [PromptRow("a car in the city", (one,), (bias,), (0.1,))]).kv - plain).norm()
        for bias in (0.2, 0.6, 1.2)
    ]
    assert drift[0] > drift[1] > drift[2]
    assert drift[2] < 0.5 * plain.norm()


def test_pictures_of_a_mixed_batch_equal_single_ones(base, metric, rows):
    batch = [RenderRow(row, PromptRow("a car" if index % 3 else ""), 100 + index) for index, row in enumerate(rows)]
    together = render(base, metric, batch, SAMPLER)
    for index, row in enumerate(batch):
        (alone,) = render(base, metric, [row], SAMPLER)
        assert alone is not None
        assert together[index] is not None
        assert abs(alone.astype(int) - together[index].astype(int)).max() <= 1


def test_without_concepts_it_is_the_unmodified_pipeline(metric):
    parts = small_parts()
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        ["a mug on the beach"] * 2,
        negative_prompt=["", ""],
        width=16,
        height=16,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="np",
    ).images
    rows = [RenderRow(PromptRow("a mug on the beach"), PromptRow(""), seed) for seed in (5, 6)]
    for picture, reference in zip(render(small_base(), metric, rows, SAMPLER), wanted, strict=True):
        assert abs(picture.astype(int) - (reference * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler", "euler_a", "pndm", "unipc"])
def test_every_scheduler_is_reproducible(base, metric, rows, scheduler):
    sampler = Sampler(16, 24, 2, 3.0, scheduler)
    batch = [RenderRow(rows[0], PromptRow(""), 1), RenderRow(rows[1], PromptRow(""), 2)]
    first, second = (render(base, metric, batch, sampler) for _ in range(2))
    assert first[0].shape == (24, 16, 3)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_a_concept_changes_the_picture_and_storage_does_not(base, metric):
    one = gated_concept(base, metric, 4)
    stored = read_concept(
        write_concept(one),
        base_digest=base.folder.digest,
        metric_digest=metric.digest,
        embedding_width=24,
        text_width=24,
        value_width=base.stack.key_rows,
    )

    def picture(item):
        row = PromptRow("a photo of a {0}", (item,), (0.5,), (0.15,))
        return render(base, metric, [RenderRow(row, PromptRow(""), 7)], SAMPLER)[0].astype(int)

    assert abs(picture(one) - picture(stored)).max() <= 1
    assert abs(picture(one) - picture(gated_concept(base, metric, 5))).max() > 2


def test_one_picture_that_is_not_finite_ends_alone(base, metric, rows):
    bad = gated_concept(base, metric, 5)
    bad.value_target.fill_(float("nan"))
    batch = [
        RenderRow(rows[0], PromptRow(""), 1),
        RenderRow(PromptRow("a {0}", (bad,), (0.5,), (0.15,)), PromptRow(""), 2),
    ]
    good, lost = render(base, metric, batch, SAMPLER)
    assert lost is None
    assert abs(good.astype(int) - render(base, metric, batch[:1], SAMPLER)[0].astype(int)).max() <= 1


def test_a_negative_prompt_may_hold_an_edited_concept(base, metric, rows):
    one = rows[0].concepts[0]
    negative = PromptRow("a {0}", (one,), (0.5,), (0.15,))
    with_it = render(base, metric, [RenderRow(rows[0], negative, 1)], SAMPLER)[0]
    without = render(base, metric, [RenderRow(rows[0], PromptRow(""), 1)], SAMPLER)[0]
    assert (with_it != without).any()


def test_errors_name_the_remedy(base, metric, rows):
    with pytest.raises(PromptTooLongError, match="shorten"):
        condition(base, metric, [PromptRow("on the beach " * 20 + "{0}", rows[0].concepts, (0.5,), (0.15,))])
    with pytest.raises(ValueError, match="concept number"):
        condition(base, metric, [PromptRow("a {1}", rows[0].concepts, (0.5,), (0.15,))])


def test_seeds_of_one_prompt_share_its_encoding(base, metric, rows):
    encoded = []
    hook = base.texts.models[0].encoder.register_forward_pre_hook(lambda _m, ids: encoded.append(len(ids[0])))
    try:
        batch = [RenderRow(rows[number], PromptRow(""), seed) for seed, number in enumerate((0, 0, 1, 0, 2))]
        together = render(base, metric, batch, SAMPLER)
    finally:
        hook.remove()
    assert encoded == [3, 1]
    for row, picture in zip(batch, together, strict=True):
        [alone] = render(base, metric, [row], SAMPLER)
        assert abs(alone.astype(int) - picture.astype(int)).max() <= 1
    assert (together[0] != together[1]).any()
