"""Videos with a motion adapter: the stack is the base model's own, and a concept acts in every frame."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler
from safetensors.torch import load_file, save_file

from perfusion_ops.attention.convolutions import ConvolutionBatch, edited, edited_layers, fresh
from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.base_model import load_base
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.rendering import RenderRow, Sampler, render
from tests.support.concepts import gated_concept, offset_concept
from tests.support.tiny_base import random_metric, small_parts
from tests.support.tiny_motion import adapter, video_folders
from tests.support.tiny_xl import xl_folder

FRAMES = 4
SAMPLER = Sampler(16, 16, 3, 4.0, "ddim", FRAMES)
TEXTS = ("a mug on the beach", "a hat in the snow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return video_folders(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def base(folder):
    return load_base(describe(folder / "base"), motion=folder / "motion")


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


def concepts(base, metric):
    return gated_concept(base, metric, 0), offset_concept(base, metric, 1, "hat")


def edit(base):
    made = fresh(edited_layers(base.denoiser), 2, 0)
    return replace(made, writes=torch.randn(made.writes.shape, generator=torch.Generator().manual_seed(1)))


def test_the_stack_is_that_of_the_base_model(base, folder):
    still = load_base(describe(folder / "base"))
    assert torch.equal(base.stack.weight, still.stack.weight)
    # The motion modules have attentions of the same name, to the frames; they are not in the stack.
    assert sum(name.endswith("attn2") for name, _ in base.denoiser.named_modules()) > len(base.stack.widths)


def test_without_concepts_it_is_the_unmodified_pipeline_bit_for_bit(base, metric, folder):
    # StableDiffusionPipeline corrects the schedule that it is given, and saves it corrected.
    parts = {**small_parts(), "scheduler": DDIMScheduler.from_pretrained(folder / "base", subfolder="scheduler")}
    pipe = AnimateDiffPipeline(**parts, motion_adapter=adapter())
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae):
        part.eval().to(memory_format=torch.channels_last)
    wanted = pipe(
        list(TEXTS),
        negative_prompt=["", ""],
        num_frames=FRAMES,
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="pt",
    ).frames
    rows = [RenderRow(PromptRow(text), PromptRow(""), seed) for text, seed in zip(TEXTS, (5, 6), strict=True)]
    found = render(base, metric, rows, SAMPLER)
    pixels = (wanted * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    for video, reference in zip(found, pixels, strict=True):
        assert video.shape == (FRAMES, 16, 16, 3)
        assert (video == reference).all()
        assert (video[0] != video[1]).any()


def test_a_mixed_batch_equals_its_rows(base, metric):
    gated, offset = concepts(base, metric)
    changed = replace(offset, convolutions=edit(base))
    positive = [
        PromptRow("a {0} on the beach", (gated,), (0.5,), (0.15,)),
        PromptRow("a {0} in the snow", (offset,), (0.5,), (0.15,)),
        PromptRow("a mug on the beach"),
        PromptRow("a {0} on a {1}", (gated, offset), (0.5, 0.5), (0.15, 0.15), combine="regional"),
        PromptRow("a {0} in the snow", (changed,), (0.5,), (0.15,)),
    ]
    rows = [RenderRow(row, PromptRow(""), seed) for seed, row in enumerate(positive)]
    together = render(base, metric, rows, SAMPLER)
    for row, video in zip(rows, together, strict=True):
        [alone] = render(base, metric, [row], SAMPLER)
        assert abs(video.astype(int) - alone.astype(int)).max() <= 1
    plain = render(base, metric, [RenderRow(PromptRow("a mug on the beach"), PromptRow(""), 0)], SAMPLER)
    assert all((together[0][frame] != plain[0][frame]).any() for frame in range(FRAMES))


def test_an_edit_of_convolutions_acts_in_every_frame(base, metric):
    _, offset = concepts(base, metric)
    changed = replace(offset, convolutions=edit(base))
    rows = [
        RenderRow(PromptRow("a {0} in the snow", (each,), (0.5,), (0.15,)), PromptRow(""), 7)
        for each in (offset, changed, replace(changed, convolutions=fresh(edited_layers(base.denoiser), 2, 0)))
    ]
    without, with_it, zero = render(base, metric, rows, SAMPLER)
    assert all((with_it[frame] != without[frame]).any() for frame in range(FRAMES))
    assert np.abs(zero.astype(int) - without.astype(int)).max() <= 1


def test_where_it_acts_the_denoiser_of_every_frame_has_other_weights(base):
    """Motion layers mix frames, so that pictures alone do not say in which of them the edit acted."""
    layers, change = edited_layers(base.denoiser), edit(base)
    batch = ConvolutionBatch(change.reads[None, None], change.writes[None, None]).rows(torch.zeros(FRAMES, dtype=int))
    g = torch.Generator().manual_seed(3)
    sample = torch.randn(1, 4, FRAMES, 8, 8, generator=g)
    kv = torch.randn(FRAMES, 7, len(base.stack.weight), generator=g)
    with torch.no_grad(), edited(layers, batch, lambda _height, _width: torch.ones(FRAMES, 1, 1, 1)):
        got = base.denoiser(sample, 300, kv).sample
    other = copy.deepcopy(base.denoiser)
    for layer in edited_layers(other):
        reads, writes = change.reads[:, layer.reads], change.writes[:, layer.writes]
        layer.module.weight.data += (writes.T @ reads).view(layer.module.weight.shape)
    with torch.no_grad():
        wanted = other(sample, 300, kv).sample
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_an_adapter_that_does_not_fit_is_refused(folder, tmp_path):
    adapter(block_out_channels=(16, 32, 32)).save_pretrained(tmp_path / "other")
    for motion in (tmp_path / "other", tmp_path / "nowhere"):
        with pytest.raises(BaseError, match="does not fit the base model"):
            load_base(describe(folder / "base"), motion=motion)
    with pytest.raises(BaseError, match="not with SDXL"):
        load_base(describe(xl_folder(tmp_path / "xl")), motion=folder / "motion")


def test_an_adapter_that_lacks_weights_is_refused(folder, tmp_path):
    shutil.copytree(folder / "motion", tmp_path / "motion")
    file = tmp_path / "motion" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    lost = sorted(weights)[0]
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, file)
    with pytest.raises(BaseError, match=r"does not fit the base model.*it lacks "):
        load_base(describe(folder / "base"), motion=tmp_path / "motion")


def test_an_adapter_brings_its_noise_schedule(folder, metric, tmp_path):
    shutil.copytree(folder / "motion", tmp_path / "motion")
    (tmp_path / "motion" / "scheduler").mkdir()
    schedule = tmp_path / "motion" / "scheduler" / "scheduler_config.json"
    schedule.write_text(json.dumps({"beta_schedule": "scaled_linear"}))
    plain = load_base(describe(folder / "base"), motion=folder / "motion")
    other = load_base(describe(folder / "base"), motion=tmp_path / "motion")
    assert dict(other.scheduler.config) == {**plain.scheduler.config, "beta_schedule": "scaled_linear"}
    row = RenderRow(PromptRow("a mug on the beach"), PromptRow(""), 5)
    [video], [before] = (render(base, metric, [row], SAMPLER) for base in (other, plain))
    assert (video != before).any()
    # What a schedule of the base model gives is given by the same schedule of the adapter.
    shutil.copytree(folder / "base", tmp_path / "base")
    config = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_schedule": "scaled_linear"}))
    [wanted] = render(load_base(describe(tmp_path / "base"), motion=folder / "motion"), metric, [row], SAMPLER)
    assert (video == wanted).all()


def test_frames_are_decoded_one_by_one(base, metric):
    """The memory of the VAE is that of one frame."""
    seen = []
    handle = base.vae.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    render(base, metric, [RenderRow(PromptRow("a mug"), PromptRow(""), 1)], SAMPLER)
    handle.remove()
    assert seen == [1] * FRAMES
    assert base.vae.use_slicing is False
