"""The methods side by side: how each is trained here, and the settings that its tuning tries.

Every method has the same number of settings. Each varies the rates that its field calls decisive, and tries the cosine
decay with evenly drawn rows; the first setting is what the literature or an earlier look at this base suggests, and is
what a measurement without tuning uses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from perfusion_ops.base_model import Base
from perfusion_ops.config import Frozen, SamplingConfig, TrainingConfig
from perfusion_ops.metric import Metric
from perfusion_ops.rivals import custom_diffusion, dreambooth, lora, textual_inversion
from perfusion_ops.rivals.custom_diffusion import CustomDiffusion
from perfusion_ops.rivals.dreambooth import DreamBooth
from perfusion_ops.rivals.lora import Lora, PivotalTuning
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.rivals.ours import train_ours
from perfusion_ops.rivals.parts import Parts
from perfusion_ops.rivals.personalised import Personalised, unchanged
from perfusion_ops.rivals.textual_inversion import TextualInversion
from perfusion_ops.training.state import Example

# A word that the embedded base's tokenizer knows and its captions never use.
_RARE = "style"
_EVEN: dict[str, Any] = {"decay": "cosine", "even": True}
# The prior's pictures, as this base draws well.
_PRIOR: dict[str, Any] = {"prior_steps": 20, "prior_guidance": 7.0}


@dataclass(frozen=True, eq=False)
class Studio:
    """The base model in both forms.

    Attributes:
        parts: unmodified, for the rivals.
        base: with stacked projections, for our own method.
        metric: of the base.
    """

    parts: Parts
    base: Base
    metric: Metric


class OursSettings(Frozen):
    """Settings of our own method; steps and batch come from the budget."""

    training: TrainingConfig
    sampling: SamplingConfig


class NoSettings(Frozen):
    """Of what is not trained."""


@dataclass(frozen=True)
class Contestant:
    """One method.

    Attributes:
        name: in the table.
        settings: what the tuning tries, the first without tuning.
        train: from the photos of one product to a `Personalised`.
        numbers: how many numbers it learns of a denoiser, given also the width of word embeddings.
        trained: whether it learns anything.
    """

    name: str
    settings: tuple[Frozen, ...]
    train: Callable[[Studio, Example, Budget, Any], Personalised]
    numbers: Callable[[Any, int, Any], int]
    trained: bool = True


def _on_parts(train: Callable[[Parts, Example, Budget, Any], Personalised]) -> Callable[..., Personalised]:
    def run(studio: Studio, example: Example, budget: Budget, settings: Any) -> Personalised:
        return train(studio.parts, example, budget, settings)

    return run


def _ours(studio: Studio, example: Example, budget: Budget, settings: OursSettings) -> Personalised:
    training = settings.training.model_copy(update={"steps": budget.steps, "batch": budget.batch, "seed": budget.seed})
    return train_ours(studio.base, studio.metric, example, training, settings.sampling)


def _word(studio: Studio, example: Example, budget: Budget, settings: NoSettings) -> Personalised:  # noqa: ARG001
    return unchanged(studio.parts, example.superclass)


def _ours_numbers(unet: Any, width: int, settings: OursSettings) -> int:
    weights = custom_diffusion.keys_and_values(unet)
    values = sum(len(weight) for weight in weights) // 2
    return width + values * (2 if settings.training.lock == "trained" else 1)


def _none(unet: Any, width: int, settings: NoSettings) -> int:  # noqa: ARG001
    return 0


def _ours_each(training: dict[str, Any], sampling: dict[str, Any], *changes: dict[str, Any]) -> tuple[Frozen, ...]:
    """Settings of our method: the base's own defaults, each time with some of the training's changed."""
    drawn = SamplingConfig.model_validate(sampling)
    return tuple(
        OursSettings(training=TrainingConfig.model_validate(training).overridden(change), sampling=drawn)
        for change in changes
    )


def contestants(training: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Contestant]:
    """All methods by name.

    Args:
        training: the base folder's defaults of our own method.
        sampling: the same.
    """
    loras = ({}, {"lr": 1e-3}, {"lr": 2e-4}, _EVEN, {**_EVEN, "lr": 1e-3}, {**_EVEN, "lr": 2e-3})
    found = [
        Contestant("word", (NoSettings(),), _word, _none, trained=False),
        Contestant(
            "ours-paper",
            _ours_each(
                training,
                sampling,
                {},
                {"lr_embedding": 0.002},
                {"lr_embedding": 0.001},
                {"lr_value": 0.05},
                {"lr_value": 0.05, "lr_embedding": 0.001},
                {"lr_value": 0.01, "lr_embedding": 0.003},
            ),
            _ours,
            _ours_numbers,
        ),
        Contestant(
            "ours-offset",
            _ours_each(
                training,
                sampling,
                {"recipe": "offset"},
                {"recipe": "offset", "lr_value": 0.006},
                {"recipe": "offset", "lr_value": 0.02},
                {"recipe": "offset", "lr_embedding": 0.003},
                {"recipe": "offset", "lr_embedding": 0.012},
                {"recipe": "offset", "lr_value": 0.006, "lr_embedding": 0.01},
            ),
            _ours,
            _ours_numbers,
        ),
        Contestant(
            "textual-inversion",
            _each(
                TextualInversion,
                {},
                {"lr": 3e-3},
                {"lr": 1.2e-2},
                {"noun": True},
                {**_EVEN, "lr": 1.2e-2},
                {**_EVEN, "lr": 1.2e-2, "noun": True},
            ),
            _on_parts(textual_inversion.train_textual_inversion),
            textual_inversion.numbers_of,
        ),
        Contestant(
            "custom-diffusion",
            _each(
                CustomDiffusion,
                {},
                {"lr": 2e-4},
                {"lr": 3e-5},
                {"prior_rows": 1},
                {**_EVEN, "lr": 1.5e-4},
                {**_EVEN, "lr": 1.5e-4, "lr_token": 6e-3},
                start=_RARE,
                **_PRIOR,
            ),
            _on_parts(custom_diffusion.train_custom_diffusion),
            custom_diffusion.numbers_of,
        ),
        *(
            Contestant(
                f"lora-r{rank}",
                _each(Lora, *loras, rank=rank, identifier=_RARE),
                _on_parts(lora.train_lora),
                lora.numbers_of,
            )
            for rank in (4, 16)
        ),
        Contestant(
            "lora-token",
            _each(
                PivotalTuning,
                {},
                {"lr_token": 6e-3},
                {"lr": 1e-3},
                {"token_share": 1.0},
                _EVEN,
                {**_EVEN, "lr": 1e-3, "lr_token": 6e-3},
                identifier=_RARE,
            ),
            _on_parts(lora.train_pivotal_tuning),
            lora.numbers_of,
        ),
        Contestant(
            "dreambooth",
            _each(
                DreamBooth,
                {},
                {"lr": 7e-5},
                {"lr": 3e-4},
                {**_EVEN, "lr": 1.5e-4},
                {**_EVEN, "lr": 3e-4},
                {**_EVEN, "lr": 6e-4},
                identifier=_RARE,
            ),
            _on_parts(dreambooth.train_dreambooth),
            dreambooth.numbers_of,
        ),
        Contestant(
            "dreambooth-prior",
            _each(
                DreamBooth,
                {"prior_rows": 1},
                {"prior_rows": 2},
                {"prior_rows": 1, "lr": 3e-4},
                {"prior_rows": 1, "prior_weight": 0.3},
                {**_EVEN, "prior_rows": 1, "lr": 3e-4},
                {**_EVEN, "prior_rows": 1, "lr": 3e-4, "prior_weight": 0.3},
                identifier=_RARE,
                **_PRIOR,
            ),
            _on_parts(dreambooth.train_dreambooth),
            dreambooth.numbers_of,
        ),
    ]
    return {each.name: each for each in found}


def _each(kind: type[Frozen], *changes: dict[str, Any], **always: Any) -> tuple[Frozen, ...]:
    return tuple(kind.model_validate({**always, **change}) for change in changes)
