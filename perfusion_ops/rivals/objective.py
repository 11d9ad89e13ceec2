"""What all rivals share of training: the budget, the rows of a step, and the masked denoising loss.

Rows are drawn and losses formed as in `perfusion_ops.training`: with the same seed and the same number of rows a rival
sees the same photos, templates, timesteps and noise as our own method.
"""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from perfusion_ops.config import Frozen
from perfusion_ops.training.state import Example


class Budget(Frozen):
    """How much training a method gets: `steps * batch` evaluations of the denoiser, prior pictures included."""

    steps: int = Field(default=200, ge=1, description="optimiser steps")
    batch: int = Field(default=4, ge=1, description="rows of a step")
    seed: int = Field(default=0, ge=0, lt=2**63)

    @property
    def evaluations(self) -> int:
        """Rows that the denoiser sees, forward and backward."""
        return self.steps * self.batch


@dataclass(frozen=True)
class Rows:
    """The random choices of B rows.

    Attributes:
        images: places in the example.
        templates: places in the base's templates.
        timesteps: (B,) long.
        noise: (B, C, h, w) float32.
    """

    images: tuple[int, ...]
    templates: tuple[int, ...]
    timesteps: Tensor
    noise: Tensor


def draw(
    example: Example, *, templates: int, timesteps: int, rows: int, generator: torch.Generator, even: bool
) -> Rows:
    """The rows of one step.

    Args:
        example: the product.
        templates: how many there are to draw from.
        timesteps: the same.
        rows: B.
        generator: the product's random stream, on the CPU; it moves on.
        even: a timestep of each of B equal shares of the schedule, and every photo as often as possible.
    """
    flip, shape = example.config.flip, example.latents.shape[1:]
    count = len(example.latents) // (2 if flip else 1)
    images = torch.randint(count, (rows,), generator=generator)
    chosen = torch.randint(templates, (rows,), generator=generator)
    times = torch.randint(timesteps, (rows,), generator=generator)
    mirrored = torch.randint(2, (rows,), generator=generator)
    noise = torch.randn((rows, *shape), generator=generator)
    if even:
        turns = [torch.randperm(count, generator=generator) for _ in range(-(-rows // count))]
        images = torch.cat(turns)[:rows]
        shares = torch.randperm(rows, generator=generator) + torch.rand(rows, generator=generator)
        times = (shares / rows * timesteps).long().clamp(max=timesteps - 1)
    if flip:
        # Mirrored pictures follow the others.
        images = images + count * mirrored
    return Rows(tuple(images.tolist()), tuple(chosen.tolist()), times, noise)


def row_losses(predicted: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    """Squared error of each row, averaged over channels and over positions by mask weight: (B,).

    Args:
        predicted: (B, C, h, w).
        target: the same.
        masks: (B, 1, h, w).
    """
    errors = (predicted - target).square().mean(1, keepdim=True)
    return (errors * masks).sum((1, 2, 3)) / masks.sum((1, 2, 3))


def wanted(schedule: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the base model predicts for noisy latents: the noise, the velocity or the latents.

    Raises:
        ValueError: it predicts something else.
    """
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return schedule.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise ValueError(f"the base model predicts {kind!r}, which training does not know")
