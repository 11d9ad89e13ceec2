"""Models for inpainting: their pipelines draw every row, and training shows them what they were trained with."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.base_model import encode_pictures, load_base
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.config import TrainingConfig
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.rivals.parts import load_parts
from perfusion_ops.scenes.scene import around_product, into_scene
from perfusion_ops.training.checkpoint import read_checkpoint, restore_moments, write_checkpoint
from perfusion_ops.training.draws import draw_rows
from perfusion_ops.training.examples import make_example, square
from perfusion_ops.training.holes import WHOLE, hole_inputs, latent_holes
from perfusion_ops.training.state import start
from perfusion_ops.training.trainer import Trainer
from tests.support.concepts import gated_concept, offset_concept
from tests.support.tiny_base import random_metric, small_parts
from tests.support.tiny_inpaint import inpaint_folder
from tests.support.tiny_xl import xl_base, xl_folder

FAMILIES = ("sd", "sdxl")
SCHEDULER = {"sd": "ddim", "sdxl": "euler"}
TEXTS = ("a mug on the beach", "a hat in the snow")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("inpaint")
    return {name: inpaint_folder(root / name, name) for name in FAMILIES}


@pytest.fixture(scope="module")
def bases(folders):
    return {name: load_base(describe(folder)) for name, folder in folders.items()}


def metric_of(base):
    return random_metric(base.text_width, base_digest=base.folder.metric_digest)


def photo(seed, size=(16, 16)):
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def block(size=(16, 16), box=(4, 4, 12, 16)):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def scene(seed=0, strength=1.0, keep=False):
    if keep:
        return around_product(photo(seed), block(), 16, 16, strength=strength)
    return into_scene(photo(seed), block(), 16, 16, factor=2, strength=strength)


def unmodified(folder, scheduler=None, *, steps=4, negative="", **named):
    """What the folder's own pipeline draws, as bytes."""
    pipe = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    family = folder.name
    assert type(pipe).__name__.endswith("InpaintPipeline")
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pictures = pipe(
        list(TEXTS),
        # SDXL's pipeline gives zeros for an absent negative prompt, not for an empty one.
        negative_prompt=None if family == "sdxl" and not negative else [negative] * 2,
        width=16,
        height=16,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="pt",
        **named,
    ).images
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def rows_of(scenes, negative=""):
    return [
        RenderRow(PromptRow(text), PromptRow(negative), seed, its)
        for text, seed, its in zip(TEXTS, (5, 6), scenes, strict=True)
    ]


@pytest.mark.parametrize("negative", ["", "a dark photo"])
@pytest.mark.parametrize(
    ("name", "scheduler", "strength"),
    [
        ("own", None, 1.0),
        ("own", None, 0.5),
        ("dpm++", DPMSolverMultistepScheduler, 0.5),
        ("unipc", UniPCMultistepScheduler, 1.0),
        ("heun", HeunDiscreteScheduler, 0.5),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_scene_is_drawn_by_the_unmodified_pipeline_bit_for_bit(
    folders, bases, family, name, scheduler, strength, negative
):
    base = bases[family]
    name = SCHEDULER[family] if name == "own" else name
    scenes = [scene(0, strength), scene(1, strength)]
    given = {"image": [photo(0), photo(1)], "mask_image": [block(), block()], "strength": strength}
    wanted = unmodified(folders[family], scheduler, negative=negative, **given)
    found = render(base, metric_of(base), rows_of(scenes, negative), Sampler(16, 16, 4, 4.0, name))
    for its, picture, reference in zip(scenes, found, wanted, strict=True):
        assert np.array_equal(picture[its.stays == 0], reference[its.stays == 0])
        assert np.array_equal(picture[its.stays == 1], its.pixels[its.stays == 1])
        assert (reference[its.stays == 1] != its.pixels[its.stays == 1]).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_scene_it_is_the_pipeline_with_a_white_mask_whatever_the_photo(folders, bases, family):
    base, white = bases[family], Image.new("L", (16, 16), 255)
    found = render(base, metric_of(base), rows_of([None, None]), Sampler(16, 16, 4, 4.0, SCHEDULER[family]))
    for image in ([Image.new("RGB", (16, 16))] * 2, [photo(0), photo(1)]):
        wanted = unmodified(folders[family], image=image, mask_image=[white] * 2, strength=1.0)
        assert np.array_equal(np.stack(found), wanted)
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kept_product_is_drawn_around(folders, bases, family):
    base = bases[family]
    its = scene(2, keep=True)
    outside = Image.fromarray(255 - np.asarray(block()))
    wanted = unmodified(folders[family], image=[photo(2)] * 2, mask_image=[outside] * 2, strength=1.0)
    found = render(base, metric_of(base), rows_of([its, its]), Sampler(16, 16, 4, 4.0, SCHEDULER[family]))
    for picture, reference in zip(found, wanted, strict=True):
        assert np.array_equal(picture, np.where(its.stays[..., None] == 1, its.pixels, reference))


def test_the_photo_around_the_region_changes_what_is_drawn_in_it(bases):
    """Blended latents would not: at full strength they read nothing of the photo in the first step."""
    base = bases["sd"]
    first, second = (
        render(base, metric_of(base), rows_of([scene(seed)] * 2), Sampler(16, 16, 4, 4.0, "ddim"))[0] for seed in (0, 7)
    )
    drawn = scene().stays == 0
    assert (first[drawn] != second[drawn]).any(-1).mean() > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_its_rows(bases, family):
    base = bases[family]
    metric = metric_of(base)
    one, other = gated_concept(base, metric, 1), offset_concept(base, metric, 3, "hat", scale=3)
    prompts = [
        PromptRow("a mug"),
        PromptRow("a {0}", (one,), (0.4,), (0.15,)),
        PromptRow("a {0}", (other,), (0.4,), (0.15,)),
        PromptRow("a {0} and a {1}", (one, other), (0.4, 0.4), (0.15, 0.15), combine="regional"),
    ]
    scenes = (scene(0), scene(1, strength=0.5), scene(2, keep=True), None)
    rows = [RenderRow(prompt, PromptRow(""), 7, its) for prompt in prompts for its in scenes]
    sampler = Sampler(16, 16, 4, 4.0, SCHEDULER[family])
    together = render(base, metric, rows, sampler)
    for row, picture in zip(rows, together, strict=True):
        [alone] = render(base, metric, [row], sampler)
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1
        if row.scene is not None:
            stays = row.scene.stays == 1
            assert np.array_equal(picture[stays], row.scene.pixels[stays])
    for number in range(len(scenes), len(rows)):  # each concept acts, in each kind of scene
        plain = together[number % len(scenes)]
        assert np.abs(together[number].astype(int) - plain.astype(int)).max() > 4


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler", "euler_a", "pndm", "unipc", "heun", "dpm2 a", "lcm", "tcd"])
@pytest.mark.parametrize(("strength", "steps", "taken"), [(1.0, 4, 4), (0.5, 4, 2), (0.1, 4, 1), (0.5, 1, 1)])
def test_strength_is_the_share_of_steps_that_are_taken_and_one_always_is(bases, name, strength, steps, taken):
    base = bases["sd"]
    calls = []
    handle = base.denoiser.register_forward_pre_hook(lambda _m, given: calls.append(given[0].shape[1]))
    row = rows_of([scene(0, strength), None])[0]
    [picture] = render(base, metric_of(base), [row], Sampler(16, 16, steps, 4.0, name))
    handle.remove()
    assert (picture[scene().stays == 0] != scene().pixels[scene().stays == 0]).any(-1).mean() > 0.9
    assert set(calls) == {9}
    if name in ("heun", "dpm2 a"):  # these look at most steps twice
        assert len(calls) == 2 * taken - 1
    elif name != "pndm":  # takes one of its steps twice, depending on where it begins
        assert len(calls) == taken


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_told_by_its_denoiser_and_not_by_its_pipeline(folders, tmp_path, family):
    """A folder with the plain pipeline's name and nine channels is for inpainting; one with four is not."""
    copied = tmp_path / family
    shutil.copytree(folders[family], copied)
    index = copied / "model_index.json"
    values = json.loads(index.read_text())
    assert values["_class_name"].endswith("InpaintPipeline")
    plain = {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[family]
    index.write_text(json.dumps({**values, "_class_name": plain}))
    assert describe(copied).inpaints
    assert describe(copied).digest == describe(folders[family]).digest
    config = copied / "unet" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "in_channels": 4}))
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": plain.replace("Pip", "InpaintPip")}))
    assert not describe(copied).inpaints
    for channels in (8, 5, 10):
        config.write_text(json.dumps({**values, "in_channels": channels}))
        with pytest.raises(BaseError, match=f"{channels} input channels and the VAE 4.*use one with 4 channels, or w"):
            describe(copied)


def test_what_a_model_for_inpainting_cannot_do_is_refused(folders, tmp_path):
    folder = describe(folders["sd"])
    with pytest.raises(BaseError, match="motion adapters do not work with"):
        load_base(folder, motion=tmp_path)
    with pytest.raises(BaseError, match="methods are not compared"):
        load_parts(folder)
    assert not folder.rescales
    assert describe(folders["sdxl"]).rescales


# Training


def photos(*seeds, masked=True):
    box = (16, 8, 24, 16)
    return [(photo(seed, (40, 24)), block((40, 24), box) if masked else None) for seed in seeds]


def test_a_hole_is_what_shows_the_product_and_the_latents_next_to_it():
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., 5:8, 6:8] = 0.5  # half of nothing brighter: the product
    masks[..., 0, 0] = 0.2
    holes = latent_holes(masks, 2)[0, 0].bool()
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[1:5, 2:5] = True  # the product is in rows 2 to 3 and column 3
    assert torch.equal(holes, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_further_inputs_are_the_mask_and_the_photo_that_is_grey_there(bases, family):
    base = bases[family]
    config = TrainingConfig(flip=True)
    example = make_example(base, "mug", [*photos(0), *photos(1, masked=False)], config)
    further = example.further
    assert further.shape == (5, 5, 8, 8)
    blank = encode_pictures(base, torch.zeros(1, 3, 16, 16))[0]
    for place in (1, 3, 4):  # no mask, its mirror image, and the hole of the whole picture
        assert (further[place, 0] == 1).all()
        torch.testing.assert_close(further[place, 1:], blank)
    holes = further[0, 0].bool()
    assert 0 < holes.sum() < holes.numel()
    assert torch.equal(further[2, 0].bool(), holes.flip(1))
    picture = (torch.from_numpy(np.asarray(_squared(0))).permute(2, 0, 1) / 127.5 - 1)[None]
    seen = picture * (1 - holes.repeat_interleave(2, 0).repeat_interleave(2, 1).float())
    torch.testing.assert_close(further[0, 1:], encode_pictures(base, seen)[0])


def _squared(seed):
    return square(photo(seed, (40, 24)), 16, "crop")


def test_nothing_of_the_product_is_left_in_the_further_inputs(bases):
    """Another product in the same place gives the same inputs, to the bit."""
    base = bases["sd"]
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., 4:9, 5:11] = 1
    one, other = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    one[..., :9, :3] = 0.7
    other[..., :9, :3] = 0.7
    one[..., 4:9, 5:11] = 0.9
    known = torch.ones(1, dtype=torch.bool)
    assert torch.equal(hole_inputs(base, one, masks, known), hole_inputs(base, other, masks, known))
    other[..., 0, 0] = -1.0
    assert not torch.equal(hole_inputs(base, one, masks, known), hole_inputs(base, other, masks, known))


def test_a_quarter_of_the_rows_has_a_hole_of_the_whole_picture(bases):
    base = bases["sd"]
    example = make_example(base, "mug", photos(0, 1), TrainingConfig(batch=1000))
    trainer = Trainer(base, metric_of(base), [example])
    draws = trainer.draw(0)
    whole = [draw.hole == 2 for draw in draws]
    assert 0.2 < sum(whole) / len(whole) < 0.3
    assert WHOLE == 4
    assert all(draw.hole == draw.image for draw, every in zip(draws, whole, strict=True) if not every)
    again = Trainer(base, metric_of(base), [example]).draw(0)
    assert [draw.hole for draw in again] == [draw.hole for draw in draws]


def test_draws_are_otherwise_those_of_a_plain_model(bases):
    """The holes are drawn after all else of a step."""
    base = bases["sd"]
    example = make_example(base, "mug", photos(0, 1), TrainingConfig(batch=6, stratified=True, flip=True))
    plain = replace(example, further=None)
    states = [start(base, example) for _ in range(2)]
    one, other = (
        draw_rows(0, each, state.generator, templates=3, timesteps=100)
        for each, state in zip((example, plain), states, strict=True)
    )
    for first, second in zip(one, other, strict=True):
        assert (first.image, first.template, first.timestep) == (second.image, second.template, second.timestep)
        assert torch.equal(first.noise, second.noise)
        assert second.hole is None


def test_the_denoiser_sees_noisy_latents_mask_and_masked_latents(bases):
    base = bases["sd"]
    example = make_example(base, "mug", photos(0), TrainingConfig(steps=1, batch=8))
    trainer = Trainer(base, metric_of(base), [example])
    twin = Trainer(base, metric_of(base), [example])
    draws = twin.draw(0)
    seen = []
    handle = base.denoiser.register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0].detach().clone()))
    trainer.run()
    handle.remove()
    [given] = seen
    assert given.shape == (8, 9, 8, 8)
    for row, draw in zip(given, draws, strict=True):
        noisy = trainer._noise.add_noise(
            example.latents[draw.image][None], draw.noise[None], torch.tensor([draw.timestep])
        )[0]
        assert torch.equal(row[:4], noisy)
        assert torch.equal(row[4:], example.further[draw.hole])


@pytest.mark.parametrize(("recipe", "rank"), [("paper", 0), ("offset", 0), ("offset", 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_concepts_trained_together_equal_each_alone(bases, family, recipe, rank):
    base = bases[family]
    metric = metric_of(base)
    config = TrainingConfig(steps=3, batch=4).overridden({"recipe": recipe, "conv_rank": rank})
    examples = [
        make_example(base, name, photos(seed, seed + 10, masked=seed != 1), config.overridden({"seed": seed}))
        for seed, name in enumerate(("mug", "teddy bear", "hat"))
    ]
    together = Trainer(base, metric, examples, micro_batch=5)
    together.run()
    for example, state in zip(examples, together.states, strict=True):
        alone = Trainer(base, metric, [example], checkpointed=True)
        alone.run()
        [single] = alone.states
        assert single.problem is None
        assert single.loss == pytest.approx(state.loss, rel=1e-4)
        fresh = start(base, example).parameters()
        for name, parameter in single.parameters().items():
            torch.testing.assert_close(state.parameters()[name], parameter, rtol=1e-3, atol=1e-4)
            assert not torch.equal(parameter, fresh[name])


def test_a_training_resumed_from_a_checkpoint_is_the_one_that_was_never_stopped(bases):
    base = bases["sd"]
    metric = metric_of(base)
    example = make_example(base, "mug", photos(0, 1), TrainingConfig(steps=6, batch=4))
    whole = Trainer(base, metric, [example])
    whole.run()
    first = Trainer(base, metric, [example])
    first.advance(3)
    data = write_checkpoint(first.states[0], first.optimizer)
    state, moments = read_checkpoint(data, start(base, example))
    second = Trainer(base, metric, [example], states=[state])
    restore_moments(second.optimizer, state, moments)
    second.run()
    for name, parameter in whole.states[0].parameters().items():
        assert torch.equal(second.states[0].parameters()[name], parameter)
    assert second.states[0].losses == whole.states[0].losses


def test_an_example_of_a_plain_model_is_refused(bases):
    base = bases["sd"]
    example = replace(make_example(base, "mug", photos(0), TrainingConfig(steps=1)), further=None)
    with pytest.raises(ValueError, match="was made with another one"):
        Trainer(base, metric_of(base), [example]).step()


# Siblings


def test_a_concept_of_the_plain_sibling_draws_in_the_model_for_inpainting(tmp_path, bases):
    """Only the first layer differs, so the stack of keys and values is the same."""
    base, plain = bases["sdxl"], xl_base(tmp_path)
    assert base.folder.family == plain.folder.family
    assert base.folder.text_digest == plain.folder.text_digest
    assert base.folder.digest != plain.folder.digest
    assert base.stack.widths == plain.stack.widths
    assert torch.equal(base.stack.weight, plain.stack.weight)
    metric = metric_of(plain)
    example = make_example(plain, "mug", photos(0), TrainingConfig(steps=4, batch=2, store="difference"))
    assert example.further is None
    trainer = Trainer(plain, metric, [example])
    trainer.run()
    concept = trainer.states[0].concept(example, plain, metric)
    row = RenderRow(PromptRow("a {0}", (concept,), (0.4,), (0.15,)), PromptRow(""), 7, scene())
    sampler = Sampler(16, 16, 4, 4.0, "euler")
    [drawn], [named] = (
        render(base, metric, [each], sampler) for each in (row, replace(row, positive=PromptRow("a mug")))
    )
    assert (drawn != named).any()


def test_plain_folders_are_described_as_before(tmp_path):
    assert not describe(xl_folder(tmp_path / "xl")).inpaints
    assert small_parts()["unet"].config.in_channels == 4
