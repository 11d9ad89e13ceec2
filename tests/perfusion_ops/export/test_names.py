"""The names in exported files, by the rules of the programs that load them.

Each rule is written here as a small function after the file that it names, with the names of the real models: the UNets
of SD 1.5 and SDXL without weights.
"""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from safetensors.torch import load

from perfusion_ops.export.linear import LinearEdit
from perfusion_ops.export.lora import lora_file
from perfusion_ops.export.names import layer_names
from perfusion_ops.families.stable_diffusion import STABLE_DIFFUSION
from perfusion_ops.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from perfusion_ops.projection import KeyValueStack

SD15 = {"cross_attention_dim": 768}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def real(request):
    """A base of the real names and widths, and its exported LoRA: zeros."""
    family, config = (STABLE_DIFFUSION, SD15) if request.param == "sd15" else (STABLE_DIFFUSION_XL, SDXL)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    base = SimpleNamespace(denoiser=unet, folder=SimpleNamespace(family=family))
    modules = dict(unet.named_modules())
    widths = tuple(modules[f"{name}.to_k"].out_features for name in layer_names(base))
    width = config["cross_attention_dim"]
    base.stack = KeyValueStack(torch.empty(2 * sum(widths), width, device="meta"), widths)
    edit = LinearEdit(torch.zeros(2, width), torch.zeros(2 * sum(widths), 2))
    data = lora_file(base, edit, {}, torch.float16)
    return SimpleNamespace(name=request.param, base=base, tensors=load(data), size=len(data), modules=modules)


def wanted(real):
    return {f"{layer}.{each}" for layer in layer_names(real.base) for each in ("to_k", "to_v")}


def pairs(real):
    return sorted({key.partition(".")[0] for key in real.tensors})


def test_the_real_models_have_this_many_layers_and_files_this_size(real):
    layers, most = {"sd15": (16, 220_000), "sdxl": (70, 1_900_000)}[real.name]
    assert len(wanted(real)) == 2 * layers
    assert len(real.tensors) == 6 * layers
    assert real.size < most


def test_each_tensor_fits_the_layer_that_it_is_for(real):
    for name in pairs(real):
        down, up, alpha = (real.tensors[f"{name}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert down.shape == (2, real.base.stack.weight.shape[1])
        assert up.shape[1] == 2
        assert alpha.shape == ()
        assert float(alpha) == len(down)  # kohya: scale = alpha / rank (networks/lora.py, LoRAModule.__init__)


def test_diffusers_finds_every_layer(real):
    """diffusers/loaders/lora_conversion_utils.py, the functions themselves; an unknown key raises there."""
    tensors = {key: tensor.clone() for key, tensor in real.tensors.items()}
    if real.name == "sdxl":  # StableDiffusionXLLoraLoaderMixin.lora_state_dict does this first, with the UNet's config
        tensors = _maybe_map_sgm_blocks_to_diffusers(tensors, real.base.denoiser.config)
    found, alphas = _convert_non_diffusers_lora_to_diffusers(tensors)
    assert set(alphas.values()) == {2.0}
    layers = {}
    for key, tensor in found.items():
        name, _, part = key.removeprefix("unet.").replace(".processor", "").partition("_lora.")
        layers.setdefault(name, {})[part] = tensor
    assert set(layers) == wanted(real)
    for name, parts in layers.items():
        assert parts["up.weight"].shape[0] == real.modules[name].out_features
        assert parts["down.weight"].shape[1] == real.modules[name].in_features


def original_names(layers_per_block, blocks):
    """comfy/utils.py, unet_to_diffusers(unet_config): names of the original implementation by those of diffusers."""
    names = {}
    for level, depth in enumerate(blocks):
        for layer in range(layers_per_block):
            number = 1 + (layers_per_block + 1) * level + layer
            for t in range(depth):
                there = f"down_blocks.{level}.attentions.{layer}.transformer_blocks.{t}"
                names[there] = f"input_blocks.{number}.1.transformer_blocks.{t}"
    for t in range(blocks[-1] or max(blocks)):
        names[f"mid_block.attentions.0.transformer_blocks.{t}"] = f"middle_block.1.transformer_blocks.{t}"
    for level, depth in enumerate(reversed(blocks)):
        for layer in range(layers_per_block + 1):
            number = (layers_per_block + 1) * level + layer
            for t in range(depth):
                there = f"up_blocks.{level}.attentions.{layer}.transformer_blocks.{t}"
                names[there] = f"output_blocks.{number}.1.transformer_blocks.{t}"
    return names


def originals(real):
    return original_names(2, [1, 1, 1, 0] if real.name == "sd15" else [0, 2, 10])


def test_comfyui_and_forge_find_every_layer(real):
    """comfy/lora.py, model_lora_keys_unet; Forge's packages_3rdparty/comfyui_lora_collection/lora.py has the same map.

    Keys are `lora_unet_` + the original path or the diffusers path with underscores; what is not found only warns.
    """
    known = {}
    for there, original in originals(real).items():
        for each in ("to_k", "to_v"):
            for path in (there, original):
                known[f"lora_unet_{path}.attn2.{each}".replace(".", "_")] = f"{original}.attn2.{each}"
    found = [known[name] for name in pairs(real)]
    assert len(set(found)) == len(wanted(real))


def a1111_name(key):
    """A1111: extensions-builtin/Lora/networks.py, convert_diffusers_name_to_compvis, its attention rules."""
    if match := re.match(r"lora_unet_(down|up)_blocks_(\d+)_attentions_(\d+)_(.+)", key):
        where, block, layer, rest = match[1], int(match[2]), int(match[3]), match[4]
        if where == "down":
            return f"diffusion_model_input_blocks_{1 + block * 3 + layer}_1_{rest}"
        return f"diffusion_model_output_blocks_{block * 3 + layer}_1_{rest}"
    if match := re.match(r"lora_unet_mid_block_attentions_(\d+)_(.+)", key):
        return f"diffusion_model_middle_block_{int(match[1]) * 2 + 1}_{match[2]}"
    return key


def test_a1111_finds_every_layer(real):
    """extensions-builtin/Lora/networks.py, load_network: SDXL keys of `lora_unet_` become `diffusion_model_`."""
    layers = {
        f"diffusion_model_{original}_attn2_{each}".replace(".", "_")
        for original in originals(real).values()
        for each in ("to_k", "to_v")
    }
    found = set()
    for name in pairs(real):
        key = a1111_name(name)
        found.add(key if key in layers else key.replace("lora_unet", "diffusion_model"))
    assert found == layers


def test_kohya_finds_every_layer(real):
    """networks/lora.py, LoRANetwork: prefix `lora_unet` + "_" + the path of the module with "." as "_".

    For SD 1.x and 2.x the module tree is that of diffusers, for SDXL that of the original implementation.
    """
    paths = originals(real)
    layers = {
        f"lora_unet_{paths[there] if real.name == 'sdxl' else there}_attn2_{each}".replace(".", "_")
        for there in paths
        for each in ("to_k", "to_v")
    }
    assert set(pairs(real)) == layers


def test_invokeai_recognises_the_base_model(real):
    """invokeai/backend/model_manager/util/model_util.py, lora_token_vector_length: the width tells the base model.

    configs/lora.py and sdxl_lora_conversion_utils.py: an SDXL file is refused if a key has another prefix, or if the
    names of both schemes are mixed.
    """
    widths = {
        tensor.shape[1]
        for key, tensor in real.tensors.items()
        if ("_attn2_to_k." in key or "_attn2_to_v." in key) and key.endswith("lora_down.weight")
    }
    assert widths == {{"sd15": 768, "sdxl": 2048}[real.name]}
    assert all(key.startswith(("lora_unet_", "lora_te1_", "lora_te2_")) for key in real.tensors)
    original = [bool(re.match(r"lora_unet_(input|output|middle)_block", key)) for key in real.tensors]
    assert all(original) if real.name == "sdxl" else not any(original)


def test_the_blocks_of_the_comfyui_node_are_those_of_the_names(real):
    """comfy/ldm/modules/diffusionmodules/openaimodel.py: ("input", n), ("middle", 0), ("output", n), transformer."""
    from perfusion_ops.export.portable import layers_of

    paths = originals(real)
    for name, (where, number, transformer, width) in zip(layer_names(real.base), layers_of(real.base), strict=True):
        path = paths[name.removesuffix(".attn2")]
        block = "middle_block.1" if where == "middle" else f"{where}_blocks.{number}.1"
        assert path == f"{block}.transformer_blocks.{transformer}"
        assert number == 0 or where != "middle"
        assert width == real.modules[f"{name}.to_v"].out_features
    assert json.loads(json.dumps(layers_of(real.base)))
