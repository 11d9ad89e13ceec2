"""A method in a comparison: how it is trained, and the settings that its tuning tries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from perfusion_ops.attention.convolutions import edited_layers, widths
from perfusion_ops.base_model import Base
from perfusion_ops.config import Frozen, SamplingConfig, TrainingConfig
from perfusion_ops.metric import Metric
from perfusion_ops.rivals.custom_diffusion import keys_and_values
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.rivals.ours import train_ours
from perfusion_ops.rivals.parts import Parts
from perfusion_ops.rivals.personalised import Personalised, unchanged
from perfusion_ops.training.state import Example


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


def on_parts(train: Callable[[Parts, Example, Budget, Any], Personalised]) -> Callable[..., Personalised]:
    """The training of a rival, which takes the unmodified base, as one of a `Contestant`."""

    def run(studio: Studio, example: Example, budget: Budget, settings: Any) -> Personalised:
        return train(studio.parts, example, budget, settings)

    return run


def train_own(studio: Studio, example: Example, budget: Budget, settings: OursSettings) -> Personalised:
    """Train our own method."""
    training = settings.training.model_copy(update={"steps": budget.steps, "batch": budget.batch, "seed": budget.seed})
    return train_ours(studio.base, studio.metric, example, training, settings.sampling)


def train_nothing(studio: Studio, example: Example, budget: Budget, settings: NoSettings) -> Personalised:  # noqa: ARG001
    """The base model as it is, which calls the product by its superclass."""
    return unchanged(studio.parts, example.superclass)


def ours_numbers(unet: Any, width: int, settings: OursSettings) -> int:
    """Numbers that our own method learns of a denoiser, and those of the photos that its concepts keep."""
    weights = keys_and_values(unet)
    values = sum(len(weight) for weight in weights) // 2
    photos = settings.training.references * unet.config.in_channels * unet.config.sample_size**2
    edit = settings.training.conv_rank * sum(widths(edited_layers(unet)))
    return width + values * (2 if settings.training.lock == "trained" else 1) + photos + edit


def no_numbers(unet: Any, width: int, settings: NoSettings) -> int:  # noqa: ARG001
    """None."""
    return 0


def ours_each(training: dict[str, Any], sampling: dict[str, Any], *changes: dict[str, Any]) -> tuple[Frozen, ...]:
    """Settings of our method: the base's own defaults, each time with some of the training's changed."""
    drawn = SamplingConfig.model_validate(sampling)
    return tuple(
        OursSettings(training=TrainingConfig.model_validate(training).overridden(change), sampling=drawn)
        for change in changes
    )


def settings_of(kind: type[Frozen], *changes: dict[str, Any], **always: Any) -> tuple[Frozen, ...]:
    """Settings of one kind: `always`, each time with some changes."""
    return tuple(kind.model_validate({**always, **change}) for change in changes)
