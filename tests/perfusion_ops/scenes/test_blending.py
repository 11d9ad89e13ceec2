"""Blended latents: what stays is the photo's with every scheduler, and rows do not affect each other."""

from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion_ops.base_model import encode_pictures
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.config import Scheduler
from perfusion_ops.pipelines import make_scheduler
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.scenes.blending import SceneScheduler
from perfusion_ops.scenes.scene import Scene, around_product, into_scene
from tests.support.tiny_base import random_metric, small_base

SAMPLER = Sampler(16, 16, 4, 4.0, "ddim")
NAMES = get_args(Scheduler)


@pytest.fixture(scope="module")
def base():
    return small_base()


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


def scene(seed=0, strength=1.0, keep=False):
    photo = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 16))
    if keep:
        return around_product(photo, mask, 16, 16, strength=strength)
    return into_scene(photo, mask, 16, 16, factor=2, strength=strength)


def row(seed, its=None, text="a photo of a mug"):
    return RenderRow(PromptRow(text), PromptRow(""), seed, its)


def latents_of(base, monkeypatch, rows, sampler):
    """What the VAE is given to decode."""
    seen = []
    decode = base.vae.decode
    monkeypatch.setattr(base.vae, "decode", lambda latents, *a, **k: seen.append(latents) or decode(latents, *a, **k))
    metric = random_metric(24)
    render(base, metric, rows, sampler)
    return seen[0] * base.vae.config.scaling_factor


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_what_stays_has_the_latents_of_the_photo_and_the_rest_is_drawn(base, monkeypatch, name, strength):
    its = scene(strength=strength)
    latents = latents_of(base, monkeypatch, [row(1, its)], Sampler(16, 16, 4, 4.0, name))
    photo = encode_pictures(base, torch.from_numpy(its.pixels.copy()).movedim(-1, 0)[None] / 127.5 - 1)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:8, 2:6] = True
    torch.testing.assert_close(latents[0][:, ~inside], photo[0][:, ~inside])
    assert (latents[0][:, inside] - photo[0][:, inside]).abs().amax(0).min() > 1e-3
    assert torch.isfinite(latents).all()


@pytest.mark.parametrize("keep", [False, True])
def test_pixels_that_stay_are_those_of_the_photo(base, metric, keep):
    its = scene(keep=keep)
    [picture] = render(base, metric, [row(1, its)], SAMPLER)
    assert picture.shape == (16, 16, 3)
    assert np.array_equal(picture[its.stays == 1], its.pixels[its.stays == 1])
    assert (picture[its.stays == 0] != its.pixels[its.stays == 0]).any(-1).mean() > 0.9


def test_a_mixed_batch_equals_its_rows(base, metric):
    batch = [
        row(1, scene(0)),
        row(2, text="a hat in the snow"),
        row(3, scene(1, strength=0.5)),
        row(4, scene(2, keep=True)),
        row(5),
        row(1, scene(3)),
    ]
    together = render(base, metric, batch, SAMPLER)
    for got, each in zip(together, batch, strict=True):
        [alone] = render(base, metric, [each], SAMPLER)
        assert np.abs(got.astype(int) - alone.astype(int)).max() <= 1
    assert np.abs(together[0].astype(int) - together[5].astype(int)).max() > 8


def test_a_row_without_a_scene_is_not_changed_by_one_beside_it(base, metric):
    [alone] = render(base, metric, [row(2)], SAMPLER)
    assert np.array_equal(render(base, metric, [row(1, scene()), row(2)], SAMPLER)[1], alone)


def test_a_scene_that_is_drawn_all_over_at_full_strength_is_a_picture_without_scene(base, metric):
    its = Scene(scene().pixels, np.zeros((16, 16), np.float32))
    for name in ("ddim", "euler"):
        sampler = Sampler(16, 16, 4, 4.0, name)
        one, other = (render(base, metric, [row(7, each)], sampler)[0].astype(int) for each in (its, None))
        assert np.abs(one - other).max() <= 1


def test_less_strength_leaves_more_of_the_photo(base, monkeypatch):
    drawn = Scene(scene().pixels, np.zeros((16, 16), np.float32))
    photo = encode_pictures(base, torch.from_numpy(drawn.pixels.copy()).movedim(-1, 0)[None] / 127.5 - 1)
    far = []
    for strength in (0.1, 0.5, 1.0):
        its = Scene(drawn.pixels, drawn.stays, strength)
        latents = latents_of(base, monkeypatch, [row(7, its)], Sampler(16, 16, 10, 4.0, "ddim"))
        far.append(float((latents - photo).abs().mean()))
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("strength", "steps"), [(1.0, 6), (0.5, 3), (0.34, 2), (0.05, 1)])
def test_strength_is_the_share_of_steps_that_are_taken(name, strength, steps):
    config = small_base().scheduler.config
    zeros = torch.zeros(1, 4, 8, 8)
    plain = make_scheduler(name, config)
    plain.set_timesteps(6)
    wrapped = SceneScheduler(make_scheduler(name, config), zeros, zeros, zeros[:, :1] > 0, strength)
    wrapped.set_timesteps(6, device="cpu")
    every, taken = plain.timesteps.tolist(), wrapped.timesteps.tolist()
    if name == "pndm":  # takes its second step twice
        every, taken = list(dict.fromkeys(every)), list(dict.fromkeys(taken))
    # Samplers of the second order look at most steps twice.
    assert taken == every[-(2 * steps - 1 if plain.order == 2 else steps) :]
    assert wrapped.begin().shape == zeros.shape
