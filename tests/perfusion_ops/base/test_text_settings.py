"""What users of Stable Diffusion put into a base model's folder: skipped layers, LoRAs, and tokens of their own."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer, words
from perfusion_ops.base_model import load_base
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.rivals.ours import stacked
from perfusion_ops.rivals.parts import encodings, load_parts
from tests.support.tiny_base import random_metric, small_parts
from tests.support.tiny_xl import xl_folder, xl_pipeline

TEXTS = ("a mug on the beach", "a hat in the snow")
SAMPLER = Sampler(16, 16, 3, 4.0, "ddim")


def pipeline():
    pipe = StableDiffusionPipeline(
        **small_parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def folder(tmp_path):
    pipeline().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def drawn(pipe, texts=TEXTS, **given):
    """What an unmodified pipeline draws, (B, H, W, 3) uint8."""
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    images = pipe(
        **(given or {"prompt": list(texts), "negative_prompt": ["a dark photo"] * len(texts)}),
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(texts))],
        output_type="pt",
    ).images
    return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def ours(path, texts=TEXTS):
    base = load_base(describe(path))
    rows = [RenderRow(PromptRow(text), PromptRow("a dark photo"), seed) for seed, text in enumerate(texts)]
    return render(base, random_metric(base.text_width), rows, SAMPLER)


def same(pictures, others):
    return all((one == other).all() for one, other in zip(pictures, others, strict=True))


def write_settings(path, **settings):
    (path / "perfusion.json").write_text(json.dumps(settings))
    return describe(path)


# Skipped layers


def test_skipped_layers_are_normalised_hidden_states(folder):
    plain = describe(folder)
    skipping = write_settings(folder, clip_skip=1)
    pipe = pipeline()

    def encodings(texts):
        ids = pipe.tokenizer(list(texts), padding="max_length", return_tensors="pt").input_ids
        states = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
        return pipe.text_encoder.final_layer_norm(states[-2])

    wanted = drawn(pipe, prompt_embeds=encodings(TEXTS), negative_prompt_embeds=encodings(["a dark photo"] * 2))
    assert same(ours(folder), wanted)
    assert not same(ours(folder), drawn(pipeline()))
    assert skipping.digest != plain.digest
    assert skipping.text_digest != plain.text_digest


def test_sdxl_skips_layers_as_its_pipeline_does(tmp_path):
    path = xl_folder(tmp_path / "xl")
    plain = describe(path)
    assert write_settings(path, clip_skip=1).metric_digest != plain.metric_digest
    texts = [*TEXTS, "a dark photo"]
    embeds, _, pooled, _ = xl_pipeline().encode_prompt(texts, clip_skip=1, do_classifier_free_guidance=False)
    base = load_base(describe(path))
    encoded = base.texts.encode([base.texts.tokenize(text) for text in texts])
    assert (encoded.encodings == embeds).all()
    assert (encoded.extra["pooled"] == pooled).all()


@pytest.mark.parametrize("count", [2, 7])
def test_a_layer_must_remain(folder, count):
    with pytest.raises(BaseError, match=f"clip_skip .* is {count}, and text_encoder has 2 layers"):
        write_settings(folder, clip_skip=count)


# LoRAs


def write_lora(path, name, *, text=False, seed=0, rank=2):
    """A random LoRA of the UNet's attention, and of the text encoder."""
    pipe = pipeline()
    torch.manual_seed(seed)
    state = {}
    modules = {"unet": ["to_q", "to_k", "to_v"], **({"text_encoder": ["q_proj", "v_proj"]} if text else {})}
    for part, targets in modules.items():
        model = getattr(pipe, part)
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=targets))
        state[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
    (path / "loras").mkdir(exist_ok=True)
    StableDiffusionPipeline.save_lora_weights(path / "loras", weight_name=name, **state)


def fused(path, *loras):
    pipe = pipeline()
    for name, weight in loras:
        pipe.load_lora_weights(str(path / "loras"), weight_name=name)
        pipe.fuse_lora(lora_scale=weight)
        pipe.unload_lora_weights()
    return pipe


def test_loras_are_fused_as_in_the_unmodified_pipeline(folder):
    write_lora(folder, "style.safetensors")
    write_lora(folder, "other.safetensors", seed=1)
    write_settings(folder, loras=[{"file": "style.safetensors", "weight": 0.7}, {"file": "other.safetensors"}])
    wanted = drawn(fused(folder, ("style.safetensors", 0.7), ("other.safetensors", 1.0)))
    assert same(ours(folder), wanted)
    assert not same(ours(folder), drawn(pipeline()))


def test_a_lora_of_the_text_encoder_is_fused_as_well(folder):
    write_lora(folder, "words.safetensors", text=True)
    write_settings(folder, loras=[{"file": "words.safetensors", "weight": 1.0}])
    reference = fused(folder, ("words.safetensors", 1.0))
    assert same(ours(folder), drawn(reference))
    changed = copy.deepcopy(reference)
    changed.text_encoder = pipeline().text_encoder
    assert not same(ours(folder), drawn(changed))


def test_the_bytes_of_a_lora_and_its_weight_are_part_of_the_base_model(folder):
    plain = describe(folder)
    write_lora(folder, "a.safetensors")
    assert describe(folder).digest == plain.digest
    one = write_settings(folder, loras=[{"file": "a.safetensors"}])
    less = write_settings(folder, loras=[{"file": "a.safetensors", "weight": 0.5}])
    write_lora(folder, "a.safetensors", seed=1)
    other = describe(folder)
    assert len({each.digest for each in (plain, one, less, other)}) == 4
    # Only the UNet changes: metrics and siblings are shared.
    assert {each.text_digest for each in (one, less, other)} == {plain.text_digest}
    write_lora(folder, "a.safetensors", text=True)
    assert describe(folder).text_digest != plain.text_digest


def test_other_methods_are_compared_on_the_same_model(folder):
    write_lora(folder, "words.safetensors", text=True)
    described = write_settings(folder, loras=[{"file": "words.safetensors", "weight": 0.7}], clip_skip=1)
    base, parts = load_base(described), load_parts(described)
    texts = ["a red mug on the beach", "a hat"]
    wanted = base.texts.encode([base.texts.tokenize(text) for text in texts]).encodings
    assert torch.equal(encodings(parts, texts), wanted)
    pairs = [(parts.unet, pipeline().unet), (parts.text_encoder, pipeline().text_encoder)]
    assert all(weights_of(one) != weights_of(other) for one, other in pairs)
    ours = stacked(parts)
    assert torch.equal(ours.stack.weight, base.stack.weight)
    assert torch.equal(ours.texts.encode([ours.texts.tokenize(text) for text in texts]).encodings, wanted)


def weights_of(module):
    return {name: float(weight.sum()) for name, weight in module.state_dict().items()}


@pytest.mark.parametrize(
    ("lora", "why"),
    [
        ({"file": "none.safetensors"}, "names 'none.safetensors', which is not in its folder 'loras'"),
        ({"file": "../secret.safetensors"}, "is not usable"),
        ({"file": "style.ckpt"}, "is not usable"),
        ({"file": "bad.safetensors"}, "bad.safetensors is damaged"),
    ],
)
def test_a_lora_that_cannot_be_used_is_refused_before_anything_is_loaded(folder, lora, why):
    (folder / "loras").mkdir()
    (folder / "loras/bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(BaseError, match=why):
        write_settings(folder, loras=[lora])


def test_a_lora_of_another_model_is_refused_by_name(folder, tmp_path):
    path = xl_folder(tmp_path / "xl")
    write_lora(folder, "style.safetensors")
    shutil.copytree(folder / "loras", path / "loras")
    write_settings(path, loras=[{"file": "style.safetensors"}])
    with pytest.raises(BaseError, match=r"style.safetensors does not fit the base model .*size mismatch"):
        load_base(describe(path))


# Textual inversion


def with_inversion(path, vectors):
    pipe = pipeline()
    torch.manual_seed(7)
    pipe.load_textual_inversion({"<plush>": torch.randn(vectors, 24)}, token="<plush>")
    pipe.save_pretrained(path)
    return pipe


def test_a_token_of_one_vector_is_read_as_in_the_unmodified_pipeline(tmp_path):
    pipe = with_inversion(tmp_path, 1)
    texts = ("a <plush> mug on the beach", "<plush>,a hat")
    assert same(ours(tmp_path, texts), drawn(pipe, texts))
    assert not same(ours(tmp_path, texts), ours(tmp_path))
    tokenizer = load_tokenizer(describe(tmp_path))
    for text in (*texts, "a<plush>mug <plush><plush>"):
        assert TokenCounter(tokenizer).count(text) == len(words(tokenizer, text))


def test_a_token_of_several_vectors_is_refused(tmp_path):
    with_inversion(tmp_path, 3)
    for use in (load_tokenizer, load_base):
        with pytest.raises(BaseError, match="textual inversion '<plush>' with several vectors"):
            use(describe(tmp_path))
