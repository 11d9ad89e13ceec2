"""Several products of a rival in one picture, each learned alone: learned tokens in one prompt, adapters added up."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perfusion_ops.rivals.parts import Parts
from perfusion_ops.rivals.personalised import ROWS, Tuned, draw_rows, pixels_of
from perfusion_ops.text import encode, tokenize


@dataclass(frozen=True, eq=False)
class Together:
    """A denoiser that draws several learned products.

    Attributes:
        parts: the base model.
        unet: the base's own denoiser, or a changed copy.
        phrases: what stands for `{0}`, `{1}`, ... in a prompt; `{0}` in a phrase is that product's learned token.
        embeddings: of the learned tokens, (E,) each, by product; None where nothing is learned.
    """

    parts: Parts
    unet: Any
    phrases: tuple[str, ...]
    embeddings: tuple[Tensor | None, ...]

    def draw(self, prompt: str, seeds: Sequence[int], *, guidance: float, steps: int) -> NDArray[np.uint8]:
        """Render a prompt with `{0}`, `{1}`, ... for the products, one picture per seed: (B, H, W, 3).

        Raises:
            PromptTooLongError: the prompt does not fit.
            RuntimeError: a picture has values that are not finite.
        """
        spoken = [phrase.replace("{0}", f"{{{number}}}") for number, phrase in enumerate(self.phrases)]
        tokens = [tokenize(self.parts.tokenizer, prompt.format(*spoken))]
        learned = [each for each in self.embeddings if each is not None]
        vectors = None
        if learned:
            blank = torch.zeros_like(learned[0])
            vectors = torch.stack([blank if each is None else each for each in self.embeddings])[None]
        with torch.no_grad():
            told = encode(self.parts.text_encoder, tokens, vectors)
        drawn = []
        for start in range(0, len(seeds), ROWS):
            rows = seeds[start : start + ROWS]
            images = draw_rows(
                self.parts, self.unet, told.expand(len(rows), -1, -1), rows, guidance=guidance, steps=steps
            )
            drawn.append(pixels_of(images))
        return np.concatenate(drawn)


def joined(products: Sequence[Tuned]) -> Together:
    """Products of which only tokens were learned, in one prompt.

    Raises:
        ValueError: a product has a denoiser of its own.
    """
    parts = products[0].parts
    if any(each.unet is not parts.unet for each in products):
        raise ValueError("a product has a denoiser of its own: merge them")
    return Together(
        parts, parts.unet, tuple(each.phrase for each in products), tuple(each.embedding for each in products)
    )


def merged(products: Sequence[Tuned], scale: float = 1.0) -> Together:
    """Products with LoRA adapters; each one's change of the weights times `scale` is added to the base's denoiser."""
    parts = products[0].parts
    unet = copy.deepcopy(parts.unet)
    layers = dict(unet.named_modules())
    with torch.no_grad():
        for each in products:
            for name, module in each.unet.named_modules():
                if hasattr(module, "lora_A"):
                    layers[name].weight += scale * module.get_delta_weight("default")
    return Together(parts, unet, tuple(each.phrase for each in products), tuple(each.embedding for each in products))
