"""DreamBooth (Ruiz et al. 2023, arXiv 2208.12242): the whole denoiser, with or without prior preservation."""

import copy
from typing import Any

import torch
from pydantic import Field

from perfusion_ops.rivals.fitting import Group, Lesson, count, fit
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.rivals.parts import Parts
from perfusion_ops.rivals.personalised import Tuned
from perfusion_ops.rivals.prior import WithPrior, class_prior
from perfusion_ops.rivals.textual_inversion import told_with
from perfusion_ops.training.state import Example


class DreamBooth(WithPrior):
    """Settings of DreamBooth; the text encoder stays frozen, as in the published method for latent diffusion."""

    lr: float = Field(default=1.5e-4, gt=0, description="rate of the denoiser; scripts for SD use 2e-6 to 5e-6")
    identifier: str = Field(default="sks", min_length=1, description="rare word before the superclass")


def train_dreambooth(parts: Parts, example: Example, budget: Budget, settings: DreamBooth | None = None) -> Tuned:
    """Learn the whole denoiser for "<identifier> <superclass>".

    Args:
        parts: the base model.
        example: latents and masks of the product's photos.
        budget: steps and rows; those of the prior are part of it, the drawing of its pictures is not.
        settings: see `DreamBooth`; default: its defaults.

    Raises:
        TrainingDivergedError: a loss is not finite.
        ValueError: no row of a step is left for the product.
    """
    settings = settings or DreamBooth()
    unet = copy.deepcopy(parts.unet).requires_grad_(True)
    phrase = f"{settings.identifier} {example.superclass}"
    with torch.no_grad():
        every = told_with(parts, phrase, None, range(len(parts.folder.settings.templates)))
    prior = class_prior(parts, example.superclass, budget.batch, settings)
    losses = fit(
        Lesson(parts, unet, example, budget, settings, lambda chosen: every[list(chosen)], prior),
        [Group([*unet.parameters()], settings.lr)],
    )
    unet.requires_grad_(False)
    return Tuned(parts, unet, phrase, None, count(unet.parameters()), losses)


def numbers_of(unet: Any, width: int, settings: DreamBooth) -> int:  # noqa: ARG001 - all methods are asked alike
    """How many numbers are learned of a denoiser."""
    return count(unet.parameters())
