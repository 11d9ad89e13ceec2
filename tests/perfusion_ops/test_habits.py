"""What users of Stable Diffusion set: without concepts, each setting gives the unmodified pipeline's picture."""

from typing import get_args

import pytest
import torch
from diffusers import StableDiffusionPipeline

from perfusion_ops import rendering
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.config import Scheduler
from perfusion_ops.pipelines import make_scheduler
from perfusion_ops.rendering import RenderRow, Sampler, render
from tests.support.concepts import offset_concept
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


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
def test_a_concept_of_recipe_offset_acts_with_every_scheduler(scheduler):
    base, metric = small_base(), random_metric(24)
    concept = offset_concept(base, metric, 0, "hat", scale=3)
    sampler = Sampler(16, 16, 6, 4.0, scheduler)
    texts = [PromptRow("a {0}", (concept,), (0.4,), (0.15,), strength=strength) for strength in (1.0, 0.0)]
    acts, none = render(base, metric, [RenderRow(text, PromptRow(""), 5) for text in texts], sampler)
    assert abs(acts.astype(int) - none.astype(int)).max() > 4


def test_guidance_keeps_its_contrast_as_in_the_unmodified_pipeline():
    base = small_base()
    drawn = ours(base, "ddim", guidance_rescale=0.7)
    for picture, reference in zip(drawn, ordinary("ddim", guidance_rescale=0.7), strict=True):
        assert (picture == reference).all()
    assert (drawn[0] != ours(base, "ddim")[0]).any()


def test_large_pictures_are_decoded_one_by_one_with_the_same_pixels(monkeypatch):
    base = small_base()
    together = ours(base, "ddim")
    decoded = []
    inner = base.vae.decoder.forward
    monkeypatch.setattr(base.vae.decoder, "forward", lambda latents: decoded.append(len(latents)) or inner(latents))
    monkeypatch.setattr(rendering, "_SLICED_PIXELS", 16 * 16)
    alone = ours(base, "ddim")
    assert decoded == [1, 1]
    assert all((one == other).all() for one, other in zip(together, alone, strict=True))
    assert not base.vae.use_slicing


def test_tiles_are_those_of_the_unmodified_pipeline():
    parts = small_parts()
    parts["vae"].enable_tiling()
    base = small_base()
    for each in (base.vae, parts["vae"]):
        each.tile_sample_min_size, each.tile_latent_min_size = 8, 4  # half a picture
    drawn = ours(base, "ddim", vae_tiling=True)
    for picture, reference in zip(drawn, ordinary("ddim", parts), strict=True):
        assert (picture == reference).all()
    assert (drawn[0] != ours(base, "ddim")[0]).any()
