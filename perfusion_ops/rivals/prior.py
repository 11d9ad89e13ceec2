"""Prior preservation: pictures of the class that the base model draws before it is changed."""

from functools import lru_cache

import torch
from torch import Tensor

from perfusion_ops.config import SamplingConfig
from perfusion_ops.rivals.fitting import Prior
from perfusion_ops.rivals.parts import Parts, encodings
from perfusion_ops.rivals.personalised import draw_rows

_ROWS = 8  # drawn at once


def class_prior(parts: Parts, superclass: str, *, pictures: int, rows: int, batch: int, weight: float) -> Prior | None:
    """The prior of a class, or None where it gets no rows.

    Args:
        parts: the base model.
        superclass: one or more words.
        pictures: how many are drawn, once for each class.
        rows: of each step, out of `batch`.
        batch: rows of a step.
        weight: of their loss.

    Raises:
        ValueError: no row is left for the product.
    """
    if rows == 0:
        return None
    if rows >= batch:
        raise ValueError(f"{rows} of {batch} rows show the class, and none is left for the product: use fewer")
    latents, told = class_pictures(parts, superclass, pictures)
    return Prior(latents, told, rows, weight)


@lru_cache(maxsize=32)
def class_pictures(parts: Parts, superclass: str, count: int) -> tuple[Tensor, Tensor]:
    """Latents (count, C, h, w) of "a photo of a <superclass>" with the base's own settings, and its encoding (N, D)."""
    defaults = SamplingConfig.model_validate(parts.folder.settings.sampling)
    with torch.no_grad():
        told = encodings(parts, [f"a photo of a {superclass}"])
    drawn = [
        draw_rows(
            parts,
            parts.unet,
            told.expand(len(seeds), -1, -1),
            seeds,
            guidance=defaults.guidance,
            steps=defaults.steps,
            decode=False,
        )
        for seeds in (range(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))
    ]
    return torch.cat(drawn).float(), told[0]
