"""Rendering of mixed rows through an unmodified diffusers pipeline, one seeded generator per row."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perfusion_ops.base_model import Base, encode_pictures
from perfusion_ops.conditioning import Conditioning, PromptRow, condition, project_superclasses
from perfusion_ops.config import Scheduler
from perfusion_ops.controls.net import Control, ControlNet
from perfusion_ops.metric import Metric
from perfusion_ops.pipelines import decoding, make_pipeline
from perfusion_ops.regions import (
    Regions,
    acting,
    condition_regions,
    has_convolutions,
    has_offsets,
    has_references,
    is_regional,
)
from perfusion_ops.scenes.blending import SceneScheduler, latent_stays
from perfusion_ops.scenes.filling import filled
from perfusion_ops.scenes.pasting import pasted
from perfusion_ops.scenes.scene import Scene

_ENCODE_BATCH = 8  # photos of scenes encoded at once
_SLICED_PIXELS = 768 * 768  # pictures of this size are decoded one by one


@dataclass(frozen=True)
class RenderRow:
    """One picture: its prompt, its negative prompt, which may also name concepts, and its seed.

    With a `scene`, a part of the scene's photo stays and the rest is drawn. With a `control`, a ControlNet and its
    picture say where things are. Videos have neither.
    """

    positive: PromptRow
    negative: PromptRow
    seed: int
    scene: Scene | None = None
    control: Control | None = None


@dataclass(frozen=True)
class Sampler:
    """Settings that all rows of a batch share.

    Attributes:
        width, height: in pixels.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        scheduler: its name.
        frames: of a video, from a base model that was loaded with a motion adapter; None for a picture.
        guidance_rescale: how far guidance keeps the contrast that the model predicts, 0 to 1.
        vae_tiling: decode pictures that are larger than the VAE's own size in tiles.
    """

    width: int
    height: int
    steps: int
    guidance: float
    scheduler: Scheduler
    frames: int | None = None
    guidance_rescale: float = 0.0
    vae_tiling: bool = False


@torch.no_grad()
def render(base: Base, metric: Metric, rows: Sequence[RenderRow], sampler: Sampler) -> list[NDArray[np.uint8] | None]:
    """Render B pictures, or B videos.

    Args:
        base: the base model. One for inpainting draws into the scene of a row, or into a blank photo, all over.
        metric: its metric.
        rows: B rows with any concepts, biases, temperatures and locks. Rows with a concept of recipe `offset` and rows
            that are regional are denoised apart from the others, whose attention is that of the unmodified model. So
            are rows with scenes of one strength, rows of one ControlNet and strength, and rows of each number of
            chunks.
        sampler: settings that all rows share.

    Returns:
        B arrays (H, W, 3) uint8, or (F, H, W, 3) for videos; None for one with values that are not finite. It does not
        affect other rows.

    Raises:
        PromptTooLongError: as `condition`.
        ValueError: as `condition`; or a video has a scene or a control; or a base model for inpainting has a control;
            or a prompt and its negative prompt have different numbers of chunks.
    """
    _check(base, rows, sampler)
    batches: dict[object, list[int]] = {}
    for place, row in enumerate(rows):
        batches.setdefault(_kind(row), []).append(place)
    pictures: list[NDArray[np.uint8] | None] = [None] * len(rows)
    for places in batches.values():
        drawn = _draw(base, metric, [rows[place] for place in places], sampler)
        for place, picture in zip(places, drawn, strict=True):
            pictures[place] = picture
    return pictures


def _check(base: Base, rows: Sequence[RenderRow], sampler: Sampler) -> None:
    if sampler.frames is not None and any(row.scene is not None for row in rows):
        raise ValueError("a row has a scene, but videos have no scenes: leave the scene out, or draw pictures")
    if sampler.frames is not None and any(row.control is not None for row in rows):
        raise ValueError("a row has a control, but videos have no ControlNets: leave it out, or draw pictures")
    if base.folder.inpaints and any(row.control is not None for row in rows):
        raise ValueError("a row has a control, but the base model is for inpainting: leave it out, or use a plain one")
    if sampler.frames is not None and any(has_references(row.positive) for row in rows):
        raise ValueError("a concept keeps photos, but videos are drawn: train it with references 0")
    if any(row.positive.chunks != row.negative.chunks for row in rows):
        raise ValueError(
            "a prompt and its negative prompt have different numbers of chunks: use the larger one for both"
        )


def _kind(row: RenderRow) -> object:
    """What rows that are denoised together have in common."""
    return (
        has_offsets(row.positive),
        has_references(row.positive),
        has_convolutions(row.positive),
        is_regional(row.positive),
        row.scene.strength if row.scene else None,
        (row.control.net, row.control.strength) if row.control else None,
        row.positive.chunks,
    )


def _draw(base: Base, metric: Metric, rows: Sequence[RenderRow], sampler: Sampler) -> list[NDArray[np.uint8] | None]:
    """Render rows of one kind in one batch."""
    net, moving = (rows[0].control.net if rows[0].control else None), sampler.frames is not None
    texts, regions = _conditioned(base, metric, rows, net, sampler)
    task = "video" if moving else "control" if net else base.folder.drawn_by
    pipe = make_pipeline(base, sampler.scheduler, task, net, compiled=regions is None)
    if sampler.guidance_rescale and "guidance_rescale" not in signature(pipe.__call__).parameters:
        raise ValueError(f"{type(pipe).__name__} has no guidance_rescale: set guidance_rescale to 0")
    # CPU generators: the same seed gives the same noise on every device.
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    begin = _begun(base, pipe, rows, sampler, generators)
    calls = sampler.steps * getattr(pipe.scheduler, "order", 1)  # of the denoiser
    with (
        decoding(base, one_by_one=moving or sampler.width * sampler.height >= _SLICED_PIXELS, tiled=sampler.vae_tiling),
        acting(base, regions, calls) if regions else contextlib.nullcontext(),
    ):
        output = pipe(
            **texts,
            **base.folder.family.call,
            width=sampler.width,
            height=sampler.height,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance,
            **({"guidance_rescale": sampler.guidance_rescale} if sampler.guidance_rescale else {}),
            **begin,
            generator=generators,
            output_type="pt",
            **({"num_frames": sampler.frames} if moving else {}),
            **_shown([row.control for row in rows if row.control is not None]),
        )
    images = output.frames if moving else output.images
    finite = torch.isfinite(images).flatten(1).all(1).tolist()
    pixels = (images.float().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu().numpy()
    whole = [pasted(picture, row.scene) if row.scene else picture for picture, row in zip(pixels, rows, strict=True)]
    return [picture if good else None for picture, good in zip(whole, finite, strict=True)]


def _conditioned(
    base: Base, metric: Metric, rows: Sequence[RenderRow], net: ControlNet | None, sampler: Sampler
) -> tuple[dict[str, Any], Regions | None]:
    """The pipeline's arguments for the prompts of rows of one kind, and what acts in their regions."""
    prompts, place = _distinct([row.positive for row in rows])
    acts = is_regional(prompts[0]) or has_offsets(prompts[0])
    found, regions = condition_regions(base, metric, prompts) if acts else (condition(base, metric, prompts), None)
    found = _beside(base, found, prompts, net)
    if len(prompts) < len(rows):
        found, regions = found.rows(place.to(base.device)), regions.rows(place.to(base.device)) if regions else None
    if regions and sampler.frames is not None:  # the denoiser sees each frame as a row
        regions = regions.rows(torch.arange(len(rows), device=base.device).repeat_interleave(sampler.frames))
    family = base.folder.family
    given = family.given("", found.kv, found.extra)
    if sampler.guidance > 1.0:
        negative = unconditional(base, metric, [row.negative for row in rows], net)
        given |= family.given("negative_", negative.kv, negative.extra)
    return given, regions


def _begun(
    base: Base, pipe: Any, rows: Sequence[RenderRow], sampler: Sampler, generators: list[torch.Generator]
) -> dict[str, Any]:
    """The pipeline's arguments for the scenes of rows of one kind; the scheduler of others is replaced."""
    if base.folder.inpaints:
        return filled([row.scene for row in rows], sampler.width, sampler.height, sampler.steps)
    scenes = [row.scene for row in rows if row.scene is not None]
    if not scenes:
        return {}
    pipe.scheduler = _scene_scheduler(base, pipe.scheduler, scenes, generators)
    pipe.scheduler.set_timesteps(sampler.steps, device=base.device)
    return {"latents": pipe.scheduler.begin()}


def _scene_scheduler(
    base: Base, scheduler: Any, scenes: Sequence[Scene], generators: list[torch.Generator]
) -> SceneScheduler:
    """The scheduler that leaves in each picture what stays of its scene."""
    from diffusers.utils.torch_utils import randn_tensor

    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).movedim(-1, 1).float()
    photos = torch.cat([encode_pictures(base, part) for part in (pixels / 127.5 - 1).split(_ENCODE_BATCH)])
    weights = torch.from_numpy(np.stack([scene.stays for scene in scenes]))
    stays = latent_stays(weights, torch.tensor([scene.latent_share for scene in scenes]), *photos.shape[-2:])
    noise = randn_tensor(photos.shape, generator=generators, device=base.device, dtype=base.dtype)
    return SceneScheduler(scheduler, photos.to(base.dtype), noise, stays.to(base.device), scenes[0].strength)


def _distinct(rows: Sequence[PromptRow]) -> tuple[list[PromptRow], torch.Tensor]:
    """The different prompts of a batch, and which of them each row has (B,): seeds of one prompt share its encoding."""
    numbers: dict[tuple[object, ...], int] = {}
    distinct: list[PromptRow] = []
    place: list[int] = []
    for row in rows:
        # Concepts are compared by identity: a worker holds each of them once.
        key = (tuple(map(id, row.concepts)), *(value for name, value in vars(row).items() if name != "concepts"))
        if key not in numbers:
            numbers[key] = len(distinct)
            distinct.append(row)
        place.append(numbers[key])
    return distinct, torch.tensor(place)


def _shown(controls: Sequence[Control]) -> dict[str, Any]:
    """The arguments of a pipeline with a ControlNet for B rows of one strength; none without."""
    if not controls:
        return {}
    pictures = [Image.fromarray(control.pixels) for control in controls]
    return {"image": pictures, "controlnet_conditioning_scale": float(controls[0].strength)}


def _beside(base: Base, found: Conditioning, rows: Sequence[PromptRow], net: ControlNet | None) -> Conditioning:
    """The conditioning of B prompts, with the columns of a ControlNet if there is one."""
    return found.beside(project_superclasses(base, rows, net.weight)) if net and len(net.weight) else found


def unconditional(base: Base, metric: Metric, rows: Sequence[PromptRow], net: ControlNet | None = None) -> Conditioning:
    """Conditioning of the negative rows; if all are equal and without concepts, they are computed once.

    Families that train with zeros instead of an empty prompt, such as SDXL, are given zeros for it.
    """
    zero = bool(base.folder.index.get(base.folder.family.zero_negative or ""))
    distinct = list(dict.fromkeys(row for row in rows if not row.concepts))
    if len(distinct) == 1 and all(not row.concepts for row in rows):
        [row] = distinct
        found = _beside(base, condition(base, metric, [row]), [row], net)
        return (found.with_zeros(torch.tensor([0])) if zero and not row.prompt else found).expand(len(rows))
    empty = [index for index, row in enumerate(rows) if zero and not row.concepts and not row.prompt]
    found = _beside(base, condition(base, metric, rows), rows, net)
    return found.with_zeros(torch.tensor(empty)) if empty else found
