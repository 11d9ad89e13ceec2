"""What users of Stable Diffusion set: without concepts, each setting gives the unmodified pipeline's picture."""

from typing import get_args

import pytest
import torch
from diffusers import StableDiffusionPipeline

from perfusion_ops.conditioning import PromptRow
from perfusion_ops.config import Scheduler
from perfusion_ops.rendering import RenderRow, Sampler, make_scheduler, render
from tests.support.tiny_base import random_metric, small_base, small_parts

TEXTS = ("a mug on the beach", "a hat in the snow")
SEEDS = (5, 6)
CONFIG = {"num_train_timesteps": 100, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def ordinary(scheduler, parts=None, **options):
    """The pictures of an unmodified pipeline, (B, H, W, 3) uint8."""
    parts = parts or small_parts()
    for part in (parts["unet"], parts["vae"]):
        part.to(memory_format=torch.channels_last)
    pipe = StableDiffusionPipeline(
        **{**parts, "scheduler": make_scheduler(scheduler, parts["scheduler"].config)},
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        list(TEXTS),
        negative_prompt=["a dark photo"] * 2,
        width=16,
        height=16,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="pt",
        **options,
    ).images
    return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def ours(base, scheduler, **options):
    rows = [
        RenderRow(PromptRow(text), PromptRow("a dark photo"), seed) for text, seed in zip(TEXTS, SEEDS, strict=True)
    ]
    return render(base, random_metric(24), rows, Sampler(16, 16, 4, 4.0, scheduler, **options))


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
def test_every_scheduler_draws_what_the_unmodified_pipeline_draws(scheduler):
    drawn = ours(small_base(), scheduler)
    for picture, reference in zip(drawn, ordinary(scheduler), strict=True):
        assert (picture == reference).all()
