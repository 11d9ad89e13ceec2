"""What every method returns: a model that draws one product, and what it costs to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perfusion_ops.config import SamplingConfig
from perfusion_ops.pipelines import make_scheduler
from perfusion_ops.rivals.parts import Parts, encodings, spoken

ROWS = 8  # rendered at once


class Personalised(Protocol):
    """A base model that has learned one product."""

    @property
    def numbers(self) -> int:
        """How many numbers were learned."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the file that keeps them, in float16."""
        ...

    @property
    def apart(self) -> bool:
        """Whether prompts without the product give the base model's own pictures, by construction."""
        ...

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], *, guidance: float, steps: int) -> NDArray[np.uint8]:
        """Render prompts with `{}` for the product, or without it.

        Args:
            prompts: B prompts.
            seeds: of the B pictures' noise.
            guidance: classifier-free guidance scale.
            steps: denoising steps.

        Returns:
            (B, H, W, 3).

        Raises:
            PromptTooLongError: a prompt does not fit.
            RuntimeError: a picture has values that are not finite.
        """
        ...


@dataclass(frozen=True, eq=False)
class Tuned:
    """A rival's `Personalised`: a denoiser, perhaps a learned token, and the words that stand for the product.

    Attributes:
        parts: the base model.
        unet: the base's own denoiser, or a changed copy.
        phrase: what stands for `{}` in a prompt; `{0}` in it is the learned token.
        embedding: of the learned token, (E,), if there is one.
        numbers: see `Personalised`.
        losses: the loss of every step of the training.
    """

    parts: Parts
    unet: Any
    phrase: str
    embedding: Tensor | None
    numbers: int
    losses: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """See `Personalised`."""
        return 2 * self.numbers

    @property
    def apart(self) -> bool:
        """See `Personalised`."""
        return self.unet is self.parts.unet

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], *, guidance: float, steps: int) -> NDArray[np.uint8]:
        """See `Personalised`."""
        texts = [spoken(prompt, self.phrase) for prompt in prompts]
        drawn = []
        for start in range(0, len(texts), ROWS):
            rows = slice(start, start + ROWS)
            with torch.no_grad():
                told = encodings(self.parts, texts[rows], self.embedding)
            images = draw_rows(self.parts, self.unet, told, seeds[rows], guidance=guidance, steps=steps)
            drawn.append(pixels_of(images))
        return np.concatenate(drawn)


def pixels_of(images: Tensor) -> NDArray[np.uint8]:
    """Pictures (B, 3, H, W) in 0..1 as (B, H, W, 3)."""
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def unchanged(parts: Parts, phrase: str) -> Tuned:
    """The base model itself, which calls the product `phrase`."""
    return Tuned(parts, parts.unet, phrase, None, 0)


@torch.no_grad()
def draw_rows(
    parts: Parts, unet: Any, told: Tensor, seeds: Sequence[int], *, guidance: float, steps: int, decode: bool = True
) -> Tensor:
    """Render B encodings with a denoiser through an ordinary diffusers pipeline.

    Args:
        parts: the base model.
        unet: takes text encodings.
        told: (B, N, D).
        seeds: B.
        guidance: classifier-free guidance scale; the negative prompt is the base's own default.
        steps: denoising steps.
        decode: pictures, or else their latents.

    Returns:
        (B, 3, H, W) in 0..1, or scaled latents (B, C, h, w).

    Raises:
        RuntimeError: a result is not finite.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    defaults = SamplingConfig.model_validate(parts.folder.settings.sampling)
    pipe: Any = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        unet=unet,
        scheduler=make_scheduler(defaults.scheduler, parts.scheduler.config),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    negative = encodings(parts, [defaults.negative_prompt]).expand(len(told), -1, -1) if guidance > 1 else None
    images = pipe(
        prompt_embeds=told,
        negative_prompt_embeds=negative,
        width=parts.resolution,
        height=parts.resolution,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt" if decode else "latent",
    ).images
    if not torch.isfinite(images).all():
        raise RuntimeError("a picture has values that are not finite: the training of its method diverged")
    return images
