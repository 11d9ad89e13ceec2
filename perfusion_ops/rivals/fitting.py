"""The optimiser's loop of all rivals: what is learned differs between methods, nothing else does."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from perfusion_ops.config import Frozen, TrainingConfig
from perfusion_ops.rivals.objective import Budget, draw, row_losses, wanted
from perfusion_ops.rivals.parts import Parts
from perfusion_ops.training.attention import attention_for_training
from perfusion_ops.training.state import Example
from perfusion_ops.training.trainer import TrainingDivergedError


class Fit(Frozen):
    """Settings of a rival that are not its own: a base of each method's settings."""

    decay: Literal["constant", "cosine"] = Field(default="constant", description="cosine: rates fall to 2 %")
    even: bool = Field(
        default=False, description="each step has a timestep of every equal share of the schedule, and photos in turn"
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's, as in the field's scripts")
    clip: float = Field(default=1.0, gt=0, description="largest norm of a step's gradient")


@dataclass
class Group:
    """Parameters with a rate of their own; from the share `until` (0..1) of the steps on, they rest."""

    parameters: list[Tensor]
    rate: float
    until: float = 1.0


@dataclass(frozen=True)
class Prior:
    """Pictures of the product's class, to be remembered.

    Attributes:
        latents: (n, C, h, w).
        told: encodings of the class's prompt, (N, D).
        rows: of each step, taken from the budget's batch.
        weight: of their mean loss beside the mean loss of the product's rows.
    """

    latents: Tensor
    told: Tensor
    rows: int
    weight: float


@dataclass(frozen=True)
class Lesson:
    """One training.

    Attributes:
        parts: the base model.
        unet: the denoiser whose parameters may be learned.
        example: latents and masks of the product.
        budget: steps, rows and the seed of their draw.
        settings: see `Fit`.
        told: encodings (T, N, D) of templates by number, with gradients where a token is learned.
        prior: pictures that take some of each step's rows.
    """

    parts: Parts
    unet: Any
    example: Example
    budget: Budget
    settings: Fit
    told: Callable[[Sequence[int]], Tensor]
    prior: Prior | None = None


def fit(lesson: Lesson, groups: Sequence[Group]) -> tuple[float, ...]:
    """Train for the whole budget, in place.

    Args:
        lesson: what is trained on.
        groups: what is learned.

    Returns:
        The loss of every step.

    Raises:
        TrainingDivergedError: a loss is not finite.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    budget, settings = lesson.budget, lesson.settings
    schedule: Any = DDPMScheduler.from_config(lesson.parts.scheduler.config)
    generator = torch.Generator().manual_seed(budget.seed)
    optimizer = torch.optim.AdamW(
        [{"params": group.parameters, "lr": group.rate} for group in groups], weight_decay=settings.weight_decay
    )
    learned = [parameter for group in groups for parameter in group.parameters]
    losses: list[float] = []
    with attention_for_training(lesson.unet, lesson.parts.device):
        for step in range(budget.steps):
            loss = _loss(lesson, schedule, generator)
            if not torch.isfinite(loss):
                raise TrainingDivergedError(f"training diverged at step {step + 1}: lower the method's rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group, options in zip(groups, optimizer.param_groups, strict=True):
                options["lr"] = group.rate * _factor(settings, step / budget.steps, group.until)
            torch.nn.utils.clip_grad_norm_(learned, settings.clip)
            optimizer.step()
            losses.append(float(loss.detach()))
    return tuple(losses)


def _factor(settings: Fit, done: float, until: float) -> float:
    if done >= until:
        return 0.0
    return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2 if settings.decay == "cosine" else 1.0


def _loss(lesson: Lesson, schedule: Any, generator: torch.Generator) -> Tensor:
    """The loss of one step; the generator moves on."""
    example, prior, device = lesson.example, lesson.prior, lesson.parts.device
    rows = draw(
        example,
        templates=len(lesson.parts.folder.settings.templates),
        timesteps=schedule.config.num_train_timesteps,
        rows=lesson.budget.batch - (prior.rows if prior else 0),
        generator=generator,
        even=lesson.settings.even,
    )
    places = list(rows.images)
    latents, masks = example.latents[places].to(device), example.masks[places].to(device)
    distinct = list(dict.fromkeys(rows.templates))
    conditioning = lesson.told(distinct)[[distinct.index(template) for template in rows.templates]]
    if prior is not None:
        more = draw(
            replace(example, latents=prior.latents, config=TrainingConfig()),
            templates=1,
            timesteps=schedule.config.num_train_timesteps,
            rows=prior.rows,
            generator=generator,
            even=False,
        )
        remembered = prior.latents[list(more.images)].to(device)
        rows = replace(
            rows, timesteps=torch.cat([rows.timesteps, more.timesteps]), noise=torch.cat([rows.noise, more.noise])
        )
        latents = torch.cat([latents, remembered])
        masks = torch.cat([masks, torch.ones_like(remembered[:, :1])])
        conditioning = torch.cat([conditioning, prior.told.to(device).expand(prior.rows, -1, -1)])
    noise, timesteps = rows.noise.to(latents), rows.timesteps.to(device)
    predicted = lesson.unet(schedule.add_noise(latents, noise, timesteps), timesteps, conditioning).sample
    losses = row_losses(predicted, wanted(schedule, latents, noise, timesteps), masks)
    own = len(rows.images)
    return losses.mean() if prior is None else losses[:own].mean() + prior.weight * losses[own:].mean()


def count(parameters: Iterable[Tensor]) -> int:
    """How many numbers the tensors hold."""
    return sum(parameter.numel() for parameter in parameters)
