"""Rendering of mixed rows through an unmodified diffusers pipeline, one seeded generator per row."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perfusion_ops.base.schedules import SCHEDULERS
from perfusion_ops.base_model import Base, encode_pictures
from perfusion_ops.conditioning import Conditioning, PromptRow, condition, project_superclasses
from perfusion_ops.config import Scheduler
from perfusion_ops.controls.net import Control, ControlNet
from perfusion_ops.metric import Metric
from perfusion_ops.regions import acting, condition_regions, has_offsets, is_regional
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


def make_pipeline(
    base: Base, scheduler: Scheduler, task: str = "text", net: ControlNet | None = None, *, compiled: bool = False
) -> Any:
    """An unmodified diffusers pipeline over the base's parts; nothing is copied.

    Args:
        base: the base model.
        scheduler: a name of `perfusion_ops.config.Scheduler`.
        task: which of the family's pipelines.
        net: the ControlNet of the task `control`.
        compiled: draw with the compiled denoiser, if there is one.
    """
    import diffusers

    family = base.folder.family
    kind = getattr(diffusers, family.pipelines[task])
    unused = (*family.text_parts, "feature_extractor", "image_encoder", "motion_adapter")
    absent = {part: None for part in unused if part in signature(kind).parameters}
    options = {name: value for name, value in family.options.items() if name in signature(kind).parameters}
    options |= {name: value for name, value in base.folder.index.items() if value is not None}
    if "requires_safety_checker" in signature(kind).parameters:
        options["requires_safety_checker"] = False
    denoiser = base.compiled if compiled and base.compiled is not None else base.denoiser
    parts = {family.denoiser: denoiser, "vae": base.vae, **({"controlnet": net.module} if net else {})}
    schedule = {**family.schedule, **base.scheduler.config}
    pipe = kind(**absent, **parts, scheduler=make_scheduler(scheduler, schedule), **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_scheduler(name: Scheduler, config: Any) -> Any:
    """A diffusers scheduler on the noise schedule of `config`."""
    import diffusers

    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(config, **options)


@torch.no_grad()
def render(base: Base, metric: Metric, rows: Sequence[RenderRow], sampler: Sampler) -> list[NDArray[np.uint8] | None]:
    """Render B pictures, or B videos, in one batch.

    Args:
        base: the base model.
        metric: its metric.
        rows: B rows with any concepts, biases, temperatures and locks. Rows with a concept of recipe `offset`
            and rows that are regional are denoised apart from the others, whose attention is that of the unmodified
            model. So are rows with a scene, those of each strength together, and rows with a control, those of each
            ControlNet and strength together, and rows of each number of chunks. On a base model for inpainting, its
            pipeline draws: into the scene of a row, or into a blank photo, all over.
        sampler: settings that all rows share.

    Returns:
        B arrays (H, W, 3) uint8, or (F, H, W, 3) for videos; None for one with values that are not finite. It does not
        affect other rows.

    Raises:
        PromptTooLongError: as `condition`.
        ValueError: as `condition`; or a video has a scene or a control; or a base model for inpainting has a control.
    """
    if sampler.frames is not None and any(row.scene is not None for row in rows):
        raise ValueError("a row has a scene, but videos have no scenes: leave the scene out, or draw pictures")
    if sampler.frames is not None and any(row.control is not None for row in rows):
        raise ValueError("a row has a control, but videos have no ControlNets: leave it out, or draw pictures")
    if base.folder.inpaints and any(row.control is not None for row in rows):
        raise ValueError("a row has a control, but the base model is for inpainting: leave it out, or use a plain one")
    if any(row.positive.chunks != row.negative.chunks for row in rows):
        raise ValueError(
            "a prompt and its negative prompt have different numbers of chunks: use the larger one for both"
        )
    kinds = [
        (
            has_offsets(row.positive),
            is_regional(row.positive),
            row.scene.strength if row.scene else None,
            (row.control.net, row.control.strength) if row.control else None,
            row.positive.chunks,
        )
        for row in rows
    ]
    if len(set(kinds)) > 1:
        parts = {
            kind: iter(
                render(base, metric, [row for row, its in zip(rows, kinds, strict=True) if its == kind], sampler)
            )
            for kind in dict.fromkeys(kinds)
        }
        return [next(parts[kind]) for kind in kinds]
    family, guided = base.folder.family, sampler.guidance > 1.0
    texts, place = _distinct([row.positive for row in rows])
    found, regions = (
        condition_regions(base, metric, texts) if any(kinds[0][:2]) else (condition(base, metric, texts), None)
    )
    net = rows[0].control.net if rows[0].control else None
    found = _beside(base, found, texts, net)
    shared = len(texts) < len(rows)
    positive = found.rows(place.to(base.device)) if shared else found
    regions = regions.rows(place.to(base.device)) if regions and shared else regions
    negative = unconditional(base, metric, [row.negative for row in rows], net) if guided else None
    moving = sampler.frames is not None
    if regions and sampler.frames is not None:  # the denoiser sees each frame as a row
        regions = regions.rows(torch.arange(len(rows), device=base.device).repeat_interleave(sampler.frames))
    task = "video" if moving else "control" if net else base.folder.drawn_by
    pipe = make_pipeline(base, sampler.scheduler, task, net, compiled=regions is None)
    # CPU generators: the same seed gives the same noise on every device.
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    scenes = [row.scene for row in rows if row.scene is not None]
    begin: dict[str, Any] = {}
    if base.folder.inpaints:
        begin = filled([row.scene for row in rows], sampler.width, sampler.height, sampler.steps)
    elif scenes:
        pipe.scheduler = _scene_scheduler(base, pipe.scheduler, scenes, generators)
        pipe.scheduler.set_timesteps(sampler.steps, device=base.device)
        begin = {"latents": pipe.scheduler.begin()}
    if sampler.guidance_rescale and "guidance_rescale" not in signature(pipe.__call__).parameters:
        raise ValueError(f"{type(pipe).__name__} has no guidance_rescale: set guidance_rescale to 0")
    calls = sampler.steps * getattr(pipe.scheduler, "order", 1)  # of the denoiser
    with _decoding(base, sampler), acting(base, regions, calls) if regions else contextlib.nullcontext():
        output = pipe(
            **family.given("", positive.kv, positive.extra),
            **family.call,
            **(family.given("negative_", negative.kv, negative.extra) if negative else {}),
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
    if scenes:
        pixels = [pasted(picture, scene) for picture, scene in zip(pixels, scenes, strict=True)]
    return [picture if good else None for picture, good in zip(pixels, finite, strict=True)]


@contextlib.contextmanager
def _decoding(base: Base, sampler: Sampler) -> Iterator[None]:
    """A VAE that decodes frames and large pictures one by one, for equal pixels in less memory; in tiles if asked."""
    vae = base.vae
    before = vae.use_slicing, vae.use_tiling
    vae.use_slicing = sampler.frames is not None or sampler.width * sampler.height >= _SLICED_PIXELS
    vae.use_tiling = sampler.vae_tiling
    try:
        yield
    finally:
        vae.use_slicing, vae.use_tiling = before


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
