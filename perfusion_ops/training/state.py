"""What one concept is trained on, and its state in training."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from perfusion_ops.attention.convolutions import ConvolutionEdit, edited_layers, fresh
from perfusion_ops.base.tokenizer import words
from perfusion_ops.base_model import Base
from perfusion_ops.concept import Concept, GatedConcept, OffsetConcept, References
from perfusion_ops.config import TrainingConfig
from perfusion_ops.metric import Metric
from perfusion_ops.text import Tokens

_INSIDE = 0.5  # a position whose mask is above it belongs to the product


@dataclass(frozen=True)
class Example:
    """What one concept is trained on.

    Attributes:
        superclass: one or more words.
        latents: (n, C, h, w) float32, scaled; encoded once.
        masks: (n, 1, h, w) float32 in 0..1, each with its maximum at 1; how much a latent position counts.
        config: the concept's settings.
        time_ids: (n, 6) float32: height and width of the photo, top and left of its crop, height and width of the
            square; for families whose denoiser is told them.
        further: (n + 1, 1 + C, h, w) float32: further input channels of a model for inpainting, for each latent, and
            last for a hole of the whole picture (`perfusion_ops.training.holes`).
        start: (E,): where v* starts, instead of at the superclass.
    """

    superclass: str
    latents: Tensor
    masks: Tensor
    config: TrainingConfig
    time_ids: Tensor | None = None
    further: Tensor | None = None
    start: Tensor | None = None


@dataclass
class ConceptState:
    """A concept in training: everything that a checkpoint needs for an exact resume.

    Attributes:
        embedding, value_target, key_target: parameters, float32; key_target only where keys are trained. Under recipe
            `offset`, value_target is the value offset.
        target_input, superclass_input: (D,).
        generator: the concept's own random stream, on the CPU.
        step: optimiser steps done.
        losses: the latest losses, at most 50.
        problem: the error message, if the concept has diverged.
        convolutions: parameters of the edit of convolutions by name, if there is one: conv_reads and conv_writes.
    """

    embedding: nn.Parameter
    value_target: nn.Parameter
    key_target: nn.Parameter | None
    target_input: Tensor
    superclass_input: Tensor
    generator: torch.Generator
    step: int = 0
    losses: list[float] = field(default_factory=list)
    problem: str | None = None
    convolutions: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean of the latest losses."""
        return sum(self.losses) / max(len(self.losses), 1)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Learned parameters by name."""
        learned = {"embedding": self.embedding, "value_target": self.value_target, **self.convolutions}
        return learned if self.key_target is None else {**learned, "key_target": self.key_target}

    def concept(self, example: Example, base: Base, metric: Metric) -> Concept:
        """The concept as trained so far."""
        embedding, values = (parameter.detach().clone() for parameter in (self.embedding, self.value_target))
        loss = self.loss if self.losses else None
        text_digest = base.folder.text_digest if stores_differences(example.config, base) else ""
        if example.config.recipe == "offset":
            return OffsetConcept(
                example.superclass,
                embedding.cpu(),
                values.cpu(),
                base.folder.digest,
                metric.digest,
                loss,
                text_digest,
                _kept(example),
                _edit(self.convolutions),
            )
        if text_digest:
            values -= base.stack.values.to(values.dtype) @ self.superclass_input
        return GatedConcept(
            superclass=example.superclass,
            embedding=embedding.cpu(),
            target_input=self.target_input.cpu().clone(),
            superclass_input=self.superclass_input.cpu().clone(),
            value_target=values.cpu(),
            key_target=None if self.key_target is None else self.key_target.detach().cpu().clone(),
            lock=example.config.lock,
            base_digest=base.folder.digest,
            metric_digest=metric.digest,
            loss=loss,
            text_digest=text_digest,
            gate=example.config.gate,
        )


def _edit(learned: dict[str, nn.Parameter]) -> ConvolutionEdit | None:
    if not learned:
        return None
    return ConvolutionEdit(*(learned[name].detach().float().cpu().clone() for name in ("conv_reads", "conv_writes")))


def _kept(example: Example) -> References | None:
    """The first photos of an example, as many as its settings keep; mirrored ones are not kept."""
    count = example.config.references
    photos = len(example.latents) // 2 if example.config.flip else len(example.latents)
    count = min(count, photos)
    if not count:
        return None
    return References(example.latents[:count].float().cpu(), (example.masks[:count, 0] > _INSIDE).cpu())


def stores_differences(config: TrainingConfig, base: Base) -> bool:
    """Whether a concept's file holds differences, which also fit siblings of its base model."""
    if config.store == "auto":
        return base.folder.family.shares_metric
    return config.store != "target"


@torch.no_grad()
def start(base: Base, example: Example) -> ConceptState:
    """Initial state: v* and the targets start at the superclass.

    v* is the mean of the superclass's sub-token embeddings; i_super is the encoding of its last sub-token, averaged
    over the training templates; i* = i_super, o_V = W_V i_super, and o_K = W_K i_super stays locked. Under recipe
    `offset`, v* is the mean of all words' embeddings, the offset is zero, and an edit of convolutions changes nothing.
    If the example has a `start`, v* is that vector. Under recipe `paper`, i* is then the encoding of this word,
    averaged in the same way, and o_V = W_V i*: the first picture has the word's own values, and keys of the superclass.
    Under recipe `offset` all else is the same.
    """
    subtokens = words(base.tokenizer, example.superclass)
    if not subtokens:
        raise ValueError(f"the superclass {example.superclass!r} has no token")
    rows = superclass_prompts(base, example.superclass)
    ends = torch.tensor([row.nouns.index(0) for row in rows])
    encodings = base.texts.encode(rows).encodings
    # In a causal encoder the last sub-token alone has read the whole word; in others each of them has.
    read = 1 if base.texts.models[0].text.causal else len(subtokens)
    places = ends[:, None] - torch.arange(read)
    superclass_input = encodings[torch.arange(len(rows))[:, None], places].mean(1).mean(0)
    working = superclass_input.dtype
    values = base.stack.values.to(working) @ superclass_input
    keys = base.stack.keys.to(working) @ superclass_input
    offset = example.config.recipe == "offset"
    embedding, target_input = base.texts.embeddings(None if offset else subtokens), superclass_input.clone()
    if example.start is not None:
        embedding = example.start.to(embedding).clone()
        if not offset:
            target_input = _encoding_of(base, embedding)
            values = base.stack.values.to(working) @ target_input
    convolutions = {}
    if offset and example.config.conv_rank:
        edit = fresh(edited_layers(base.denoiser), example.config.conv_rank, example.config.seed)
        device = superclass_input.device
        convolutions = {
            "conv_reads": nn.Parameter(edit.reads.to(device, working)),
            "conv_writes": nn.Parameter(edit.writes.to(device, working)),
        }
    return ConceptState(
        embedding=nn.Parameter(embedding),
        value_target=nn.Parameter(torch.zeros_like(values) if offset else values),
        key_target=nn.Parameter(keys) if example.config.lock == "trained" and not offset else None,
        target_input=target_input,
        superclass_input=superclass_input,
        generator=torch.Generator().manual_seed(example.config.seed),
        convolutions=convolutions,
    )


def _encoding_of(base: Base, embedding: Tensor) -> Tensor:
    """The encoding (D,) of a word by its embedding (E,), averaged over the training templates."""
    rows = [base.texts.tokenize(template.format("{0}")) for template in base.folder.settings.templates]
    places = torch.tensor([row.slots.index(0) for row in rows])
    encodings = base.texts.encode(rows, embedding.expand(len(rows), 1, -1)).encodings
    return encodings[torch.arange(len(rows)), places].mean(0)


def superclass_prompts(base: Base, superclass: str) -> list[Tokens]:
    """The training templates with the superclass spelt out."""
    templates = base.folder.settings.templates
    return [base.texts.tokenize(template.format("{0}"), (superclass,), {0}) for template in templates]
