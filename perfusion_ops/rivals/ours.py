"""Our own method in the form of the rivals: `perfusion_ops.training` and `perfusion_ops.rendering` behind it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion_ops.base_model import Base, base_from_parts
from perfusion_ops.concept import Concept, GatedConcept
from perfusion_ops.concept_file import write_concept
from perfusion_ops.conditioning import prompt_row
from perfusion_ops.config import SamplingConfig, TrainingConfig
from perfusion_ops.metric import Metric
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.rivals.parts import Parts, spoken
from perfusion_ops.training.state import Example
from perfusion_ops.training.trainer import Trainer, TrainingDivergedError

_ROWS = 8  # rendered at once


@dataclass(frozen=True, eq=False)
class Ours:
    """A `Personalised` of our own method.

    Attributes:
        base: with stacked projections.
        metric: of the base.
        concept: what was learned.
        sampling: bias, temperature, lock and scheduler; steps and guidance come with each drawing.
    """

    base: Base
    metric: Metric
    concept: Concept
    sampling: SamplingConfig

    @property
    def numbers(self) -> int:
        """See `Personalised`: of what is stored, all but the two running means of the text encoder."""
        means = ("target_input", "superclass_input")
        further = 0
        if not isinstance(self.concept, GatedConcept):
            kept, edit = self.concept.references, self.concept.convolutions
            further += 0 if kept is None else kept.latents.numel()
            further += 0 if edit is None else edit.reads.numel() + edit.writes.numel()
        return further + sum(tensor.numel() for name, tensor in self.concept.tensors().items() if name not in means)

    @property
    def size(self) -> int:
        """See `Personalised`: of the concept file."""
        return len(write_concept(self.concept))

    @property
    def apart(self) -> bool:
        """See `Personalised`: a row without a concept is bit for bit the base model's."""
        return True

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], *, guidance: float, steps: int) -> NDArray[np.uint8]:
        """See `Personalised`."""
        side, how = self.base.resolution, self.sampling
        sampler = Sampler(how.width or side, how.height or side, steps, guidance, how.scheduler)
        acting: dict[str, Any] = {"bias": how.bias, "temperature": how.temperature, "lock": how.lock}
        everywhere = (self.concept,) if how.edit_unconditional else ()
        negative = prompt_row(how.negative_prompt, (), **acting, everywhere=everywhere)
        rows = [
            RenderRow(
                prompt_row(spoken(prompt, "{0}"), (self.concept,), **acting, strength=how.strength), negative, seed
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        drawn = []
        for start in range(0, len(rows), _ROWS):
            drawn += render(self.base, self.metric, rows[start : start + _ROWS], sampler)
        if any(picture is None for picture in drawn):
            raise RuntimeError("a picture has values that are not finite: the training of its method diverged")
        return np.stack(drawn)


def stacked(parts: Parts) -> Base:
    """The base model of our method on a copy of the denoiser; the other parts are shared."""
    return base_from_parts(
        parts.folder,
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        unet=copy.deepcopy(parts.unet),
        vae=parts.vae,
        scheduler=parts.scheduler,
    )


def train_ours(
    base: Base, metric: Metric, example: Example, training: TrainingConfig, sampling: SamplingConfig
) -> Ours:
    """Train one concept.

    Args:
        base: see `stacked`.
        metric: of the base.
        example: latents and masks of the product's photos; `training` replaces its settings.
        training: all settings, steps and rows included.
        sampling: how it is drawn.

    Raises:
        TrainingDivergedError: a loss is not finite.
    """
    example = replace(example, config=training)
    trainer = Trainer(base, metric, [example])
    trainer.run()
    [state] = trainer.states
    if state.problem is not None:
        raise TrainingDivergedError(state.problem)
    return Ours(base, metric, state.concept(example, base, metric), sampling)
