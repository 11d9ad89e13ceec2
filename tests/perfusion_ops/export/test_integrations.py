"""The code that travels with a concept: the same keys, values and pictures as ours."""

import importlib.util
import json
import sys

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.conditioning import condition, prompt_row
from perfusion_ops.export.files import export
from perfusion_ops.export.form import Form
from perfusion_ops.export.integrations import comfyui
from perfusion_ops.export.names import layer_names
from perfusion_ops.rendering import RenderRow, Sampler, render
from tests.support.exports import PAIR, word_concept
from tests.support.tiny_base import random_metric, small_parts
from tests.support.tiny_xl import xl_folder

BIAS, TEMPERATURE = 0.65, 0.2
TEXTS = ("a photo of a {0} in the snow", "a photo of a {0} and a {1}", "a photo of a mug")


@pytest.fixture(scope="module", params=["small", "sdxl"])
def place(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    if request.param == "sdxl":
        return xl_folder(folder)
    diffusers.StableDiffusionPipeline(
        **small_parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(place):
    return load_base(describe(place))


@pytest.fixture(scope="module")
def metric(base):
    return random_metric(base.text_width, base_digest=base.folder.metric_digest)


@pytest.fixture(scope="module")
def concepts(base, metric):
    return [word_concept(base, metric, word, seed) for seed, word in enumerate(("mug", "bag"))]


def written(base, metric, concepts, form, folder):
    made = export(base, metric, concepts, PAIR, form, bias=BIAS, temperature=TEMPERATURE)
    for path, data in made.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return made


def row(text, concepts, bias=BIAS, temperature=TEMPERATURE):
    return prompt_row(text, concepts, bias=bias, temperature=temperature, lock="local")


def named(text):
    return text.replace("{0}", "<mug-0042>").replace("{1}", "<bag-7>")


@pytest.fixture
def pipe(place, base, metric, concepts, tmp_path, monkeypatch):
    """The custom pipeline, as diffusers finds it in the exported folder."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    written(base, metric, concepts, Form.DIFFUSERS, tmp_path)
    found = DiffusionPipeline.from_pretrained(
        place,
        custom_pipeline=str(tmp_path),
        trust_remote_code=True,
        dtype=torch.float32,
        local_files_only=True,
        **base.folder.family.options,
    )
    found.set_progress_bar_config(disable=True)
    found.scheduler = DDIMScheduler.from_config(found.scheduler.config, clip_sample=False)
    assert type(found).__name__ == "PerfusionPipeline"
    assert isinstance(found, getattr(diffusers, base.folder.family.kind))
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_the_custom_pipeline_draws_our_pictures(pipe, base, metric, concepts, tmp_path, text, one_thread):
    pipe.load_concepts(str(tmp_path / "concepts.safetensors"))
    [ours] = render(base, metric, [RenderRow(row(text, concepts), row("", ()), 5)], Sampler(16, 16, 3, 4.0, "ddim"))
    theirs = pipe(
        named(text),
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    assert abs(theirs * 255 - ours).max() < 1.0  # ours is rounded to whole numbers


@pytest.mark.parametrize("bias", [None, 0.3])
def test_its_keys_and_values_are_ours(pipe, base, metric, concepts, tmp_path, bias):
    pipe.load_concepts(str(tmp_path / "concepts.safetensors"))
    kv, pooled = pipe.embeds([named(text) for text in TEXTS], bias=bias)
    expected = condition(base, metric, [row(text, concepts, bias or BIAS) for text in TEXTS])
    assert torch.allclose(kv, expected.kv, atol=1e-5, rtol=1e-4)
    assert (pooled is None) == (not expected.extra)
    if pooled is not None:
        assert torch.allclose(pooled, expected.extra["pooled"], atol=1e-5)
    plain = condition(base, metric, [row(TEXTS[0], concepts)]).kv
    assert not torch.allclose(
        kv[:1], plain if bias else condition(base, metric, [row("a photo of a mug in the snow", ())]).kv, atol=1e-2
    )


def test_a_concept_of_another_base_is_refused(pipe, base, metric, concepts, tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "concepts.safetensors"
    tensors = load_file(file)
    tensors["outputs"] = tensors["outputs"][:, 1:].contiguous()
    about = {"names": json.dumps(["a", "b"]), "superclasses": json.dumps(["a", "b"]), "bias": "1", "temperature": "1"}
    save_file(tensors, file, about)
    with pytest.raises(ValueError, match="another kind of base model"):
        pipe.load_concepts(str(file))


class Patcher:
    """What the node uses of ModelPatcher in ComfyUI's comfy/model_patcher.py: one replacement for each place."""

    def __init__(self):
        self.replaced = {}

    def clone(self):
        return Patcher()

    def set_model_attn2_replace(self, patch, block_name, number, transformer_index=None):
        self.replaced[block_name, number, transformer_index] = patch


@pytest.fixture
def node(base, metric, concepts, tmp_path):
    """The node, imported from the exported folder."""
    written(base, metric, concepts, Form.COMFYUI, tmp_path)
    file = tmp_path / "custom_nodes" / "perfusion" / "__init__.py"
    spec = importlib.util.spec_from_file_location("exported_node", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def encoded(base, concepts, text):
    with torch.no_grad():
        words = torch.stack([concept.embedding for concept in concepts])[None]
        return base.texts.encode([base.texts.tokenize(text)], words).encodings


@pytest.mark.parametrize("times", [1, 2])
def test_the_patches_of_the_node_attend_to_our_keys_and_values(base, metric, concepts, node, times):
    text = TEXTS[1]
    positive, negative = encoded(base, concepts, text), encoded(base, concepts, "a dark photo")
    given = [[positive, {"pooled_output": torch.zeros(1, 3)}]]
    kind = node.NODE_CLASS_MAPPINGS["PerfusionConcept"]
    assert kind.INPUT_TYPES()["required"]["concepts"] == (["mug-0042+bag-7"],)
    patched, _ = kind().apply(Patcher(), given, concepts="mug-0042+bag-7", bias=0.0, temperature=0.0)
    expected = condition(base, metric, [row(text, concepts)]).kv
    plain = negative @ base.stack.weight.mT
    generator = torch.Generator().manual_seed(0)
    start, half = 0, base.stack.key_rows
    assert len(patched.replaced) == len(layer_names(base))
    modules = dict(base.denoiser.named_modules())
    for name, patch, width in zip(layer_names(base), patched.replaced.values(), base.stack.widths, strict=True):
        heads = modules[name].heads
        q = torch.randn(3, 9, width, generator=generator)
        # As ComfyUI does it: a chunk of rows for each conditioning, and a short prompt repeated beside a longer one.
        e = torch.cat([negative, positive, positive]).repeat(1, times, 1)
        k, v = (e @ base.stack.weight[at : at + width].mT for at in (start, half + start))
        found = patch(q, k, v, {"n_heads": heads, "cond_or_uncond": [1, 0, 0]})
        kv = torch.cat([plain, expected, expected]).repeat(1, times, 1)
        ours = comfyui._attention(
            q, kv[..., start : start + width], kv[..., half + start : half + start + width], heads
        )
        assert torch.allclose(found, ours, atol=1e-4)
        assert not torch.allclose(found, comfyui._attention(q, k, v, heads), atol=1e-3)
        start += width


def test_the_node_takes_the_pooled_vector_of_the_plain_prompt(base, concepts, node):
    given = [[encoded(base, concepts, TEXTS[0]), {"pooled_output": torch.zeros(1, 3), "kept": 1}]]
    plain = [[given[0][0], {"pooled_output": torch.ones(1, 3)}]]
    kind = node.NODE_CLASS_MAPPINGS["PerfusionConcept"]
    _, [[encodings, extra]] = kind().apply(
        Patcher(), given, concepts="mug-0042+bag-7", bias=0.5, temperature=0.1, plain=plain
    )
    assert encodings is given[0][0]
    assert extra["kept"] == 1
    assert torch.equal(extra["pooled_output"], torch.ones(1, 3))


def test_the_bias_of_the_node_acts(base, concepts, node):
    tensors, about = node.read(node._FOLDER / "mug-0042+bag-7.safetensors")
    e = encoded(base, concepts, TEXTS[0])[0]
    assert float(about["bias"]) == BIAS
    assert not torch.allclose(node.added(tensors, e, 0.5, 0.2), node.added(tensors, e, 0.9, 0.2), atol=1e-3)
