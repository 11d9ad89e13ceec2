"""Scenes with each family and recipe, and beside the same blend by a callback of an unmodified pipeline."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from perfusion_ops.base_model import encode_pictures
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.scenes.blending import latent_stays
from perfusion_ops.scenes.scene import around_product, into_scene
from tests.support import tiny_pixart, tiny_xl
from tests.support.concepts import gated_concept, offset_concept
from tests.support.tiny_base import random_metric, small_base, small_parts

BOX = (4, 4, 12, 16)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Base and scheduler by name."""
    folder = tmp_path_factory.mktemp("scenes")
    return {
        "sd": (small_base(), "ddim"),
        "sdxl": (tiny_xl.xl_base(folder / "xl"), "euler"),
        "pixart": (tiny_pixart.pixart_base(folder / "pixart"), "dpm++"),
    }


def scene(seed=0, strength=1.0, keep=False):
    photo = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = Image.new("L", (16, 16))
    mask.paste(255, BOX)
    if keep:
        return around_product(photo, mask, 16, 16, strength=strength)
    return into_scene(photo, mask, 16, 16, factor=2, strength=strength)


def prompts(base, metric):
    """The same picture with the superclass, and with a concept of each recipe that the family has."""
    gated, offset = gated_concept(base, metric, 1), offset_concept(base, metric, 2, "hat", scale=3)
    rows = [PromptRow("a mug"), PromptRow("a {0}", (gated,), (0.4,), (0.15,))]
    if base.folder.family.regional:
        rows.append(PromptRow("a {0}", (offset,), (0.4,), (0.15,)))
        rows.append(PromptRow("a {0} and a {1}", (gated, offset), (0.4, 0.4), (0.15, 0.15), combine="regional"))
    return rows


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart"])
def test_every_family_and_recipe_draws_into_a_scene_and_around_a_product(bases, name):
    base, scheduler = bases[name]
    metric = random_metric(base.text_width, base_digest=base.folder.metric_digest)
    sampler = Sampler(16, 16, 4, 4.0, scheduler)
    texts = prompts(base, metric)
    scenes = (scene(0), scene(1, strength=0.5), scene(2, keep=True), None)
    rows = [RenderRow(text, PromptRow(""), 7, its) for text in texts for its in scenes]
    together = render(base, metric, rows, sampler)
    for row, picture in zip(rows, together, strict=True):
        [alone] = render(base, metric, [row], sampler)
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1
        if row.scene is not None:
            stays = row.scene.stays == 1
            assert np.array_equal(picture[stays], row.scene.pixels[stays])
            assert (picture[~stays] != row.scene.pixels[~stays]).any(-1).mean() > 0.8
    # Each concept acts where the picture is drawn, in each kind of scene.
    for number in range(len(scenes), len(rows)):
        plain = together[number % len(scenes)]
        assert np.abs(together[number].astype(int) - plain.astype(int)).max() > 4
    # Rows without a scene are what they are in a batch without scenes, to the bit.
    without = [number for number, row in enumerate(rows) if row.scene is None]
    for number, picture in zip(
        without, render(base, metric, [rows[number] for number in without], sampler), strict=True
    ):
        assert np.array_equal(together[number], picture)


@pytest.mark.parametrize("keep", [False, True])
def test_it_is_the_blend_by_a_callback_of_the_unmodified_pipeline(bases, keep):
    base, _ = bases["sd"]
    its = scene(keep=keep)
    [got] = render(
        base, random_metric(24), [RenderRow(PromptRow("a mug"), PromptRow(""), 3, its)], Sampler(16, 16, 4, 4.0, "ddim")
    )
    pipe = StableDiffusionPipeline(
        **small_parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    photo = encode_pictures(base, torch.from_numpy(its.pixels.copy()).movedim(-1, 0)[None] / 127.5 - 1)
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(3))
    stays = latent_stays(torch.from_numpy(its.stays)[None], torch.tensor([its.latent_share]), 8, 8)
    schedule = type(pipe.scheduler).from_config(pipe.scheduler.config)
    schedule.set_timesteps(4)

    def photo_at(step):
        times = schedule.timesteps
        return photo if step == len(times) else schedule.add_noise(photo, noise, times[step : step + 1])

    wanted = pipe(
        "a mug",
        negative_prompt="",
        width=16,
        height=16,
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=torch.where(stays, photo_at(0), noise),
        callback_on_step_end=lambda _pipe, step, _time, given: {
            "latents": torch.where(stays, photo_at(step + 1), given["latents"])
        },
        output_type="pt",
    ).images
    pixels = (wanted[0] * 255).round().clamp(0, 255).movedim(0, -1).numpy()
    drawn = its.stays == 0
    assert np.abs(got[drawn].astype(int) - pixels[drawn]).max() <= 1


def test_a_video_has_no_scene(bases):
    base, _ = bases["sd"]
    row = RenderRow(PromptRow("a mug"), PromptRow(""), 3, scene())
    with pytest.raises(ValueError, match="videos have no scenes"):
        render(base, random_metric(24), [row], Sampler(16, 16, 2, 4.0, "ddim", frames=4))
