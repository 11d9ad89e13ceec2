"""Training of G concepts in one batch (arXiv 2305.01644, section 4.4 and algorithm 1).

Learned per concept: the word embedding v* and one vector of values for every layer. Frozen: denoiser, text encoder and
keys. Under recipe `paper` the values are the target o_V of the gated edit. The target input i* is a running mean of the
concept's own encodings, i* <- ema i* + (1 - ema) e, once per optimiser step whatever the number of micro-batches,
without gradient. Under recipe `offset` the values are added at every position of the prompt, and an edit of
convolutions may be learned with them (`perfusion_ops.attention.convolutions`).

Concepts share only the denoiser's batch. Each has its own random stream, Adam moments and loss, so that training G
together equals G separate trainings, and a concept that diverges does not affect the others.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.attention.convolutions import ConvolutionBatch, edited, edited_layers
from perfusion_ops.base_model import Base
from perfusion_ops.conditioning import Conditioning
from perfusion_ops.config import TrainingConfig
from perfusion_ops.edit import Targets, gate_and_remove, project, solve_targets
from perfusion_ops.errors import PerfusionError
from perfusion_ops.families.family import POOLED
from perfusion_ops.metric import Metric
from perfusion_ops.training.attention import attention_for_training, checkpointing
from perfusion_ops.training.draws import Draw, draw_rows
from perfusion_ops.training.state import ConceptState, Example, start, superclass_prompts

_LOSS_WINDOW = 50
_LAST_RATE = 0.02  # of a cosine decay


@torch.no_grad()
def _superclass_pooled(base: Base, superclasses: Sequence[str]) -> dict[str, Tensor]:
    """Pooled vectors (T, P) of the templates with each superclass; empty if the family or its settings ask for none."""
    pooled = any(text.pooled for text in base.folder.family.texts)
    if not pooled or base.folder.settings.pooled == "concept":
        return {}
    distinct = dict.fromkeys(superclasses)
    return {each: base.texts.encode(superclass_prompts(base, each)).extra[POOLED] for each in distinct}


class TrainingDivergedError(PerfusionError, ValueError):
    """The loss of a concept, or its gradient, is not finite."""


def make_optimizer(states: Sequence[ConceptState], examples: Sequence[Example]) -> torch.optim.Adam:
    """Adam over every concept's parameters, each with its own step size and moments; no weight decay."""
    groups: list[dict[str, Any]] = []
    for state, example in zip(states, examples, strict=True):
        for name, parameter in state.parameters().items():
            groups.append({"params": [parameter], "lr": _rate(example.config, name, state.step)})
    return torch.optim.Adam(groups)


def _rate(config: TrainingConfig, name: str, step: int) -> float:
    """Adam's step size of a parameter in optimiser step number `step`, from 0."""
    rates = {"embedding": config.lr_embedding, "conv_reads": config.lr_conv, "conv_writes": config.lr_conv}
    rate = rates.get(name, config.lr_value)
    if config.decay == "none":
        return rate
    return rate * (_LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * step / config.steps)) / 2)


class Trainer:
    """Trains a group of concepts step by step; each concept stops at its own number of steps.

    Args:
        base: the base model.
        metric: its metric.
        examples: G concepts.
        states: states to resume from; default: new ones.
        micro_batch: rows the denoiser sees at a time; gradients and the running mean accumulate over them, so it
            changes memory and speed, never the result.
        checkpointed: compute activations again in the backward pass instead of keeping them; less memory, more time.
    """

    def __init__(
        self,
        base: Base,
        metric: Metric,
        examples: Sequence[Example],
        *,
        states: Sequence[ConceptState] | None = None,
        micro_batch: int = 64,
        checkpointed: bool = False,
    ) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self.base = base
        self.examples = tuple(examples)
        self.states = tuple(states) if states is not None else tuple(start(base, example) for example in examples)
        self.optimizer = make_optimizer(self.states, self.examples)
        self.micro_batch = micro_batch
        self._checkpointed = checkpointed
        self._metric_inverse = metric.inverse.to(base.device)
        self._noise: Any = DDPMScheduler.from_config(base.scheduler.config)
        nouns = [example.superclass if example.config.recipe == "offset" else "" for example in self.examples]
        self._templates = {
            noun: tuple(
                base.texts.tokenize(template.format("{0}"), (noun,)) for template in base.folder.settings.templates
            )
            for noun in dict.fromkeys(nouns)
        }
        self._nouns = tuple(nouns)
        self._layers = edited_layers(base.denoiser)
        self._pooled = _superclass_pooled(base, [example.superclass for example in self.examples])

    def active(self) -> list[int]:
        """Concepts that have steps left and have not diverged."""
        return [
            index
            for index, (state, example) in enumerate(zip(self.states, self.examples, strict=True))
            if state.problem is None and state.step < example.config.steps
        ]

    def run(self, on_step: Callable[["Trainer"], None] | None = None) -> None:
        """Train until every concept has finished or diverged; `on_step` is called after each optimiser step."""
        self.advance(None, on_step)

    def advance(self, steps: int | None, on_step: Callable[["Trainer"], None] | None = None) -> None:
        """Train for `steps` optimiser steps, or all that are left if None; stop earlier if no concept is active."""
        denoiser = self.base.denoiser
        with attention_for_training(denoiser, self.base.device), checkpointing(denoiser, on=self._checkpointed):
            while self.active() and steps != 0:
                self.step()
                steps = None if steps is None else steps - 1
                if on_step is not None:
                    on_step(self)

    def step(self) -> None:
        """One optimiser step of every active concept."""
        active = self.active()
        draws = [draw for index in active for draw in self.draw(index)]
        targets = self._targets(active)
        sums: dict[int, Tensor] = {}
        losses: dict[int, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for begin in range(0, len(draws), self.micro_batch):
            self._accumulate(draws[begin : begin + self.micro_batch], active, targets, sums, losses)
        totals = self._blame(active, losses)
        self._set_rates()
        self.optimizer.step()
        for index in active:
            state, config = self.states[index], self.examples[index].config
            if state.problem is None:
                encoding = sums[index] / config.batch
                state.target_input = config.ema * state.target_input + (1 - config.ema) * encoding
                state.losses = [*state.losses[1 - _LOSS_WINDOW :], totals[index]]
                state.step += 1

    def _set_rates(self) -> None:
        """Step sizes of this step; each concept has its own number of steps."""
        groups = iter(self.optimizer.param_groups)
        for state, example in zip(self.states, self.examples, strict=True):
            for name in state.parameters():
                next(groups)["lr"] = _rate(example.config, name, state.step)

    def draw(self, index: int) -> list[Draw]:
        """The random choices of one concept's rows of the next step; moves its random stream on."""
        return draw_rows(
            index,
            self.examples[index],
            self.states[index].generator,
            templates=len(self.base.folder.settings.templates),
            timesteps=int(self._noise.config.num_train_timesteps),
        )

    def _targets(self, active: Sequence[int]) -> Targets:
        inputs = torch.stack([self.states[index].target_input for index in active])[:, None]
        used = torch.ones(len(active), 1, dtype=torch.bool, device=inputs.device)
        return solve_targets(inputs, used, self._metric_inverse)

    def _outputs(self, index: int) -> Tensor:
        state = self.states[index]
        if self.examples[index].config.recipe == "offset":
            return torch.cat([torch.zeros_like(state.value_target), state.value_target])
        keys = state.key_target
        if keys is None:
            keys = self.base.stack.keys.to(state.superclass_input.dtype) @ state.superclass_input
        return torch.cat([keys, state.value_target])

    def _accumulate(
        self,
        draws: Sequence[Draw],
        active: Sequence[int],
        targets: Targets,
        sums: dict[int, Tensor],
        losses: dict[int, Tensor],
    ) -> None:
        """Forward and backward of some rows; adds to gradients, encoding sums and losses."""
        device = self.base.device
        # Rows that share concept and template share their text encoding and conditioning.
        pairs = {(draw.concept, draw.template): 0 for draw in draws}
        pairs = {pair: number for number, pair in enumerate(pairs)}
        conditioning, encodings = self._conditioning(list(pairs), active, targets)
        row_pair = torch.tensor([pairs[draw.concept, draw.template] for draw in draws], device=device)
        latents = torch.stack([self.examples[draw.concept].latents[draw.image] for draw in draws]).to(device)
        masks = torch.stack([self.examples[draw.concept].masks[draw.image] for draw in draws]).to(device)
        noise = torch.stack([draw.noise for draw in draws]).to(latents)
        timesteps = torch.tensor([draw.timestep for draw in draws], device=device)
        noisy = self._noise.add_noise(latents, noise, timesteps).to(self.base.dtype)
        further = self._further(draws)
        noisy = noisy if further is None else torch.cat([noisy, further], 1)
        told = conditioning.rows(row_pair)
        added = self.base.folder.family.added(told.extra, self._time_ids(draws))
        everywhere = masks.new_ones(len(draws), 1, 1, 1)
        # Around the backward pass as well, in which checkpointed blocks compute again.
        with edited(self._layers, self._edits(draws), lambda _height, _width: everywhere):
            predicted = self.base.denoiser(noisy, timestep=timesteps, encoder_hidden_states=told.kv, **added).sample
            # Some denoisers also predict a variance, in further channels.
            predicted = predicted[:, : latents.shape[1]].to(latents.dtype)
            errors = (predicted - self._wanted(latents, noise, timesteps)).square().mean(1, keepdim=True)
            per_row = (errors * masks).sum((1, 2, 3)) / masks.sum((1, 2, 3))
            batch = torch.tensor([self.examples[draw.concept].config.batch for draw in draws], device=device)
            (per_row / batch).sum().backward()
        for number, draw in enumerate(draws):
            pair = pairs[draw.concept, draw.template]
            share = per_row[number].detach() / self.examples[draw.concept].config.batch
            losses[draw.concept] = losses[draw.concept] + share if draw.concept in losses else share
            encoding = encodings[pair]
            sums[draw.concept] = sums[draw.concept] + encoding if draw.concept in sums else encoding

    def _conditioning(
        self, pairs: Sequence[tuple[int, int]], active: Sequence[int], targets: Targets
    ) -> tuple[Conditioning, Tensor]:
        """Conditioning of P (concept, template) pairs, and the concept's own encodings (P, D) detached."""
        device = self.base.device
        concepts = [concept for concept, _ in pairs]
        tokens = [self._templates[self._nouns[concept]][template] for concept, template in pairs]
        where = torch.tensor([row.slots.index(0) for row in tokens], device=device)
        embeddings = torch.stack([self.states[concept].embedding for concept in concepts])[:, None]
        encoded = self.base.texts.encode(tokens, embeddings)
        encodings = encoded.encodings
        place = {concept: number for number, concept in enumerate(active)}
        chosen = torch.tensor([place[concept] for concept in concepts], device=device)
        rows = targets.rows(chosen)
        configs = [self.examples[concept].config for concept in concepts]
        bias = torch.tensor([[config.bias] for config in configs], device=device)
        temperature = torch.tensor([[config.temperature] for config in configs], device=device)
        linear = torch.tensor([[config.gate == "linear"] for config in configs], device=device)
        kept, gates = gate_and_remove(encodings, rows, bias, temperature, linear)
        by_concept = {concept: self._outputs(concept) for concept in dict.fromkeys(concepts)}
        outputs = torch.stack([by_concept[concept] for concept in concepts])[:, None]
        own = encodings.detach()[torch.arange(len(pairs), device=device), where]
        offset = torch.tensor([config.recipe == "offset" for config in configs], device=device)[:, None, None]
        if offset.any():
            # An offset acts on every position, on encodings of which nothing is removed.
            kept, gates = torch.where(offset, encodings, kept), torch.where(offset, torch.ones_like(gates), gates)
        extra = dict(encoded.extra)
        if self._pooled:
            extra[POOLED] = torch.stack(
                [self._pooled[self.examples[concept].superclass][template] for concept, template in pairs]
            )
        typed = {name: each.to(self.base.dtype) if each.is_floating_point() else each for name, each in extra.items()}
        return Conditioning(project(kept, gates, outputs, self.base.stack.weight), typed), own

    def _edits(self, draws: Sequence[Draw]) -> ConvolutionBatch | None:
        """The edits of convolutions of the rows; None if no concept has one. Smaller ranks are filled with zeros."""
        learned = {draw.concept: self.states[draw.concept].convolutions for draw in draws}
        rank = max((len(each["conv_reads"]) for each in learned.values() if each), default=0)
        if not rank:
            return None
        [like, *_] = [each for each in learned.values() if each]
        place = torch.tensor([list(learned).index(draw.concept) for draw in draws], device=self.base.device)

        def stacked(name: str) -> Tensor:
            none = like[name].new_zeros(0, like[name].shape[1])
            rows = [each.get(name, none) for each in learned.values()]
            full = torch.stack([nn.functional.pad(row, (0, 0, 0, rank - len(row))) for row in rows])
            return full[place][:, None]

        return ConvolutionBatch(stacked("conv_reads"), stacked("conv_writes"))

    def _further(self, draws: Sequence[Draw]) -> Tensor | None:
        """Further input channels (B, 1 + C, h, w) of the rows, for a denoiser that has them."""
        if not self.base.folder.inpaints:
            return None
        rows: list[Tensor] = []
        for draw in draws:
            further = self.examples[draw.concept].further
            if further is None or draw.hole is None:
                raise ValueError("the base model is for inpainting, and the example was made with another one")
            rows.append(further[draw.hole])
        return torch.stack(rows).to(self.base.device, self.base.dtype)

    def _time_ids(self, draws: Sequence[Draw]) -> Tensor | None:
        """Size and crop (B, 6) of the rows' photos, for a denoiser that is told them."""
        if not self.base.folder.family.time_ids:
            return None
        side = float(self.base.resolution)
        whole = torch.tensor([side, side, 0.0, 0.0, side, side])
        known = [self.examples[draw.concept].time_ids for draw in draws]
        rows = [whole if each is None else each[draw.image] for each, draw in zip(known, draws, strict=True)]
        return torch.stack(rows).to(self.base.device, self.base.dtype)

    def _wanted(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        kind = self._noise.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self._noise.get_velocity(latents, noise, timesteps)
        if kind == "sample":
            return latents
        raise ValueError(f"the base model predicts {kind!r}, which training does not know")

    def _blame(self, active: Sequence[int], losses: dict[int, Tensor]) -> dict[int, float]:
        """End concepts whose loss or gradient is not finite; they keep their last finite weights.

        Returns:
            The losses. They and the verdicts are the only numbers of a step that the host waits for, in one copy.
        """
        finite = [torch.isfinite(losses[index]) for index in active]
        for position, index in enumerate(active):
            for parameter in self.states[index].parameters().values():
                if parameter.grad is not None:
                    finite[position] = finite[position] & torch.isfinite(parameter.grad).all()
        totals = torch.stack([losses[index] for index in active])
        numbers, verdicts = torch.stack([totals, torch.stack(finite).to(totals.dtype)]).tolist()
        for index, good in zip(active, verdicts, strict=True):
            if not good:
                state = self.states[index]
                state.problem = (
                    f"training diverged at step {state.step + 1}: the loss or its gradient is not finite; "
                    "lower train.lr_value, or look at the product's pictures"
                )
                for parameter in state.parameters().values():
                    parameter.grad = None
        return dict(zip(active, numbers, strict=True))
