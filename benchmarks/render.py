"""A batch in which every row has another concept, against the unmodified diffusers pipeline without any concept.

Same model, prompts, steps, seeds and batch, from texts to uint8 pixels. What it cannot beat is the same pipeline with
ready-made conditioning: no text encoder, no edit, no projection at all.
"""

import copy
from typing import Any

import numpy as np
import torch

from benchmarks.bases import base_of, device_of, made_up_concepts, parts_of, plain_metric
from benchmarks.measure import finish, interleave, machine, matmul_peak, show
from perfusion_ops.base import Base
from perfusion_ops.conditioning import PromptRow, condition
from perfusion_ops.rendering import RenderRow, Sampler, make_pipeline, render

# The bar is on the median ratio; a prototype of the same idea reached 0.997 on two CPU threads.
BAR = {"cpu": 0.99, "cuda": 1.0}
_PROMPT = "a photo of a {} on the beach"
_GUIDANCE = 4.5


def run(*, base: str | None, device: str | None, pairs: int, batch: int | None, steps: int | None) -> bool:
    """Measure and print; True when the bar is met."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    where = device_of(device)
    gpu = where.type == "cuda"
    name = base or ("sd15" if gpu else "mini")
    dtype = torch.bfloat16 if gpu else torch.float32
    batch, steps = batch or (16 if gpu else 8), steps or (50 if gpu else 20)
    parts = parts_of(name, where, dtype)
    # The reference pipeline encodes in the denoiser's type, as its users run it.
    reference: Any = StableDiffusionPipeline(
        **{
            **parts,
            "unet": copy.deepcopy(parts["unet"]),
            "text_encoder": copy.deepcopy(parts["text_encoder"]).to(dtype),
        },
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    reference.set_progress_bar_config(disable=True)
    edited = base_of(name, parts)
    metric = plain_metric(edited)
    side = edited.resolution
    sampler = Sampler(side, side, steps, _GUIDANCE, "ddim")
    rows = [
        RenderRow(PromptRow(_PROMPT.format("{0}"), (concept,), (0.6,), (0.15,)), PromptRow(""), seed)
        for seed, concept in enumerate(made_up_concepts(edited, metric, batch))
    ]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row.seed) for row in rows]

    def plain() -> np.ndarray:
        images = reference(
            [_PROMPT.format("mug")] * batch,
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=_GUIDANCE,
            generator=generators(),
            output_type="pt",
        ).images
        return (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def ours() -> object:
        return render(edited, metric, rows, sampler)

    if gpu:
        torch.cuda.reset_peak_memory_stats()
    measured = interleave(plain, ours, pairs=pairs, device=where)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
    positive = condition(edited, metric, [row.positive for row in rows])
    negative = condition(edited, metric, [PromptRow("")]).expand(batch, -1, -1)
    pipe = make_pipeline(edited, "ddim")

    def ready() -> object:
        return pipe(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=_GUIDANCE,
            generator=generators(),
            output_type="pt",
        ).images

    limit = interleave(plain, ready, pairs=max(pairs // 3, 5), device=where)
    low, high = measured.spread()
    best = min(measured.ours_s)
    figures = {
        "base": name,
        "machine": machine(where),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "steps": steps,
        "pixels": side,
        "pairs": pairs,
        "throughput_ratio": measured.ratio,
        "ratio_first_quartile": low,
        "ratio_third_quartile": high,
        "ratio_of_ready_made_conditioning": limit.ratio,
        "images_per_s": batch / best,
        "seconds_per_image": best / batch,
    }
    if gpu:
        figures |= {
            "peak_memory_gb": peak_gb,
            "share_of_matmul_peak": _flops(edited, positive) * steps / best / matmul_peak(where, dtype),
        }
    show(f"median throughput ratio {measured.ratio:.4f}, quartiles {low:.4f} to {high:.4f}")
    return finish("render", figures, {"throughput_ratio": BAR[where.type]})


def _flops(edited: Base, positive: torch.Tensor) -> int:
    """Arithmetic of one guided denoising step of the whole batch."""
    from torch.utils.flop_counter import FlopCounterMode

    config = edited.unet.config
    latents = torch.randn(
        2 * len(positive), config.in_channels, config.sample_size, config.sample_size, device=edited.device
    )
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        edited.unet(latents.to(edited.dtype), torch.tensor(500, device=edited.device), torch.cat([positive, positive]))
    return counter.get_total_flops()
