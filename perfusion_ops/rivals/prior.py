"""Prior preservation: pictures of the class that the base model draws before it is changed."""

from functools import lru_cache

import torch
from pydantic import Field
from torch import Tensor

from perfusion_ops.rivals.fitting import Fit, Prior
from perfusion_ops.rivals.parts import Parts, encodings
from perfusion_ops.rivals.personalised import draw_rows

_ROWS = 8  # drawn at once


class WithPrior(Fit):
    """Settings of a method that may remember the class."""

    prior_rows: int = Field(default=0, ge=0, description="rows of each step that show the class; published: half")
    prior_weight: float = Field(default=1.0, ge=0, description="of their loss beside the product's")
    prior_pictures: int = Field(default=16, ge=1, description="drawn by the base model, once for each class")
    prior_steps: int = Field(default=50, ge=1, description="denoising steps of these pictures")
    prior_guidance: float = Field(default=7.5, ge=0, description="their guidance scale")


def class_prior(parts: Parts, superclass: str, batch: int, settings: WithPrior) -> Prior | None:
    """The prior of a class, or None where it gets no rows.

    Args:
        parts: the base model.
        superclass: one or more words.
        batch: rows of a step, the prior's included.
        settings: see `WithPrior`.

    Raises:
        ValueError: no row is left for the product.
    """
    if settings.prior_rows == 0:
        return None
    if settings.prior_rows >= batch:
        raise ValueError(
            f"{settings.prior_rows} of {batch} rows show the class, and none is left for the product: use fewer"
        )
    latents, told = class_pictures(
        parts, superclass, settings.prior_pictures, steps=settings.prior_steps, guidance=settings.prior_guidance
    )
    return Prior(latents, told, settings.prior_rows, settings.prior_weight)


@lru_cache(maxsize=32)
def class_pictures(parts: Parts, superclass: str, count: int, *, steps: int, guidance: float) -> tuple[Tensor, Tensor]:
    """Latents (count, C, h, w) that the base model draws for "a photo of a <superclass>", and its encoding (N, D)."""
    with torch.no_grad():
        told = encodings(parts, [f"a photo of a {superclass}"])
    drawn = [
        draw_rows(
            parts,
            parts.unet,
            told.expand(len(seeds), -1, -1),
            seeds,
            guidance=guidance,
            steps=steps,
            decode=False,
        )
        for seeds in (range(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))
    ]
    return torch.cat(drawn).float(), told[0]
