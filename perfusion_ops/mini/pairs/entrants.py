"""How each way of putting several products into one picture is trained and drawn."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from perfusion_ops.compare.methods import Studio
from perfusion_ops.concept import Concept
from perfusion_ops.concept_file import read_concept, write_concept
from perfusion_ops.conditioning import PromptRow, prompt_row
from perfusion_ops.config import SamplingConfig, TrainingConfig
from perfusion_ops.mini.methods.entrants import TRAINING
from perfusion_ops.mini.methods.sets import photos
from perfusion_ops.mini.pairs.measure import Pictures
from perfusion_ops.mini.pairs.sets import Group, real_scene
from perfusion_ops.mini.world.products import Product
from perfusion_ops.mini.world.scene import render as render_scene
from perfusion_ops.mini.world.vocabulary import superclass
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.rivals.lora import Lora, PivotalTuning, train_lora, train_pivotal_tuning
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.rivals.ours import train_ours
from perfusion_ops.rivals.parts import Parts
from perfusion_ops.rivals.personalised import Tuned
from perfusion_ops.rivals.textual_inversion import TextualInversion, train_textual_inversion
from perfusion_ops.rivals.together import Together, joined, merged
from perfusion_ops.training.examples import make_example
from perfusion_ops.training.state import Example

PHOTOS = 4
_Join = Callable[[Sequence[Tuned]], Together]
_Train = Callable[[Parts, Example, Budget, str], Tuned]
_ROWS = 8  # rendered at once


@dataclass(frozen=True)
class Way:
    """One way of drawing several products.

    Attributes:
        training: settings that differ from `TRAINING`; None draws the superclasses alone.
        sampling: the same for renders.
    """

    training: dict[str, Any] | None
    sampling: dict[str, Any]


_EDIT = {"recipe": "offset", "lr_value": 0.005, "lr_conv": 0.003}
_EDIT_ALONE = {**_EDIT, "lr_value": 0.02, "conv_rank": 2}
_EDIT_AND_PHOTOS = {**_EDIT, "conv_rank": 1, "references": 2}
WAYS: dict[str, Way] = {
    "word": Way(None, {}),
    "ours-paper": Way({}, {"combine": "paper"}),
    "ours-paper-regional": Way({}, {"combine": "regional", "bias": 0.2}),
    "ours-offset": Way({"recipe": "offset", "lr_value": 0.02}, {"combine": "paper"}),
    "ours-offset-regional": Way({"recipe": "offset", "lr_value": 0.02}, {"combine": "regional"}),
    "ours-references": Way({"recipe": "offset", "lr_value": 0.02, "references": 4}, {"combine": "paper"}),
    "ours-references-regional": Way({"recipe": "offset", "lr_value": 0.02, "references": 4}, {"combine": "regional"}),
    "ours-convolutions": Way(_EDIT_ALONE, {"combine": "paper", "strength": 0.7}),
    "ours-convolutions-regional": Way(_EDIT_ALONE, {"combine": "regional", "strength": 0.7}),
    "ours-both": Way(_EDIT_AND_PHOTOS, {"combine": "paper", "strength": 0.7}),
    "ours-both-regional": Way(_EDIT_AND_PHOTOS, {"combine": "regional", "strength": 0.7}),
}


@dataclass(frozen=True, eq=False)
class Drawing:
    """Draws groups of products in one way; concepts are trained once and kept in files.

    Attributes:
        studio: the base model.
        way: how.
        guidance: classifier-free guidance scale.
        steps: denoising steps.
        training_steps: of each concept.
        folder: of concept files.
    """

    studio: Studio
    way: Way
    guidance: float
    steps: int
    training_steps: int
    folder: Path

    def __call__(self, group: Group, seeds: Sequence[int]) -> Pictures:
        """Pictures (B, H, W, 3) of a group.

        Raises:
            RuntimeError: a picture has values that are not finite.
        """
        base = self.studio.base
        # A way says itself how strongly it acts: recorded figures stay those of a way, whatever the base's default is.
        sampling = SamplingConfig.model_validate(
            {**base.folder.settings.sampling, "strength": 1.0, **self.way.sampling}
        )
        if self.way.training is None:
            row = PromptRow(group.words)
        else:
            concepts = [self._concept(item) for item in group.items]
            how = {name: getattr(sampling, name) for name in ("bias", "temperature", "lock", "combine", "strength")}
            row = prompt_row(group.prompt, concepts, **how)
        rows = [RenderRow(row, PromptRow(sampling.negative_prompt), seed) for seed in seeds]
        sampler = Sampler(base.resolution, base.resolution, self.steps, self.guidance, sampling.scheduler)
        drawn = []
        for start in range(0, len(rows), _ROWS):
            drawn += render(base, self.studio.metric, rows[start : start + _ROWS], sampler)
        if any(picture is None for picture in drawn):
            raise RuntimeError("a picture has values that are not finite")
        return np.stack(drawn)

    def _concept(self, item: Product) -> Concept:
        base, metric = self.studio.base, self.studio.metric
        assert self.way.training is not None
        training = TrainingConfig.model_validate(TRAINING).overridden(
            {**self.way.training, "steps": self.training_steps}
        )
        told = f"{base.folder.digest} {metric.digest} {training.model_dump_json()} {PHOTOS}"
        digest = hashlib.sha256(told.encode()).hexdigest()[:12]
        file = self.folder / f"{item.look.category}-{item.instance}-{digest}.safetensors"
        if not file.exists():
            example = make_example(base, superclass(item.look.category), photos(item, PHOTOS), training)
            trained = train_ours(base, metric, example, training, SamplingConfig())
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(write_concept(trained.concept))
        return read_concept(
            file.read_bytes(),
            base_digest=base.folder.digest,
            metric_digest=metric.digest,
            embedding_width=base.embedding_width,
            text_width=base.text_width,
            value_width=base.stack.key_rows,
        )


def real(group: Group, seeds: Sequence[int]) -> Pictures:
    """Real renders of two products."""
    return np.stack([render_scene(real_scene(group, seed)).pixels for seed in seeds])


@dataclass(frozen=True, eq=False)
class Rivals:
    """Draws groups of products with a rival; each product is learned once and kept in memory.

    Attributes:
        studio: the base model.
        together: joins or merges what was learned.
        train: learns one product, given the rare word that stands for it.
        guidance: classifier-free guidance scale.
        steps: denoising steps.
        budget: of each training.
    """

    studio: Studio
    together: _Join
    train: _Train
    guidance: float
    steps: int
    budget: Budget
    _learned: dict[Product, Tuned] = field(default_factory=dict)

    def __call__(self, group: Group, seeds: Sequence[int]) -> Pictures:
        """Pictures (B, H, W, 3) of a group.

        Raises:
            TrainingDivergedError: a loss is not finite.
            RuntimeError: a picture has values that are not finite.
        """
        every = self.together([self._tuned(item) for item in group.items])
        return every.draw(group.prompt, seeds, guidance=self.guidance, steps=self.steps)

    def _tuned(self, item: Product) -> Tuned:
        if item not in self._learned:
            noun = superclass(item.look.category)
            example = make_example(self.studio.base, noun, photos(item, PHOTOS), TrainingConfig())
            # Letters are tokens of their own that no caption uses; a set has fewer products than there are letters.
            word = ascii_lowercase[1 + item.instance % 1000]
            self._learned[item] = self.train(self.studio.parts, example, self.budget, word)
        return self._learned[item]


def _tokens(**settings: Any) -> _Train:
    def train(parts: Parts, example: Example, budget: Budget, word: str) -> Tuned:  # noqa: ARG001 - learns its own
        return train_textual_inversion(parts, example, budget, TextualInversion(**settings))

    return train


def _loras(**settings: Any) -> _Train:
    def train(parts: Parts, example: Example, budget: Budget, word: str) -> Tuned:
        return train_lora(parts, example, budget, Lora(rank=4, identifier=word, **settings))

    return train


def _loras_with_tokens(parts: Parts, example: Example, budget: Budget, word: str) -> Tuned:
    return train_pivotal_tuning(parts, example, budget, PivotalTuning(rank=4, identifier=word))


# `fast`: at the rate that the tuning of single products chose. `half`: merged at half scale. `noun`: the token stands
# before its superclass.
RIVALS: dict[str, tuple[_Join, _Train]] = {
    "tokens": (joined, _tokens()),
    "tokens-fast": (joined, _tokens(lr=1.2e-2)),
    "tokens-noun": (joined, _tokens(lr=1.2e-2, noun=True)),
    "loras": (merged, _loras()),
    "loras-fast": (merged, _loras(lr=1e-3)),
    "loras-fast-half": (partial(merged, scale=0.5), _loras(lr=1e-3)),
    "loras-tokens": (merged, _loras_with_tokens),
}
