"""An ordinary diffusers pipeline with peft loads the files, and draws our own render of the linear edit bit for bit."""

import hashlib
import json
from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.concept import OffsetConcept
from perfusion_ops.export.files import export
from perfusion_ops.export.form import Form
from perfusion_ops.export.linear import Gating, fit
from perfusion_ops.export.lora import ExportError
from perfusion_ops.export.prompts import export_prompts
from perfusion_ops.families.pixart_sigma import PIXART_SIGMA
from perfusion_ops.metric import read_metric
from perfusion_ops.mini import base_folder, metric_file
from perfusion_ops.pipelines import make_pipeline
from tests.support.exports import ORIGIN, PAIR, word_concept
from tests.support.tiny_base import random_metric, small_parts
from tests.support.tiny_xl import xl_folder

OPTIONS = {"num_inference_steps": 3, "guidance_scale": 4.5, "output_type": "pt"}


@pytest.fixture(scope="module", params=["mini", "small", "sdxl"])
def place(request, tmp_path_factory):
    """A base model's folder."""
    if request.param == "mini":
        return base_folder()
    folder = tmp_path_factory.mktemp("base")
    if request.param == "sdxl":
        return xl_folder(folder)
    pipe = diffusers.StableDiffusionPipeline(
        **small_parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(place):
    return load_base(describe(place))


@pytest.fixture(scope="module")
def metric(base):
    if base.folder.name == "mini":
        return read_metric(metric_file().read_bytes(), base_digest=base.folder.digest)
    return random_metric(base.text_width, base_digest=base.folder.metric_digest)


def ordinary(base, place):
    """The unmodified pipeline, in the memory layout of ours: sums are in the same order."""
    family = base.folder.family
    pipe = getattr(diffusers, family.pipelines["text"]).from_pretrained(
        place, dtype=torch.float32, local_files_only=True, **family.options
    )
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_words(pipe, data, token):
    words = load(data)
    if set(words) == {"emb_params"}:
        pipe.load_textual_inversion(words["emb_params"], token=token)
        return
    for name, part in (("clip_l", ""), ("clip_g", "_2")):
        pipe.load_textual_inversion(
            words[name],
            token=token,
            text_encoder=getattr(pipe, f"text_encoder{part}"),
            tokenizer=getattr(pipe, f"tokenizer{part}"),
        )


def stored_edit(base, files):
    """The linear edit as the file holds it, read back without its writer."""
    [data] = [data for path, data in files.items() if path.startswith("lora/")]
    tensors = {name: tensor.float() for name, tensor in load(data).items()}
    ups = [tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")]
    downs = [tensor for name, tensor in tensors.items() if name.endswith("lora_down.weight")]
    assert all(torch.equal(down, downs[0]) for down in downs)
    assert sum(map(len, ups)) == len(base.stack.weight)
    return downs[0]


def drawn_by_us(base, metric, concepts, origin, text, files):
    """The picture of the linear edit, drawn through keys and values."""
    gating = Gating(concepts, 0.7, 0.15)
    fitting, _ = export_prompts(base, len(concepts))
    edit = fit(base, metric, gating, fitting).stored(torch.float16)
    assert torch.equal(edit.down, stored_edit(base, files))
    numbered = text
    for number, name in enumerate(origin.names):
        numbered = numbered.replace(f"<{name}>", f"{{{number}}}")
    words = torch.stack([concept.embedding.half().float() for concept in concepts])[None]
    family = base.folder.family
    given = {}
    for prefix, each in (("", numbered), ("negative_", "")):
        with torch.no_grad():
            found = base.texts.encode([base.texts.tokenize(each)], words)
        e = found.encodings
        kv = e @ base.stack.weight.mT + (e @ edit.down.mT) @ edit.up.mT
        zero = not each and base.folder.index.get(family.zero_negative or "")
        extra = {name: vectors * (not zero) for name, vectors in found.extra.items()}
        given |= family.given(prefix, kv * (not zero), extra)
    pipe = make_pipeline(base, "ddim")
    return pipe(**given, generator=torch.Generator().manual_seed(3), **OPTIONS).images


@pytest.mark.parametrize("origin", [ORIGIN, PAIR], ids=["single", "pair"])
def test_a_diffusers_pipeline_with_peft_draws_the_linear_edit_bit_for_bit(
    base, metric, place, origin, tmp_path, one_thread
):
    concepts = tuple(
        word_concept(base, metric, word, seed) for seed, word in enumerate(("mug", "bag")[: len(origin.names)])
    )
    made = export(base, metric, concepts, origin, Form.LORA, bias=0.7, temperature=0.15)
    text = f"a photo of a {' and a '.join(f'<{name}>' for name in origin.names)} on the beach"
    pipe = ordinary(base, place)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    for name in origin.names:
        load_words(pipe, made.files[f"embeddings/{name}.safetensors"], f"<{name}>")
    file = tmp_path / f"{origin.title}.safetensors"
    file.write_bytes(made.files[f"lora/{file.name}"])
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    with torch.no_grad():
        theirs = pipe(text, generator=torch.Generator().manual_seed(3), **OPTIONS).images
        ours = drawn_by_us(base, metric, concepts, origin, text, made.files)
        pipe.disable_lora()
        without = pipe(text, generator=torch.Generator().manual_seed(3), **OPTIONS).images
    assert float((theirs - ours).abs().max()) == 0.0
    assert float((theirs - without).abs().max()) > 1e-3


def metadata_of(data, path):
    path.write_bytes(data)
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_files_say_what_they_are(base, metric, tmp_path):
    concept = word_concept(base, metric, "mug", 0)
    made = export(base, metric, [concept], ORIGIN, Form.LORA, bias=0.7, temperature=0.15)
    assert set(made.files) == {"lora/mug-0042.safetensors", "embeddings/mug-0042.safetensors"}
    data = made.files["lora/mug-0042.safetensors"]
    found = metadata_of(data, tmp_path / "lora.safetensors")
    sdxl = base.folder.family.title == "SDXL"
    kind = "stable-diffusion-xl-v1-base" if sdxl else "stable-diffusion-v1"
    expected = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{kind}/lora",
        "modelspec.title": "mug-0042",
        "modelspec.resolution": f"{base.resolution}x{base.resolution}",
        "modelspec.date": "2026-11-28",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2",
        "ss_base_model_version": "sdxl_base_v1-0" if sdxl else "sd_v1",
        "ss_output_name": "mug-0042",
        "perfusion.concept_key": "c" * 64,
        "perfusion.superclass": "mug",
        "perfusion.base_digest": base.folder.digest,
        "perfusion.metric_digest": metric.digest,
        "perfusion.bias": "0.7",
        "perfusion.temperature": "0.15",
        "perfusion.error_own_token": f"{made.errors.own:.4f}",
        "perfusion.error_other_tokens": f"{made.errors.others:.4f}",
    }
    assert {name: found.get(name) for name in expected} == expected
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert found["modelspec.hash_sha256"] == f"0x{hashlib.sha256(body).hexdigest()}"
    words = load(made.files["embeddings/mug-0042.safetensors"])
    assert set(words) == ({"clip_l", "clip_g"} if sdxl else {"emb_params"})
    assert all(len(each) == 1 for each in words.values())
    if not sdxl:
        assert torch.equal(words["emb_params"][0], concept.embedding.half())
    else:
        width = words["clip_l"].shape[1]
        assert torch.equal(words["clip_l"][0], concept.embedding[:width].half())
        assert torch.equal(words["clip_g"][0], concept.embedding[width:].half())


def test_equal_concepts_give_equal_bytes(base, metric):
    concept = word_concept(base, metric, "mug", 0)
    first, second = (
        export(base, metric, [concept], ORIGIN, Form.LORA, bias=0.7, temperature=0.15).files for _ in range(2)
    )
    assert first == second


def test_a_pair_is_one_file_of_rank_four(base, metric, tmp_path):
    concepts = [word_concept(base, metric, word, seed) for seed, word in enumerate(("mug", "bag"))]
    made = export(base, metric, concepts, PAIR, Form.LORA, bias=0.7, temperature=0.15)
    assert set(made.files) == {
        "lora/mug-0042+bag-7.safetensors",
        "embeddings/mug-0042.safetensors",
        "embeddings/bag-7.safetensors",
    }
    found = metadata_of(made.files["lora/mug-0042+bag-7.safetensors"], tmp_path / "lora.safetensors")
    assert found["ss_network_dim"] == found["ss_network_alpha"] == "4"
    assert json.loads(found["perfusion.concept_key"]) == list(PAIR.keys)


def refused(base, metric, concepts, origin):
    with pytest.raises(ExportError) as caught:
        export(base, metric, concepts, origin, Form.LORA, bias=0.7, temperature=0.15)
    return str(caught.value)


def test_what_cannot_be_exported_is_refused(base, metric):
    concept = word_concept(base, metric, "mug", 0)
    offset = OffsetConcept("mug", concept.embedding, concept.value_target, concept.base_digest, concept.metric_digest)
    assert "mug-0042 has the recipe 'offset'" in refused(base, metric, [offset], ORIGIN)
    assert "'a b'" in refused(base, metric, [concept], replace(ORIGIN, names=("a b",)))
    assert "export them one by one" in refused(base, metric, [concept, concept], replace(PAIR, names=("a", "a")))
    dit = replace(base, folder=replace(base.folder, family=PIXART_SIGMA))
    assert "a concept of PixArt-Sigma cannot be exported" in refused(dit, metric, [concept], ORIGIN)
    large = replace(concept, value_target=concept.value_target * 1e6)
    assert "train the concept again" in refused(base, metric, [large], ORIGIN)
