"""PixArt-Sigma, a transformer: equal to the unmodified pipeline without concepts, and trained with the edit."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from perfusion_ops.base.folder import describe
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer
from perfusion_ops.conditioning import PromptRow, condition
from perfusion_ops.config import MetricConfig, TrainingConfig
from perfusion_ops.families.family import MASK
from perfusion_ops.metric import estimate
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text import PromptTooLongError
from perfusion_ops.training.examples import make_example
from perfusion_ops.training.state import start
from perfusion_ops.training.trainer import Trainer
from tests.support.concepts import gated_concept
from tests.support.tiny_base import naive_edit, random_metric
from tests.support.tiny_pixart import WIDTH, pixart_base, pixart_folder, pixart_pipeline

SAMPLER = Sampler(16, 16, 3, 4.0, "dpm++")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pixart_base(tmp_path_factory.mktemp("pixart") / "base")


@pytest.fixture(scope="module")
def metric(base):
    return random_metric(WIDTH, base_digest=base.folder.metric_digest)


@pytest.mark.parametrize("negative", ["", "a dark photo"])
def test_without_concepts_it_is_the_unmodified_pipeline(base, negative):
    texts = ("A red mug on the beach", "a hat in the snow")
    pipe = pixart_pipeline()
    pipe.transformer.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    wanted = pipe(
        list(texts),
        negative_prompt=negative,
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        use_resolution_binning=False,
        clean_caption=False,
        output_type="pt",
    ).images
    rows = [RenderRow(PromptRow(text), PromptRow(negative), seed) for text, seed in zip(texts, (5, 6), strict=True)]
    pixels = (wanted.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    found = render(base, random_metric(WIDTH), rows, SAMPLER)
    assert (found[0] != found[1]).any()
    for picture, reference in zip(found, pixels, strict=True):
        # A bias is added behind the product here and inside it there, which rounds differently.
        assert abs(picture.astype(int) - reference.astype(int)).max() <= 1


def test_encodings_are_those_behind_the_shared_projection(base):
    pipe = pixart_pipeline()
    wanted, mask, _, _ = pipe.encode_prompt("a red mug in the snow", do_classifier_free_guidance=False, device="cpu")
    found = base.texts.encode([base.texts.tokenize("a red mug in the snow")])
    assert torch.equal(found.extra[MASK], mask)
    torch.testing.assert_close(found.encodings, pipe.transformer.caption_projection(wanted))
    assert base.denoiser.caption_projection is None


def test_the_edit_equals_the_naive_reference_and_biases_stay(base, metric):
    one = gated_concept(base, metric, 1)
    row = PromptRow("a photo of a {0} on the beach", (one,), (0.5,), (0.15,))
    found = condition(base, metric, [row]).kv[0]
    tokens = base.texts.tokenize(row.prompt)
    e = base.texts.encode([tokens], one.embedding[None, None]).encodings[0].detach()
    for place in range(tokens.length):
        wanted = naive_edit(
            e[place], base.stack.weight, metric.inverse, [(one.target_input, one.outputs(base.stack), 0.5, 0.15)]
        )
        torch.testing.assert_close(found[place].double(), wanted, rtol=1e-3, atol=1e-3)
    unmodified = pixart_pipeline().transformer.transformer_blocks[1].attn2.to_v
    plain = condition(base, metric, [PromptRow("a mug")]).kv
    e = base.texts.encode([base.texts.tokenize("a mug")]).encodings
    layer = base.denoiser.transformer_blocks[1].attn2.to_v
    torch.testing.assert_close(layer(plain), unmodified(e), rtol=1e-5, atol=1e-6)


def test_a_mixed_batch_equals_its_rows(base, metric):
    a, b = gated_concept(base, metric, 1), gated_concept(base, metric, 2, "teddy bear")
    positive = [
        PromptRow("a photo of a {0} on the beach", (a,), (0.5,), (0.15,)),
        PromptRow("a {1} next to a {0}", (a, b), (0.4, 0.7), (0.1, 0.3)),
        PromptRow("a photo of a mug"),
        PromptRow("a {0} in the snow", (b,), (0.4,), (0.15,), "global"),
    ]
    rows = [RenderRow(row, PromptRow(""), seed) for seed, row in enumerate(positive)]
    together = render(base, metric, rows, SAMPLER)
    for row, picture in zip(rows, together, strict=True):
        [alone] = render(base, metric, [row], SAMPLER)
        assert abs(picture.astype(int) - alone.astype(int)).max() <= 1
    assert (together[0] != together[2]).any()


def test_concepts_trained_together_equal_each_alone(base, metric):
    config = TrainingConfig(steps=3, batch=4)
    examples = []
    for seed, name in enumerate(("mug", "teddy bear")):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        examples.append(make_example(base, name, [(Image.fromarray(pixels.numpy()), None)], config))
    together = Trainer(base, metric, examples, micro_batch=3)
    together.run()
    for example, state in zip(examples, together.states, strict=True):
        alone = Trainer(base, metric, [example], checkpointed=True)
        alone.run()
        [single] = alone.states
        assert single.loss == pytest.approx(state.loss, rel=1e-4)
        fresh = start(base, example).parameters()
        for name, parameter in single.parameters().items():
            torch.testing.assert_close(state.parameters()[name], parameter, rtol=1e-3, atol=1e-4)
            assert (parameter != fresh[name]).any()


def test_the_superclass_is_the_mean_of_its_tokens(base):
    example = make_example(base, "teddy bear", [(Image.new("RGB", (20, 20)), None)], TrainingConfig())
    found = start(base, example).superclass_input
    rows = [base.texts.tokenize(each.format("{0}"), ("teddy bear",), {0}) for each in base.folder.settings.templates]
    encodings = base.texts.encode(rows).encodings
    ends = [row.nouns.index(0) for row in rows]
    wanted = torch.stack([encodings[n, end - 1 : end + 1].mean(0) for n, end in enumerate(ends)]).mean(0)
    torch.testing.assert_close(found, wanted)


def test_prompts_are_counted_and_cut_as_the_family_reads_them(base):
    counter = TokenCounter(load_tokenizer(base.folder))
    assert (counter.limit, counter.marks) == (300, 1)
    longest = "mug " * 299
    assert counter.count(longest) + counter.marks == 300
    assert base.texts.tokenize(longest).length == 300
    with pytest.raises(PromptTooLongError):
        base.texts.tokenize(longest + "mug")
    assert base.texts.tokenize("A Red MUG") == base.texts.tokenize("a red mug")


def test_the_metric_is_estimated_behind_the_projection(base):
    words = "red teddy mug hat bear beach snow dark photo good".split()  # noqa: SIM905
    g = torch.Generator().manual_seed(0)
    captions = [" ".join(words[int(k)] for k in torch.randint(len(words), (7,), generator=g)) for _ in range(400)]
    metric = estimate(
        base.texts,
        captions[:300],
        held_out=captions[300:],
        config=MetricConfig(),
        base_digest=base.folder.metric_digest,
    )
    assert metric.second_moment.shape == (WIDTH, WIDTH)


def test_the_vocabulary_belongs_to_the_identity(base, tmp_path):
    folder = pixart_folder(tmp_path)
    assert describe(folder).digest == base.folder.digest
    (folder / "tokenizer" / "spiece.model").write_bytes(b"other words")
    other = describe(folder)
    assert base.folder.digest != other.digest
    assert base.folder.metric_digest != other.metric_digest
    assert replace(other, digest="").text_digest == other.metric_digest
