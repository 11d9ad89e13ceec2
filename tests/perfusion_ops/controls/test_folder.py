"""What a ControlNet's folder must be, and what its digest depends on."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from safetensors.torch import load_file, save_file

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.controls.folder import INDEX, WEIGHTS, ControlError, describe_control
from perfusion_ops.families.family import INPAINT
from perfusion_ops.pipelines import make_scheduler
from perfusion_ops.rendering import RenderRow, Sampler, render
from tests.support.tiny_base import random_metric, small_parts
from tests.support.tiny_control import control_folder, control_model, control_net, drawing, sd_folder, shown
from tests.support.tiny_pixart import pixart_folder
from tests.support.tiny_xl import xl_folder, xl_unet


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Bases and ControlNets; tests copy what they change."""
    path = tmp_path_factory.mktemp("folders")
    sd_folder(path / "sd")
    xl_folder(path / "xl")
    control_folder(path / "sd-control", small_parts()["unet"])
    control_folder(path / "xl-control", xl_unet())
    return path


@pytest.fixture
def net(folders, tmp_path):
    return shutil.copytree(folders / "sd-control", tmp_path / "net")


def change(net, **values):
    config = json.loads((net / "config.json").read_text())
    (net / "config.json").write_text(json.dumps({**config, **values}))


def refused(net, base):
    with pytest.raises(ControlError) as error:
        describe_control(net, describe(base))
    return str(error.value)


def test_the_digest_is_that_of_what_is_loaded(folders, net):
    base = describe(folders / "sd")
    first = describe_control(net, base).digest
    assert first == describe_control(folders / "sd-control", base).digest
    (net / "README.md").write_text("a ControlNet")
    (net / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another precision")
    assert describe_control(net, base).digest == first
    change(net, controlnet_conditioning_channel_order="bgr")
    second = describe_control(net, base).digest
    tensors = load_file(net / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, net / WEIGHTS)
    assert len({first, second, describe_control(net, base).digest}) == 3


def test_weights_may_be_in_several_files(folders, net):
    base = load_base(describe(folders / "sd"))
    model = ControlNetModel.from_pretrained(net)
    (net / WEIGHTS).unlink()
    model.save_pretrained(net, max_shard_size="50KB")
    shards = sorted(net.glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert (net / INDEX).is_file()
    loaded, whole = (control_net(base, each) for each in (net, folders / "sd-control"))
    assert torch.equal(loaded.weight, whole.weight)
    shards[0].unlink()
    assert refused(net, folders / "sd") == f"{net} has no {shards[0].name}: copy the model again"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "ControlNetUnionModel"}, "holds a ControlNetUnionModel; this version works with Contr"),
        ({"_class_name": "FluxControlNetModel"}, "holds a FluxControlNetModel"),
        ({"cross_attention_dim": 1024}, "it reads text encodings of 1024 numbers, not of 24"),
        ({"in_channels": 9}, "it has 9 input channels, not 4"),
        ({"conditioning_channels": 4}, "takes pictures of 4 channels"),
        ({"block_out_channels": [16, 64]}, r"its block_out_channels is [16, 64], not [16, 32]"),
        ({"layers_per_block": 2}, "its layers_per_block is 2, not 1"),
        ({"addition_embed_type": "text_time"}, "its addition_embed_type is 'text_time', not None"),
        ({"conditioning_embedding_out_channels": [16, 32, 96, 256]}, "halves its picture 3 times, and the VAE 1 times"),
        ({"num_class_embeds": 3}, "has num_class_embeds, which this version does not give it"),
        ({"encoder_hid_dim_type": "text_proj"}, "has encoder_hid_dim_type"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_tensor_is_loaded(folders, net, values, message):
    (net / WEIGHTS).write_bytes(b"no tensors")
    change(net, **values)
    assert message in refused(net, folders / "sd")


def test_families_do_not_mix(folders):
    assert "it reads text encodings of 24 numbers, not of 56" in refused(folders / "sd-control", folders / "xl")
    assert "it reads text encodings of 56 numbers, not of 24" in refused(folders / "xl-control", folders / "sd")


def test_families_without_controlnets_are_refused(folders, tmp_path):
    pixart_folder(tmp_path / "pixart")
    assert refused(folders / "sd-control", tmp_path / "pixart") == (
        "ControlNets do not work with PixArt-Sigma: leave controls out"
    )
    base = replace(describe(folders / "sd"), drawn_by=INPAINT)
    with pytest.raises(ControlError, match="which is a model for inpainting: use a plain base model"):
        describe_control(folders / "sd-control", base)


def test_folders_that_are_no_models_are_refused(folders, net):
    assert "is no ControlNet: it has no config.json" in refused(folders / "sd", folders / "sd")
    (net / WEIGHTS).rename(net / "diffusion_pytorch_model.bin")
    assert f"has no {WEIGHTS}: save it with safetensors" in refused(net, folders / "sd")
    (net / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(net, folders / "sd")


def test_tensors_that_are_missing_or_damaged_are_never_drawn_at_random(folders, net):
    base = load_base(describe(folders / "sd"))
    tensors = load_file(net / WEIGHTS)
    save_file({name: each for name, each in tensors.items() if name != "conv_in.bias"}, net / WEIGHTS)
    with pytest.raises(ControlError, match=r"lacks conv_in.bias: copy it again"):
        control_net(base, net)
    save_file({**tensors, "conv_in.bias": torch.zeros(3)}, net / WEIGHTS)
    with pytest.raises(ControlError, match="cannot be loaded"):
        control_net(base, net)
    (net / WEIGHTS).write_bytes(b"{}")
    with pytest.raises(ControlError, match="cannot be loaded"):
        control_net(base, net)


def unmodified(folders, net):
    parts = small_parts()
    pipe = StableDiffusionControlNetPipeline(
        **parts, controlnet=net, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    for part in (pipe.unet, pipe.vae, pipe.controlnet):
        part.to(memory_format=torch.channels_last)
    pipe.scheduler = make_scheduler("ddim", load_base(describe(folders / "sd")).scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def without_text():
    """A ControlNet that does not read the prompt, as the small ones of SDXL are."""
    torch.manual_seed(3)
    net = ControlNetModel(
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(8, 16),
    )
    with torch.no_grad():
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            layer.weight.normal_(std=0.3)
    return net.eval()


def pooling():
    """A ControlNet that only follows the style of its picture (`global_pool_conditions`, the "shuffle" of SD 1.5)."""
    net = control_model(small_parts()["unet"], seed=4)
    net.register_to_config(global_pool_conditions=True)
    return net


@pytest.mark.parametrize("make", [without_text, pooling])
def test_other_kinds_of_controlnets_draw_as_unmodified(folders, tmp_path, make):
    make().save_pretrained(tmp_path / "net")
    base = load_base(describe(folders / "sd"))
    net = control_net(base, tmp_path / "net")
    assert (len(net.weight) == 0) == (make is without_text)
    control = shown(net, 1, 0.7)
    rows = [RenderRow(PromptRow("a mug"), PromptRow(""), seed, control=control) for seed in (1, 2)]
    got = render(base, random_metric(24), rows, Sampler(16, 16, 3, 4.0, "ddim"))
    wanted = unmodified(folders, make())(
        ["a mug"] * 2,
        image=[drawing(1)] * 2,
        negative_prompt=[""] * 2,
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=4.0,
        controlnet_conditioning_scale=0.7,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        output_type="pt",
    ).images
    pixels = (wanted * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack(got), pixels)
    [plain] = render(base, random_metric(24), [replace(rows[0], control=None)], Sampler(16, 16, 3, 4.0, "ddim"))
    assert np.abs(plain.astype(int) - got[0]).max() > 4
