"""Custom Diffusion (Kumari et al. 2023, arXiv 2212.04488): all cross-attention keys and values, and one token."""

import copy
from functools import partial
from typing import Any

from pydantic import Field
from torch import nn

from perfusion_ops.rivals.fitting import Group, Lesson, count, fit
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.rivals.parts import Parts, word_embedding
from perfusion_ops.rivals.personalised import Tuned
from perfusion_ops.rivals.prior import WithPrior, class_prior
from perfusion_ops.rivals.textual_inversion import told_with
from perfusion_ops.training.state import Example


class CustomDiffusion(WithPrior):
    """Settings of Custom Diffusion."""

    lr: float = Field(default=7e-5, gt=0, description="rate of keys and values; published: 1e-5 times the batch")
    lr_token: float = Field(default=3e-3, gt=0, description="rate of the token")
    start: str = Field(default="ktn", min_length=1, description="where the token starts; a rare word")


def train_custom_diffusion(
    parts: Parts, example: Example, budget: Budget, settings: CustomDiffusion | None = None
) -> Tuned:
    """Learn a token before the superclass, and the `to_k` and `to_v` of every `attn2`.

    Args:
        parts: the base model.
        example: latents and masks of the product's photos.
        budget: steps and rows.
        settings: see `CustomDiffusion`; default: its defaults.

    Raises:
        TrainingDivergedError: a loss is not finite.
        ValueError: no row of a step is left for the product.
    """
    settings = settings or CustomDiffusion()
    unet = copy.deepcopy(parts.unet).requires_grad_(False)
    learned = keys_and_values(unet)
    for parameter in learned:
        parameter.requires_grad_(True)
    embedding = nn.Parameter(word_embedding(parts, settings.start))
    phrase = f"{{0}} {example.superclass}"
    prior = class_prior(parts, example.superclass, budget.batch, settings)
    told = partial(told_with, parts, phrase, embedding)
    losses = fit(
        Lesson(parts, unet, example, budget, settings, told, prior),
        [Group([*learned], settings.lr), Group([embedding], settings.lr_token)],
    )
    unet.requires_grad_(False)
    return Tuned(parts, unet, phrase, embedding.detach(), numbers_of(unet, embedding.numel(), settings), losses)


def keys_and_values(unet: Any) -> list[nn.Parameter]:
    """The weights of `to_k` and `to_v` of every text cross-attention."""
    layers = [module for name, module in unet.named_modules() if name.rsplit(".", 1)[-1] == "attn2"]
    return [layer.weight for attention in layers for layer in (attention.to_k, attention.to_v)]


def numbers_of(unet: Any, width: int, settings: CustomDiffusion) -> int:  # noqa: ARG001 - all methods are asked alike
    """How many numbers are learned of a denoiser with word embeddings of `width`."""
    return count(keys_and_values(unet)) + width
