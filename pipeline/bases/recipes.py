"""Whether training and rendering settings work with a base model's family, before anything is trained."""

import json
from collections.abc import Callable
from functools import lru_cache

from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.config import SamplingConfig, TrainingConfig
from pipeline.contract.errors import Code, RowError


def check_settings(training: TrainingConfig, sampling: SamplingConfig, base: BaseFolder, drawing: BaseFolder) -> None:
    """Refuse settings that the family does not know.

    Some families have no attention that says where a concept is, or pipelines without `guidance_rescale`.

    Args:
        training: of a concept, or the defaults of all.
        sampling: of the run.
        base: the base model that trains.
        drawing: the base model that renders.

    Raises:
        BaseError: a setting does not work with it.
    """
    family = base.family
    for knows, name, value, instead in (
        (family.regional, "train.recipe", training.recipe, "paper"),
        (family.regional, "render.combine", sampling.combine, "paper"),
        (family.weights_words, "render.prompt_weights", sampling.prompt_weights, False),
        (family.weights_words, "render.prompt_chunks", sampling.prompt_chunks, 1),
        (drawing.rescales, "render.guidance_rescale", sampling.guidance_rescale, 0.0),
    ):
        if value != instead and not knows:
            raise BaseError(f"{name} {value!r} does not work with {drawing.title}: set it to {instead!r}")
    if training.references and training.recipe == "offset":
        what = "videos" if sampling.task == "video" else drawing.title if drawing.inpaints else ""
        if what:
            raise BaseError(f"train.references {training.references} does not work with {what}: set it to 0")


def train_check(
    training: TrainingConfig, sampling: SamplingConfig, base: BaseFolder, drawing: BaseFolder
) -> Callable[[str], None]:
    """A check of the `train` cells of a manifest, as JSON, against `check_settings`.

    The returned function raises `RowError`. See `check_settings` for the arguments; `training` are the defaults that a
    cell overrides.
    """

    @lru_cache(1000)
    def flaw(text: str) -> str | None:
        try:
            check_settings(training.overridden(json.loads(text)), sampling, base, drawing)
        except BaseError as error:
            return str(error)
        return None

    def checked(text: str) -> None:
        if found := flaw(text):
            raise RowError(Code.BAD_TRAIN_OVERRIDE, found, column="train")

    return checked
