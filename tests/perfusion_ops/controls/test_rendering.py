"""ControlNets: equal to the unmodified pipelines without concepts, and the method's guarantees with them."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from PIL import Image

from perfusion_ops.attention.references import self_attentions
from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import encode_pictures, load_base
from perfusion_ops.concept import References
from perfusion_ops.conditioning import PromptRow, condition, project_superclasses
from perfusion_ops.controls.net import prepared
from perfusion_ops.pipelines import make_pipeline, make_scheduler
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.scenes.blending import latent_stays
from perfusion_ops.scenes.scene import into_scene
from tests.support.concepts import gated_concept, offset_concept
from tests.support.tiny_base import random_metric, small_parts
from tests.support.tiny_control import control_folder, control_model, control_net, drawing, sd_folder, shown
from tests.support.tiny_xl import xl_folder, xl_pipeline, xl_unet

TEXTS = ("a mug on the beach", "a hat in the snow")
SEEDS = (5, 6)


class Kit:
    """One family: its base model, its ControlNets, and the unmodified pipeline."""

    def __init__(self, name, path, *, zero_negative=True):
        self.name = name
        unet = small_parts()["unet"] if name == "sd" else xl_unet()
        if name == "sd":
            sd_folder(path / "base")
        else:
            xl_folder(path / "base", zero_negative=zero_negative)
        control_folder(path / "canny", unet, seed=1)
        control_folder(path / "depth", unet, seed=2)
        self.base = load_base(describe(path / "base"))
        self.canny, self.depth = (control_net(self.base, path / each) for each in ("canny", "depth"))
        self.metric = random_metric(self.base.text_width, base_digest=self.base.folder.metric_digest)
        self.scheduler = "ddim" if name == "sd" else "euler"
        self.sampler = Sampler(16, 16, 3, 4.0, self.scheduler)
        self.zero_negative = zero_negative

    def unmodified(self, seed=1):
        """diffusers' own pipeline, with the weights of `canny`, or those of `depth` with the seed 2."""
        if self.name == "sd":
            parts = small_parts()
            net = control_model(parts["unet"], seed=seed)
            pipe = StableDiffusionControlNetPipeline(
                **parts, controlnet=net, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        else:
            plain = xl_pipeline(zero_negative=self.zero_negative)
            net = control_model(plain.unet, seed=seed)
            pipe = StableDiffusionXLControlNetPipeline(
                vae=plain.vae,
                text_encoder=plain.text_encoder,
                text_encoder_2=plain.text_encoder_2,
                tokenizer=plain.tokenizer,
                tokenizer_2=plain.tokenizer_2,
                unet=plain.unet,
                controlnet=net,
                scheduler=plain.scheduler,
                force_zeros_for_empty_prompt=self.zero_negative,
                add_watermarker=False,
            )
        for part in (pipe.unet, pipe.vae, pipe.controlnet):
            part.to(memory_format=torch.channels_last)
        pipe.scheduler = make_scheduler(self.scheduler, self.base.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        return pipe


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return {name: Kit(name, tmp_path_factory.mktemp(name)) for name in ("sd", "sdxl")}


@pytest.fixture(params=["sd", "sdxl"])
def kit(kits, request):
    return kits[request.param]


def pixels_of(images):
    return (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def concepts(kit):
    """One of each recipe, and another gated one."""
    base, metric = kit.base, kit.metric
    mug, bear = gated_concept(base, metric, 1), gated_concept(base, metric, 2, "teddy bear")
    return mug, bear, offset_concept(base, metric, 3, "hat", scale=3)


@pytest.mark.parametrize("negative", ["", "a dark photo"])
@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_without_concepts_it_is_the_unmodified_pipeline_bit_for_bit(kit, negative, guidance, strength):
    """The unmodified one is given texts and pictures of any size."""
    given = {} if kit.name == "sdxl" and not negative else {"negative_prompt": [negative] * 2}
    wanted = kit.unmodified()(
        list(TEXTS),
        image=[drawing(0), drawing(1)],
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=guidance,
        controlnet_conditioning_scale=strength,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="pt",
        **given,
    ).images
    rows = [
        RenderRow(PromptRow(text), PromptRow(negative), seed, control=shown(kit.canny, number, strength))
        for number, (text, seed) in enumerate(zip(TEXTS, SEEDS, strict=True))
    ]
    got = render(kit.base, kit.metric, rows, replace(kit.sampler, guidance=guidance))
    assert np.array_equal(np.stack(got), pixels_of(wanted))


def test_a_picture_is_prepared_as_the_pipeline_does(kit):
    for size in ((40, 24), (16, 16), (7, 90)):
        for mode in ("RGB", "L", "RGBA"):
            picture = drawing(3, size).convert(mode)
            wanted = kit.unmodified().control_image_processor.preprocess(picture, height=24, width=32)
            assert torch.equal(
                torch.from_numpy(prepared(picture, 32, 24) / np.float32(255)).movedim(-1, 0)[None], wanted
            )


def test_another_net_another_picture_and_another_strength_draw_other_pictures(kit):
    def drawn(control):
        return render(
            kit.base, kit.metric, [RenderRow(PromptRow("a mug"), PromptRow(""), 1, control=control)], kit.sampler
        )[0]

    one = drawn(shown(kit.canny))
    others = [shown(kit.depth), shown(kit.canny, 1), shown(kit.canny, strength=0.2), None]
    for control in others:
        assert np.abs(drawn(control).astype(int) - one).max() > 4


def mixed(kit):
    mug, bear, hat = concepts(kit)
    one, two = (0.4,), (0.4, 0.4)
    positive = [
        PromptRow("a {0} on the beach", (mug,), one, one),
        PromptRow("a photo of a mug"),
        PromptRow("a {1} next to a {0}", (mug, bear), two, two),
        PromptRow("a {0} in the snow", (bear,), one, one, "global"),
        PromptRow("a {0} in the snow", (hat,), one, one),
        PromptRow("a {0} and a {1}", (hat, mug), two, two, combine="regional"),
        PromptRow("a {0} and a {1}", (mug, bear), two, two, combine="regional"),
        PromptRow("a (red)1.4 {0}", (mug,), one, one, weighted=True),
    ]
    negative = [PromptRow("", (mug,), one, one), *[PromptRow("")] * 5, PromptRow("a dark photo"), PromptRow("")]
    controls = [
        None,
        shown(kit.canny, 0),
        shown(kit.canny, 1, 0.5),
        shown(kit.depth, 0),
    ]
    return [
        RenderRow(p, n, seed, control=control)
        for seed, (p, n) in enumerate(zip(positive, negative, strict=True))
        for control in controls
    ]


def test_a_mixed_batch_equals_its_rows(kit):
    rows = mixed(kit)
    together = render(kit.base, kit.metric, rows, kit.sampler)
    for row, picture in zip(rows, together, strict=True):
        [alone] = render(kit.base, kit.metric, [row], kit.sampler)
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1
    # Each ControlNet acts on rows of every recipe, and each concept beside every ControlNet.
    numbers = np.stack(together).astype(int).reshape(8, 4, 16, 16, 3)
    assert (np.abs(numbers[:, 1:] - numbers[:, :1]).max(axis=(2, 3, 4)) > 4).all()
    # Rows without a control are what they are in a batch without controls, to the bit.
    plain = [row for row in rows if row.control is None]
    without = render(kit.base, kit.metric, plain, kit.sampler)
    assert all(np.array_equal(together[4 * number], picture) for number, picture in enumerate(without))


def test_prompts_of_several_chunks_have_controls_too(kit):
    """Each chunk is read with the superclass in the concept's place, although both divide a prompt differently."""
    mug, bear, _ = concepts(kit)
    words = " ".join(["a red mug on a blue table"] * 5)
    one = (0.4,)
    negative = PromptRow("", chunks=2)
    texts = [
        PromptRow(f"{words} and a {{0}} in the snow", (bear,), one, one, chunks=2),
        PromptRow(f"{words} and a teddy bear in the snow", chunks=2),
        PromptRow("a {0}", (mug,), one, one),
    ]
    rows = [
        RenderRow(text, negative if text.chunks == 2 else PromptRow(""), 3, control=control)
        for text in texts
        for control in (shown(kit.canny), None)
    ]
    width = len(kit.base.stack.weight)
    edited, plain = (columns_seen(kit, [row]) for row in (rows[0], rows[2]))
    assert edited.shape[1] == 2 * 32
    assert torch.equal(edited[..., width:], plain[..., width:])
    together = render(kit.base, kit.metric, rows, kit.sampler)
    for row, picture in zip(rows, together, strict=True):
        [alone] = render(kit.base, kit.metric, [row], kit.sampler)
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1


def test_concepts_change_the_base_model_s_columns_alone(kit):
    mug, bear, hat = concepts(kit)
    one = (0.4,)
    pairs = [
        (PromptRow("a {0} on the beach", (mug,), one, one), "a mug on the beach"),
        (PromptRow("a {0} on the beach", (mug,), one, one, "global"), "a mug on the beach"),
        (PromptRow("a {0} and a {1}", (bear, hat), one * 2, one * 2), "a teddy bear and a hat"),
        (PromptRow("a (red)1.4 {0}", (mug,), one, one, weighted=True), "a (red)1.4 mug"),
    ]
    rows = [row for row, _ in pairs]
    plain = [PromptRow(text, weighted=row.weighted) for row, text in pairs]
    weight = kit.canny.weight
    assert weight.shape[1] == kit.base.text_width
    assert len(weight) > 0
    assert torch.equal(project_superclasses(kit.base, rows, weight), project_superclasses(kit.base, plain, weight))
    assert not torch.allclose(condition(kit.base, kit.metric, rows).kv, condition(kit.base, kit.metric, plain).kv)


def columns_seen(kit, rows):
    """What the ControlNet is given to read at its first call."""
    seen = []
    module = kit.canny.module
    hook = module.register_forward_pre_hook(
        lambda _module, _given, named: seen.append(named["encoder_hidden_states"]), with_kwargs=True
    )
    render(kit.base, kit.metric, rows, kit.sampler)
    hook.remove()
    return seen[0]


def test_the_net_reads_the_superclass_prompt_and_the_base_model_the_concept(kit):
    mug, *_ = concepts(kit)
    row = RenderRow(PromptRow("a {0}", (mug,), (0.4,), (0.4,)), PromptRow("dark"), 1, control=shown(kit.canny))
    edited = columns_seen(kit, [row])
    plain = columns_seen(kit, [replace(row, positive=PromptRow("a mug"))])
    width = len(kit.base.stack.weight)
    assert edited.shape[-1] == width + len(kit.canny.weight)
    assert torch.equal(edited[..., width:], plain[..., width:])
    assert torch.equal(edited[:1], plain[:1])  # the negative prompt
    assert (edited[1:, :, :width] - plain[1:, :, :width]).abs().max() > 1e-2
    # The net's own projections of the encodings, as the unmodified net computes them.
    names = [name for name, _ in kit.canny.module.named_modules() if name.endswith("attn2")]
    module = kit.unmodified().controlnet
    encodings = kit.base.texts.encode([kit.base.texts.tokenize("a mug")]).encodings
    for name in names:
        for projection in ("to_k", "to_v"):
            own = kit.canny.module.get_submodule(f"{name}.{projection}")(edited[1:])
            wanted = module.get_submodule(f"{name}.{projection}")(encodings)
            torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_scene_may_have_a_control(kit, strength):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 16))
    its = into_scene(photo, mask, 16, 16, factor=2, strength=strength)
    mug, *_ = concepts(kit)
    texts = (PromptRow("a mug"), PromptRow("a {0}", (mug,), (0.4,), (0.4,)))
    rows = [
        RenderRow(text, PromptRow(""), 7, scene, control)
        for text in texts
        for scene in (its, None)
        for control in (shown(kit.canny), shown(kit.depth, 1, 0.5), None)
    ]
    together = render(kit.base, kit.metric, rows, kit.sampler)
    for row, picture in zip(rows, together, strict=True):
        [alone] = render(kit.base, kit.metric, [row], kit.sampler)
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1
        if row.scene:
            assert np.array_equal(picture[its.stays == 1], its.pixels[its.stays == 1])
    numbers = np.stack(together).astype(int).reshape(2, 2, 3, -1)
    assert (np.abs(numbers[:, :, :2] - numbers[:, :, 2:]).max(-1) > 4).all()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_photos_to_look_at_are_seen_in_scenes_and_with_controls(kit, strength, monkeypatch):
    for _, attention in self_attentions(kit.base.denoiser):  # random weights hardly look anywhere
        monkeypatch.setattr(attention.to_out[0].weight, "data", attention.to_out[0].weight.data * 30)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 16))
    its = into_scene(picture, mask, 16, 16, factor=2, strength=strength)
    *_, hat = concepts(kit)
    sampler = replace(kit.sampler, steps=6)  # nothing acts in the first step that a scene leaves
    g = torch.Generator().manual_seed(2)
    photos = References(torch.randn(2, 4, 8, 8, generator=g), torch.rand(2, 8, 8, generator=g) < 0.5)
    rows = [
        RenderRow(PromptRow("a {0}", (concept,), (0.4,), (0.4,)), PromptRow(""), 7, scene, control)
        for concept in (hat, replace(hat, references=photos))
        for scene in (its, None)
        for control in (shown(kit.canny), None)
    ]
    together = render(kit.base, kit.metric, rows, sampler)
    for row, drawn in zip(rows, together, strict=True):
        [alone] = render(kit.base, kit.metric, [row], sampler)
        assert np.abs(drawn.astype(int) - alone.astype(int)).max() <= 1
        if row.scene:
            assert np.array_equal(drawn[its.stays == 1], its.pixels[its.stays == 1])
    without, seeing = np.stack(together).astype(int).reshape(2, 4, -1)
    assert (np.abs(without - seeing).max(-1) > 4).all()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_scene_with_a_control_is_the_blend_by_a_callback_of_the_unmodified_pipeline(kits, strength):
    kit = kits["sd"]
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 16))
    its = into_scene(photo, mask, 16, 16, factor=2)
    control = shown(kit.canny, 0, strength)
    [got] = render(
        kit.base,
        kit.metric,
        [RenderRow(PromptRow("a mug"), PromptRow(""), 3, its, control)],
        Sampler(16, 16, 4, 4.0, "ddim"),
    )
    pipe = kit.unmodified()
    latents = encode_pictures(kit.base, torch.from_numpy(its.pixels.copy()).movedim(-1, 0)[None] / 127.5 - 1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    stays = latent_stays(torch.from_numpy(its.stays)[None], torch.tensor([its.latent_share]), 8, 8)
    schedule = type(pipe.scheduler).from_config(pipe.scheduler.config)
    schedule.set_timesteps(4)

    def photo_at(step):
        times = schedule.timesteps
        return latents if step == len(times) else schedule.add_noise(latents, noise, times[step : step + 1])

    wanted = pipe(
        "a mug",
        image=drawing(0),
        negative_prompt="",
        width=16,
        height=16,
        num_inference_steps=4,
        guidance_scale=4.0,
        controlnet_conditioning_scale=strength,
        latents=torch.where(stays, photo_at(0), noise),
        callback_on_step_end=lambda _pipe, step, _time, given: {
            "latents": torch.where(stays, photo_at(step + 1), given["latents"])
        },
        output_type="pt",
    ).images
    drawn = its.stays == 0
    assert np.abs(got[drawn].astype(int) - pixels_of(wanted)[0][drawn]).max() <= 1


def test_videos_and_guidance_rescale_are_refused(kit):
    row = RenderRow(PromptRow("a mug"), PromptRow(""), 1, control=shown(kit.canny))
    with pytest.raises(ValueError, match="videos have no ControlNets"):
        render(kit.base, kit.metric, [row], replace(kit.sampler, frames=4))
    with pytest.raises(ValueError, match="no guidance_rescale: set guidance_rescale to 0"):
        render(kit.base, kit.metric, [row], replace(kit.sampler, guidance_rescale=0.5))


def test_the_pipeline_is_diffusers_own(kit):
    pipe = make_pipeline(kit.base, kit.scheduler, "control", kit.canny)
    assert type(pipe) is getattr(diffusers, kit.base.folder.family.pipelines["control"])
    assert pipe.controlnet is kit.canny.module
    assert pipe.unet is kit.base.denoiser
