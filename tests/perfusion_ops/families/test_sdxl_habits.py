"""SDXL with the settings that its users know: without concepts, each gives the unmodified pipeline's picture."""

import json
from typing import get_args

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.config import Scheduler
from perfusion_ops.pipelines import make_pipeline, make_scheduler
from perfusion_ops.rendering import RenderRow, Sampler, render
from tests.support.tiny_base import random_metric
from tests.support.tiny_xl import WIDTH, xl_base, xl_folder, xl_pipeline

# One row: the pooled vector of a negative prompt that rows share is computed once, which rounds differently in a batch.
TEXT, NEGATIVE, SEED = "a mug on the beach", "a dark photo", 5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return xl_base(tmp_path_factory.mktemp("xl") / "base")


def ordinary(base, scheduler, pipe=None, **options):
    """The picture of an unmodified pipeline with the schedule of the base's folder, (H, W, 3) uint8."""
    pipe = pipe or xl_pipeline()
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    pipe.scheduler = make_scheduler(scheduler, {**base.scheduler.config, "clip_sample": False})
    [image] = pipe(
        TEXT,
        negative_prompt=NEGATIVE,
        width=16,
        height=16,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(SEED),
        output_type="pt",
        **options,
    ).images
    return (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def ours(base, scheduler, **options):
    row = RenderRow(PromptRow(TEXT), PromptRow(NEGATIVE), SEED)
    [picture] = render(base, random_metric(WIDTH), [row], Sampler(16, 16, 4, 4.0, scheduler, **options))
    return picture


def same(picture, other):
    return (picture == other).all()


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
def test_every_scheduler_draws_what_the_unmodified_pipeline_draws(base, scheduler):
    picture, other = ours(base, scheduler), ordinary(base, scheduler)
    # Two pictures of dpm2 were seen to differ by one step of 255.
    rounding = 1 if scheduler.startswith("dpm2") else 0
    assert abs(picture.astype(int) - other.astype(int)).max() <= rounding


def test_guidance_keeps_its_contrast_as_in_the_unmodified_pipeline(base):
    drawn = ours(base, "euler", guidance_rescale=0.7)
    assert same(drawn, ordinary(base, "euler", guidance_rescale=0.7))
    assert not same(drawn, ours(base, "euler"))


@pytest.mark.parametrize(("given", "clips"), [({}, False), ({"clip_sample": True}, True)])
def test_latents_are_clipped_only_where_the_folder_says_so(tmp_path, given, clips):
    """DDIM of diffusers clips by default, and the samplers that SDXL folders are saved with do not say anything."""
    path = xl_folder(tmp_path / "base")
    saved = json.loads((path / "scheduler/scheduler_config.json").read_text())
    assert saved["_class_name"] == EulerDiscreteScheduler.__name__
    assert "clip_sample" not in saved
    (path / "scheduler/scheduler_config.json").write_text(json.dumps({**saved, **given}))
    folder = describe(path)
    assert folder.schedule["clip_sample"] is clips
    assert make_pipeline(load_base(folder), "ddim").scheduler.config.clip_sample is clips


def test_loras_are_fused_as_in_the_unmodified_pipeline(tmp_path):
    path = xl_folder(tmp_path / "base")
    plain = describe(path)
    pipe = xl_pipeline()
    torch.manual_seed(1)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_k", "to_v"]))
    (path / "loras").mkdir()
    StableDiffusionXLPipeline.save_lora_weights(
        path / "loras", weight_name="style.safetensors", unet_lora_layers=get_peft_model_state_dict(pipe.unet)
    )
    (path / "perfusion.json").write_text(json.dumps({"loras": [{"file": "style.safetensors", "weight": 0.7}]}))
    fused = xl_pipeline()
    fused.load_lora_weights(str(path / "loras"), weight_name="style.safetensors")
    fused.fuse_lora(lora_scale=0.7)
    fused.unload_lora_weights()
    base = load_base(describe(path))
    drawn = ours(base, "euler")
    assert same(drawn, ordinary(base, "euler", fused))
    assert not same(drawn, ordinary(base, "euler"))
    assert (describe(path).metric_digest, describe(path).digest != plain.digest) == (plain.metric_digest, True)
