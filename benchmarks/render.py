"""A batch with other concepts in each row, against the unmodified diffusers pipeline without concepts.

Each row has one concept; with `--regional`, it has two that act where their products are; with `--references`, its
product's pictures look at photos; with `--conv-rank`, it edits convolutions. Same model, prompts, steps, seeds and
batch, from texts to uint8 pixels. The lower bound is the same pipeline with prepared conditioning: no text encoder, no
edit, no projection.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.bases import base_of, device_of, made_up_concepts, parts_of, plain_metric
from benchmarks.measure import finish, interleave, machine, matmul_peak, show
from perfusion_ops.base_model import Base
from perfusion_ops.conditioning import PromptRow, condition, prompt_row
from perfusion_ops.pipelines import make_pipeline
from perfusion_ops.rendering import RenderRow, Sampler, render

# The bar is on the median ratio; a prototype of the same idea reached 0.997 on two CPU threads.
BAR = {"cpu": 0.99, "cuda": 1.0}
MASKED_BAR = 0.85  # recipe `offset` and regional rows: masks are computed in every step
# The same of what is possible with photos, at which the denoiser looks in half of the steps, beside two rows a picture.
_PHOTO_ROWS = 0.25
_PLACEMENTS = {"cpu": 7, "cuda": 1}
_PROMPTS = {False: "a photo of a {} on the beach", True: "a photo of a {} next to a {} on the beach"}  # by --regional
_GUIDANCE = 4.5


def run(options: argparse.Namespace) -> bool:
    """Measure and print; True when the bar is met."""
    pairs = options.pairs
    where = device_of(options.device)
    gpu = where.type == "cuda"
    name = options.base or ("sd15" if gpu else "mini")
    dtype = torch.bfloat16 if gpu else torch.float32
    batch, steps = options.batch or (16 if gpu else 8), options.steps or (50 if gpu else 20)
    parts = parts_of(name, where, dtype)
    edited = base_of(name, copy.deepcopy(parts))
    sampler = Sampler(edited.resolution, edited.resolution, steps, _GUIDANCE, "ddim")
    placements = min(_PLACEMENTS[where.type], pairs)
    words = _PROMPTS[options.regional].format("mug", "mug")
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    measured = interleave(
        lambda: (
            _unmodified(copy.deepcopy(parts), dtype, sampler, batch, words),
            _ours(name, parts, sampler, batch, options),
        ),
        pairs=pairs,
        placements=placements,
        device=where,
    )
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
    limit = interleave(
        lambda: (
            _unmodified(copy.deepcopy(parts), dtype, sampler, batch, words),
            _ready(name, parts, sampler, batch, words),
        ),
        pairs=placements,
        placements=placements,
        device=where,
    )
    low, high = measured.spread()
    best = min(measured.ours_s)
    figures = {
        "base": name,
        "recipe": options.recipe,
        "regional": options.regional,
        "references": options.references,
        "conv_rank": options.conv_rank,
        "machine": machine(where),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "steps": steps,
        "pixels": edited.resolution,
        "pairs": pairs,
        "throughput_ratio": measured.ratio,
        "ratio_first_quartile": low,
        "ratio_third_quartile": high,
        "ratio_of_ready_made_conditioning": limit.ratio,
        "images_per_s": batch / best,
        "seconds_per_image": best / batch,
    }
    if gpu:
        flops = _flops(edited, 2 * batch) * steps
        figures |= {"peak_memory_gb": peak_gb, "share_of_matmul_peak": flops / best / matmul_peak(where, dtype)}
    show(f"median throughput ratio {measured.ratio:.4f}, quartiles {low:.4f} to {high:.4f}")
    bar = MASKED_BAR if options.recipe == "offset" or options.regional else BAR[where.type]
    photos = options.references * (2 if options.regional else 1)
    bar /= 1 + _PHOTO_ROWS * photos
    return finish("render", figures, {"throughput_ratio": bar})


def _unmodified(
    parts: dict[str, Any], dtype: torch.dtype, sampler: Sampler, batch: int, words: str
) -> Callable[[], object]:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    # The reference encodes in the denoiser's type, as is usual.
    pipe: Any = StableDiffusionPipeline(
        **{**parts, "text_encoder": parts["text_encoder"].to(dtype)},
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)

    def plain() -> np.ndarray:
        images = pipe([words] * batch, **_arguments(sampler, batch)).images
        return (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    return plain


def _ours(
    name: str, parts: dict[str, Any], sampler: Sampler, batch: int, options: argparse.Namespace
) -> Callable[[], object]:
    edited = base_of(name, copy.deepcopy(parts))
    metric = plain_metric(edited)
    each = 2 if options.regional else 1
    concepts = made_up_concepts(
        edited, metric, batch * each, options.recipe, references=options.references, conv_rank=options.conv_rank
    )
    text = _PROMPTS[options.regional].format("{0}", "{1}")
    how: dict[str, Any] = {"bias": 0.6, "temperature": 0.15, "lock": "local"}
    how["combine"] = "regional" if options.regional else "paper"
    rows = [
        RenderRow(prompt_row(text, concepts[each * n : each * n + each], **how), PromptRow(""), n) for n in range(batch)
    ]
    return lambda: render(edited, metric, rows, sampler)


def _ready(name: str, parts: dict[str, Any], sampler: Sampler, batch: int, words: str) -> Callable[[], object]:
    edited = base_of(name, copy.deepcopy(parts))
    metric = plain_metric(edited)
    positive = condition(edited, metric, [PromptRow(words)]).expand(batch).kv
    negative = condition(edited, metric, [PromptRow("")]).expand(batch).kv
    pipe = make_pipeline(edited, "ddim")
    return lambda: pipe(prompt_embeds=positive, negative_prompt_embeds=negative, **_arguments(sampler, batch)).images


def _arguments(sampler: Sampler, batch: int) -> dict[str, Any]:
    return {
        "height": sampler.height,
        "width": sampler.width,
        "num_inference_steps": sampler.steps,
        "guidance_scale": sampler.guidance,
        "generator": [torch.Generator().manual_seed(seed) for seed in range(batch)],
        "output_type": "pt",
    }


def _flops(edited: Base, rows: int) -> int:
    """FLOPs of one denoising step of `rows` rows."""
    from torch.utils.flop_counter import FlopCounterMode

    config = edited.denoiser.config
    latents = torch.randn(rows, config.in_channels, config.sample_size, config.sample_size, device=edited.device)
    conditioning = condition(edited, plain_metric(edited), [PromptRow("")]).expand(rows).kv
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        edited.denoiser(latents.to(edited.dtype), torch.tensor(500, device=edited.device), conditioning)
    return counter.get_total_flops()
