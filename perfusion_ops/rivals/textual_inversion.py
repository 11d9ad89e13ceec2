"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): one word embedding is learned, the model is frozen."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from perfusion_ops.rivals.fitting import Fit, Group, Lesson, fit
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.rivals.parts import Parts, encodings, spoken, word_embedding
from perfusion_ops.rivals.personalised import Tuned
from perfusion_ops.training.state import Example


class TextualInversion(Fit):
    """Settings of textual inversion."""

    lr: float = Field(default=6e-3, gt=0, description="rate of the embedding; scripts for SD use 5e-4 times the batch")
    noun: bool = Field(default=False, description="the superclass follows the token; published: the token alone")


def train_textual_inversion(
    parts: Parts, example: Example, budget: Budget, settings: TextualInversion | None = None
) -> Tuned:
    """Learn one token, which starts at the superclass.

    Args:
        parts: the base model.
        example: latents and masks of the product's photos.
        budget: steps and rows.
        settings: see `TextualInversion`; default: its defaults.

    Raises:
        TrainingDivergedError: a loss is not finite.
    """
    settings = settings or TextualInversion()
    embedding = nn.Parameter(word_embedding(parts, example.superclass))
    phrase = f"{{0}} {example.superclass}" if settings.noun else "{0}"
    told = partial(told_with, parts, phrase, embedding)
    losses = fit(Lesson(parts, parts.unet, example, budget, settings, told), [Group([embedding], settings.lr)])
    return Tuned(parts, parts.unet, phrase, embedding.detach(), embedding.numel(), losses)


def told_with(parts: Parts, phrase: str, embedding: Tensor | None, chosen: Sequence[int]) -> Tensor:
    """Encodings (T, N, D) of some of the base's templates with `phrase` for the product."""
    templates = parts.folder.settings.templates
    return encodings(parts, [spoken(templates[number], phrase) for number in chosen], embedding)


def numbers_of(unet: Any, width: int, settings: TextualInversion) -> int:  # noqa: ARG001 - all methods are asked alike
    """How many numbers are learned with word embeddings of `width`."""
    return width
