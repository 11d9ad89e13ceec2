"""Videos with a motion adapter: the stack is the base model's own, and a concept acts in every frame."""

import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, StableDiffusionPipeline

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.base_model import load_base
from perfusion_ops.concept import GatedConcept, OffsetConcept
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.rendering import RenderRow, Sampler, render
from tests.support.tiny_base import random_metric, small_parts
from tests.support.tiny_xl import xl_folder

FRAMES = 4
SAMPLER = Sampler(16, 16, 3, 4.0, "ddim", FRAMES)
TEXTS = ("a mug on the beach", "a hat in the snow")


def adapter(seed=1, **options):
    torch.manual_seed(seed)
    motion = MotionAdapter(
        **{
            "block_out_channels": (16, 32),
            "motion_layers_per_block": 1,
            "motion_num_attention_heads": 2,
            "motion_norm_num_groups": 8,
            "use_motion_mid_block": False,
            **options,
        }
    )
    with torch.no_grad():
        for parameter in motion.parameters():
            # Fresh motion modules end in zeros: every frame would be drawn alone.
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.2)
    return motion.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("video")
    pipe = StableDiffusionPipeline(
        **small_parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.save_pretrained(path / "base")
    adapter().save_pretrained(path / "motion")
    return path


@pytest.fixture(scope="module")
def base(folder):
    return load_base(describe(folder / "base"), motion=folder / "motion")


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


def concepts(base, metric):
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(24, generator=g) for _ in range(3)]
    values = torch.randn(base.stack.key_rows, generator=g)
    digests = (base.folder.digest, metric.digest)
    gated = GatedConcept("mug", *inputs, values, None, "local", *digests)
    return gated, OffsetConcept("hat", torch.randn(24, generator=g), values, *digests)


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
    positive = [
        PromptRow("a {0} on the beach", (gated,), (0.5,), (0.15,)),
        PromptRow("a {0} in the snow", (offset,), (0.5,), (0.15,)),
        PromptRow("a mug on the beach"),
        PromptRow("a {0} on a {1}", (gated, offset), (0.5, 0.5), (0.15, 0.15), combine="regional"),
    ]
    rows = [RenderRow(row, PromptRow(""), seed) for seed, row in enumerate(positive)]
    together = render(base, metric, rows, SAMPLER)
    for row, video in zip(rows, together, strict=True):
        [alone] = render(base, metric, [row], SAMPLER)
        assert abs(video.astype(int) - alone.astype(int)).max() <= 1
    plain = render(base, metric, [RenderRow(PromptRow("a mug on the beach"), PromptRow(""), 0)], SAMPLER)
    assert all((together[0][frame] != plain[0][frame]).any() for frame in range(FRAMES))


def test_an_adapter_that_does_not_fit_is_refused(folder, tmp_path):
    adapter(block_out_channels=(16, 32, 32)).save_pretrained(tmp_path / "other")
    for motion in (tmp_path / "other", tmp_path / "nowhere"):
        with pytest.raises(BaseError, match="does not fit the base model"):
            load_base(describe(folder / "base"), motion=motion)
    with pytest.raises(BaseError, match="not with SDXL"):
        load_base(describe(xl_folder(tmp_path / "xl")), motion=folder / "motion")
