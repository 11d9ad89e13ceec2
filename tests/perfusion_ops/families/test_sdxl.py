"""SDXL: equal to the unmodified pipeline without concepts, and the method's guarantees with them."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from perfusion_ops.attention.convolutions import edited_layers, fresh
from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.concept import References
from perfusion_ops.concept_file import read_concept, write_concept
from perfusion_ops.conditioning import PromptRow, condition, prompt_row
from perfusion_ops.config import TrainingConfig
from perfusion_ops.families.family import POOLED
from perfusion_ops.metric import metric_from_moment
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.text_models import TextModels
from perfusion_ops.training.examples import make_example
from perfusion_ops.training.state import start
from perfusion_ops.training.trainer import Trainer
from tests.support.concepts import gated_concept, offset_concept
from tests.support.tiny_base import random_metric
from tests.support.tiny_xl import WIDTH, xl_base, xl_folder, xl_pipeline

SAMPLER = Sampler(16, 16, 3, 4.0, "euler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("xl") / "base"


@pytest.fixture(scope="module")
def base(folder):
    return xl_base(folder)


@pytest.fixture(scope="module")
def metric(base):
    return random_metric(WIDTH, base_digest=base.folder.metric_digest)


def test_rows_that_look_at_photos_equal_each_alone(base, metric):
    g = torch.Generator().manual_seed(0)
    plain, other = offset_concept(base, metric, 1), offset_concept(base, metric, 2, "teddy bear")
    seen = replace(
        plain, references=References(torch.randn(2, 4, 8, 8, generator=g), torch.ones(2, 8, 8, dtype=torch.bool))
    )
    acts = {"bias": 0.6, "temperature": 0.15, "lock": "local"}
    rows = [
        RenderRow(prompt_row(text, concepts, **acts), PromptRow(""), seed)
        for seed, (text, *concepts) in enumerate(
            (("a photo of a {0}", seen), ("a {0} next to a {1}", other, seen), ("a {0}", plain))
        )
    ]
    sampler = replace(SAMPLER, steps=6)
    together = render(base, metric, rows, sampler)
    for row, picture in zip(rows, together, strict=True):
        assert abs(render(base, metric, [row], sampler)[0].astype(int) - picture.astype(int)).max() <= 1
    without = RenderRow(prompt_row("a photo of a {0}", (plain,), **acts), PromptRow(""), 0)
    assert (render(base, metric, [without], sampler)[0] != together[0]).any()


def test_rows_that_edit_convolutions_equal_each_alone(base, metric):
    edit = fresh(edited_layers(base.denoiser), 2, 0)
    drawn = torch.randn(edit.writes.shape, generator=torch.Generator().manual_seed(1))
    plain, other = offset_concept(base, metric, 1), offset_concept(base, metric, 2, "teddy bear")
    edited = replace(plain, convolutions=replace(edit, writes=drawn))
    acts = {"bias": 0.6, "temperature": 0.15, "lock": "local"}
    rows = [
        RenderRow(prompt_row(text, concepts, **acts), PromptRow(""), seed)
        for seed, (text, *concepts) in enumerate(
            (("a photo of a {0}", edited), ("a {0} next to a {1}", other, edited), ("a {0}", plain))
        )
    ]
    together = render(base, metric, rows, SAMPLER)
    for row, picture in zip(rows, together, strict=True):
        assert abs(render(base, metric, [row], SAMPLER)[0].astype(int) - picture.astype(int)).max() <= 1
    without = RenderRow(prompt_row("a photo of a {0}", (plain,), **acts), PromptRow(""), 0)
    assert abs(render(base, metric, [without], SAMPLER)[0].astype(int) - together[0].astype(int)).max() > 4


@pytest.mark.parametrize("zero_negative", [True, False])
@pytest.mark.parametrize("negative", ["", "a dark photo"])
def test_without_concepts_it_is_the_unmodified_pipeline_bit_for_bit(tmp_path, zero_negative, negative):
    pipe = xl_pipeline(zero_negative=zero_negative)
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    base = xl_base(tmp_path, zero_negative=zero_negative)
    wanted = pipe(
        ["a mug on the beach", "a hat in the snow"],
        # The pipeline gives zeros for an absent negative prompt, not for an empty one.
        negative_prompt=[negative] * 2 if negative or not zero_negative else None,
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="pt",
    ).images
    texts = ("a mug on the beach", "a hat in the snow")
    rows = [RenderRow(PromptRow(text), PromptRow(negative), seed) for text, seed in zip(texts, (5, 6), strict=True)]
    pixels = (wanted * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for picture, reference in zip(render(base, random_metric(WIDTH), rows, SAMPLER), pixels, strict=True):
        assert (picture == reference).all()


def test_encodings_and_pooled_vector_are_the_pipelines_own(base):
    wanted, _, pooled, _ = xl_pipeline().encode_prompt(["a red mug in the snow"], device="cpu")
    found = base.texts.encode([base.texts.tokenize("a red mug in the snow")])
    assert torch.equal(found.encodings, wanted)
    assert torch.equal(found.extra[POOLED], pooled)


def test_the_tokenizers_pad_differently_and_agree_on_positions(base):
    tokens = base.texts.tokenize("a {0} in the snow", ["teddy bear"])
    assert tokens.ids[: tokens.length] == tokens.others[0][: tokens.length]
    assert tokens.ids[tokens.length] != tokens.others[0][tokens.length]
    first, second = base.texts.models
    shorter = replace(second, tokenizer=_Other(second.tokenizer))
    with pytest.raises(ValueError, match="split a prompt differently"):
        TextModels((first, shorter)).tokenize("a red mug")


class _Other:
    """A tokenizer that reads every text as one token."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **_):
        return {"input_ids": [7]}


def test_a_mixed_batch_equals_its_rows(base, metric):
    a, b, c = (
        gated_concept(base, metric, 1),
        gated_concept(base, metric, 2, "teddy bear"),
        offset_concept(base, metric, 3, "hat"),
    )
    positive = [
        PromptRow("a photo of a {0} on the beach", (a,), (0.5,), (0.15,)),
        PromptRow("a {1} next to a {0}", (a, b), (0.4, 0.7), (0.1, 0.3)),
        PromptRow("a photo of a mug"),
        PromptRow("a {0} in the snow", (b,), (0.4,), (0.15,), "global"),
        PromptRow("a {0} in the snow", (c,), (0.4,), (0.15,)),
        PromptRow("a {0} and a {1}", (c, a), (0.4, 0.4), (0.15, 0.15), combine="regional"),
    ]
    negative = [PromptRow("", (a,), (0.5,), (0.1,)), *[PromptRow("")] * 4, PromptRow("a dark photo")]
    rows = [RenderRow(p, n, seed) for seed, (p, n) in enumerate(zip(positive, negative, strict=True))]
    together = render(base, metric, rows, SAMPLER)
    for row, picture in zip(rows, together, strict=True):
        [alone] = render(base, metric, [row], SAMPLER)
        assert abs(picture.astype(int) - alone.astype(int)).max() <= 1
    assert (together[0] != together[2]).any()


def test_the_pooled_vector_is_that_of_the_superclass_prompt(base, metric):
    one = gated_concept(base, metric, 1)
    plain = condition(base, metric, [PromptRow("a photo of a mug")])
    found = condition(base, metric, [PromptRow("a photo of a {0}", (one,), (0.5,), (0.15,))])
    torch.testing.assert_close(found.extra[POOLED], plain.extra[POOLED], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found.kv, plain.kv)
    other = replace(
        base, folder=replace(base.folder, settings=base.folder.settings.model_copy(update={"pooled": "concept"}))
    )
    own = condition(other, metric, [PromptRow("a photo of a {0}", (one,), (0.5,), (0.15,))])
    assert not torch.allclose(own.extra[POOLED], plain.extra[POOLED])


def photos(seed, sizes=((40, 24), (20, 50))):
    g = torch.Generator().manual_seed(seed)
    for width, height in sizes:
        pixels = torch.randint(0, 256, (height, width, 3), generator=g, dtype=torch.uint8)
        yield Image.fromarray(pixels.numpy()), None


def test_time_ids_are_size_crop_and_target(base):
    example = make_example(base, "mug", photos(0), TrainingConfig(flip=True))
    # 40 x 24 is resized to 27 x 16, of which 5 or 6 columns are cut on the left; 20 x 50 to 16 x 40, 12 rows.
    assert example.time_ids.tolist() == [[24, 40, 0, 5, 16, 16], [50, 20, 12, 0, 16, 16]] * 2
    padded = make_example(base, "mug", photos(0), TrainingConfig(fit="pad"))
    assert padded.time_ids.tolist() == [[24, 40, 0, 0, 16, 16], [50, 20, 0, 0, 16, 16]]


@pytest.mark.parametrize("recipe", ["paper", "offset"])
def test_concepts_trained_together_equal_each_alone(base, metric, recipe):
    config = TrainingConfig(steps=3, batch=4).overridden({"recipe": recipe})
    names = ("mug", "teddy bear", "hat")
    examples = [make_example(base, name, photos(seed), config) for seed, name in enumerate(names)]
    together = Trainer(base, metric, examples, micro_batch=5)
    together.run()
    for example, state in zip(examples, together.states, strict=True):
        alone = Trainer(base, metric, [example])
        alone.run()
        [single] = alone.states
        assert single.loss == pytest.approx(state.loss, rel=1e-4)
        for name, parameter in single.parameters().items():
            torch.testing.assert_close(state.parameters()[name], parameter, rtol=1e-3, atol=1e-4)
        fresh = start(base, example)
        assert (state.embedding[:24] != fresh.embedding[:24]).any()
        assert (state.embedding[24:] != fresh.embedding[24:]).any()
        concept = state.concept(example, base, metric)
        found = read_concept(
            write_concept(concept),
            base_digest=base.folder.digest,
            metric_digest=metric.digest,
            embedding_width=base.embedding_width,
            text_width=base.text_width,
            value_width=base.stack.key_rows,
        )
        assert torch.allclose(found.embedding, concept.embedding, atol=1e-2)


def test_the_denoiser_is_told_the_size_of_each_photo(base, metric):
    told = []
    hook = base.denoiser.register_forward_pre_hook(
        lambda _m, _a, named: told.append(named["added_cond_kwargs"]), with_kwargs=True
    )
    try:
        example = make_example(base, "mug", photos(0), TrainingConfig(steps=1, batch=4))
        Trainer(base, metric, [example]).run()
    finally:
        hook.remove()
    rows = {tuple(row) for each in told for row in each["time_ids"].tolist()}
    assert rows <= {tuple(row) for row in example.time_ids.tolist()}
    assert told[0]["text_embeds"].shape == (4, 20)


def test_fine_tunes_of_the_denoiser_share_the_metric(folder, base, tmp_path):
    sibling = describe(xl_folder(tmp_path / "sibling", seed=0))
    assert sibling.digest == base.folder.digest
    tuned = xl_pipeline()
    with torch.no_grad():
        tuned.unet.conv_in.weight.mul_(1.1)
    tuned.save_pretrained(tmp_path / "tuned")
    other = describe(tmp_path / "tuned")
    assert other.digest != base.folder.digest
    assert other.metric_digest == base.folder.metric_digest
    tuned.text_encoder_2.save_pretrained(tmp_path / "sibling" / "text_encoder_2")
    with torch.no_grad():
        tuned.text_encoder_2.text_projection.weight.mul_(1.1)
    tuned.text_encoder_2.save_pretrained(tmp_path / "sibling" / "text_encoder_2")
    assert describe(tmp_path / "sibling").metric_digest != base.folder.metric_digest


def test_what_the_negative_prompt_is_belongs_to_the_identity(tmp_path, base):
    assert describe(xl_folder(tmp_path, zero_negative=False)).digest != base.folder.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 8}, "8 input channels and the VAE 4.*or with 9 for inpainting"),
        ({"class_embed_type": "timestep"}, "class embeddings"),
        ({"addition_embed_type": "text"}, "addition_embed_type 'text'"),
        ({"encoder_hid_dim_type": "text_proj"}, "projected"),
    ],
)
def test_denoisers_with_other_inputs_are_refused_by_name(tmp_path, change, message):
    file = xl_folder(tmp_path) / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BaseError, match=message):
        describe(tmp_path)


def test_in_half_precision_a_vae_that_overflows_encodes_in_float32(tmp_path):
    base = xl_base(tmp_path, dtype=torch.float16)
    seen = []
    base.vae.encoder.register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0].dtype))
    make_example(base, "mug", photos(0), TrainingConfig())
    assert set(seen) == {torch.float32}
    assert base.vae.dtype == torch.float16


def test_the_metric_belongs_to_the_text_encoders(base):
    metric = metric_from_moment(torch.eye(WIDTH), ridge=0.0, base_digest=base.folder.metric_digest)
    assert base.folder.metric_digest == base.folder.text_digest != base.folder.digest
    assert metric.second_moment.shape == (WIDTH, WIDTH)
