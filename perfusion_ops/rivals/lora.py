"""LoRA (Hu et al. 2021, arXiv 2106.09685) on the attention of the denoiser, alone and with a learned token.

The adapter is peft's, as in diffusers' DreamBooth-LoRA script; with `token`, a word embedding is learned beside it for
the first share of the steps and then rests (pivotal tuning, as in the advanced script).
"""

import copy
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import nn

from perfusion_ops.rivals.fitting import Fit, Group, Lesson, count, fit
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.rivals.parts import Parts, word_embedding
from perfusion_ops.rivals.personalised import Tuned
from perfusion_ops.rivals.textual_inversion import told_with
from perfusion_ops.training.state import Example

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class Lora(Fit):
    """Settings of LoRA."""

    rank: int = Field(default=4, ge=1)
    lr: float = Field(default=5e-4, gt=0, description="rate of the adapter; scripts for SD use 1e-4 to 5e-4")
    identifier: str = Field(default="sks", min_length=1, description="rare word before the superclass")


class PivotalTuning(Lora):
    """Settings of LoRA with a learned token, which starts at `identifier`."""

    lr_token: float = Field(default=3e-3, gt=0, description="rate of the token")
    token_share: float = Field(default=0.5, gt=0, le=1, description="of the steps in which the token is learned")


def train_lora(parts: Parts, example: Example, budget: Budget, settings: Lora | None = None) -> Tuned:
    """Learn an adapter of the denoiser for "<identifier> <superclass>".

    Args:
        parts: the base model.
        example: latents and masks of the product's photos.
        budget: steps and rows.
        settings: see `Lora`; default: its defaults.

    Raises:
        ImportError: peft is not installed.
        TrainingDivergedError: a loss is not finite.
    """
    settings = settings or Lora()
    unet, learned = adapted(parts, settings.rank, budget.seed)
    phrase = f"{settings.identifier} {example.superclass}"
    with torch.no_grad():
        every = told_with(parts, phrase, None, range(len(parts.folder.settings.templates)))
    groups = [Group([*learned], settings.lr)]
    losses = fit(Lesson(parts, unet, example, budget, settings, lambda chosen: every[list(chosen)]), groups)
    unet.requires_grad_(False)
    return Tuned(parts, unet, phrase, None, count(learned), losses)


def train_pivotal_tuning(
    parts: Parts, example: Example, budget: Budget, settings: PivotalTuning | None = None
) -> Tuned:
    """Learn a token before the superclass and an adapter of the denoiser; arguments and errors as `train_lora`."""
    settings = settings or PivotalTuning()
    unet, learned = adapted(parts, settings.rank, budget.seed)
    embedding = nn.Parameter(word_embedding(parts, settings.identifier))
    phrase = f"{{0}} {example.superclass}"
    groups = [Group([*learned], settings.lr), Group([embedding], settings.lr_token, until=settings.token_share)]
    told = partial(told_with, parts, phrase, embedding)
    losses = fit(Lesson(parts, unet, example, budget, settings, told), groups)
    unet.requires_grad_(False)
    return Tuned(parts, unet, phrase, embedding.detach(), count(learned) + embedding.numel(), losses)


def adapted(parts: Parts, rank: int, seed: int) -> tuple[Any, list[nn.Parameter]]:
    """A copy of the denoiser with a new adapter, which changes nothing yet, and the adapter's parameters.

    Raises:
        ImportError: peft is not installed.
    """
    peft = adapter_library()
    unet = copy.deepcopy(parts.unet).requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(
            peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS))
        )
    return unet, [parameter for parameter in unet.parameters() if parameter.requires_grad]


def adapter_library() -> Any:
    """The package peft.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs the package peft: install it with `pip install 'peft>=0.21,<0.22'`") from error
    return peft


def numbers_of(unet: Any, width: int, settings: Lora) -> int:
    """How many numbers are learned of a denoiser without an adapter, with word embeddings of `width`."""
    layers = [
        module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{target}" for target in TARGETS))
    ]
    adapter = sum(settings.rank * (layer.in_features + layer.out_features) for layer in layers)
    return adapter + (width if isinstance(settings, PivotalTuning) else 0)
