"""Settings of the method: frozen models whose JSON form is part of every content key.

Defaults follow the published recipe (section 4 and the supplement of arXiv 2305.01644, and the reference
implementations of it); the embedded base overrides what differs at its size in its own `perfusion.json`.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

Bias = Annotated[float, Field(ge=-1.0, le=2.0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0.0, le=10.0, allow_inf_nan=False)]
Lock = Literal["local", "global", "trained"]
Recipe = Literal["paper", "offset"]
Combine = Literal["paper", "regional"]
ImageFormat = Literal["png", "webp", "mp4"]
Task = Literal["picture", "video"]
# What each of them is in diffusers: `perfusion_ops.base.schedules.SCHEDULERS`.
Scheduler = Literal[
    "ddim",
    "dpm++",
    "euler",
    "euler_a",
    "pndm",
    "unipc",
    "dpm++ 2m karras",
    "dpm++ 2m sde",
    "dpm++ 2m sde karras",
    "dpm++ singlestep",
    "dpm++ singlestep karras",
    "dpm2",
    "dpm2 karras",
    "dpm2 a",
    "dpm2 a karras",
    "euler karras",
    "euler trailing",
    "euler a trailing",
    "heun",
    "heun karras",
    "unipc karras",
    "deis",
    "ddpm",
    "lcm",
    "tcd",
]
# Other spellings that programs and people use, without regard to case, extra blanks and underscores for blanks.
_SCHEDULER_ALIASES: Mapping[str, Scheduler] = {
    "dpm++ 2m": "dpm++",
    "euler ancestral": "euler_a",
    "plms": "pndm",
    "kdpm2": "dpm2",
    "kdpm2 karras": "dpm2 karras",
    "kdpm2 a": "dpm2 a",
    "kdpm2 a karras": "dpm2 a karras",
    "dpm2 ancestral": "dpm2 a",
}


def scheduler_name(text: object) -> Scheduler:
    """The name of a scheduler, however it is spelt: `DPM++ 2M`, `dpmpp_2m` and `dpm++` are the same one.

    >>> scheduler_name("Euler  A"), scheduler_name("dpmpp_2m_karras")
    ('euler_a', 'dpm++ 2m karras')

    Raises:
        ValueError: there is no such scheduler.
    """
    names: dict[str, Scheduler] = {_plain(name): name for name in get_args(Scheduler)}
    names |= _SCHEDULER_ALIASES
    shown = repr(text)[:60]
    plain = _plain(text) if isinstance(text, str) and len(text) <= 60 else ""
    if plain in names:
        return names[plain]
    near = difflib.get_close_matches(plain, names, 1, 0.6)
    hint = f"write {names[near[0]]!r} if that is meant, or " if near else ""
    raise ValueError(f"there is no scheduler {shown}: {hint}use one of {', '.join(get_args(Scheduler))}")


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("dpmpp", "dpm++").split())


class Frozen(BaseModel):
    """Immutable settings; an unknown key is an error, and so is a boolean where a number is needed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Fields that content keys leave out while they have their default: they were added when keys existed already.
    not_in_old_keys: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic reads true as 1: `steps: true` would train for one step."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if _has_boolean(value) and _names(annotation, int, float) and not _names(annotation, bool, Any, BaseModel):
            raise ValueError("write a number, not true or false")
        return value


def _has_boolean(value: object) -> bool:
    """Whether a value is a boolean, or a list or mapping that holds one."""
    held = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(map(_has_boolean, held))


def _names(annotation: Any, *kinds: Any) -> bool:
    """Whether one of the types is named by an annotation, also inside of unions and containers."""
    own = any(annotation is kind for kind in kinds)
    section = BaseModel in kinds and isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return own or section or any(_names(inner, *kinds) for inner in get_args(annotation))


class MetricConfig(Frozen):
    """How the metric C is estimated (arXiv 2305.01644, supplement C; token choice is ours, see `docs/method.md`)."""

    captions: int = Field(
        default=100_000, ge=100, le=10_000_000, description="captions drawn from the built-in generator"
    )
    captions_uri: str | None = Field(
        default=None, description="a text file of captions, one a line, instead of the generator"
    )
    tokens: Literal["masked", "content", "all"] = Field(
        default="masked", description="masked: start to first end token; content: neither of them; all: padding too"
    )
    ridge: float = Field(
        default=1e-7, ge=0.0, le=1e-2, description="added to the diagonal, as a share of C's largest eigenvalue"
    )


class TrainingConfig(Frozen):
    """One concept's training (arXiv 2305.01644 section 4.4 and supplement; lr and batch as in the reference code)."""

    steps: int = Field(default=400, ge=1, le=100_000, description="optimiser steps")
    batch: int = Field(default=16, ge=1, le=1024, description="rows per concept and step")
    lr_value: float = Field(default=0.03, gt=0, le=10, description="Adam step of the value target o_V")
    lr_embedding: float = Field(default=0.006, gt=0, le=10, description="Adam step of the word embedding v*")
    bias: Bias = 0.75
    temperature: Temperature = 0.1
    ema: float = Field(default=0.99, ge=0, lt=1, description="decay of the target input i*, once per optimiser step")
    lock: Literal["local", "trained"] = Field(
        default="local", description="trained: also learn the key target (an ablation)"
    )
    flip: bool = Field(default=False, description="mirror half of the rows; only for symmetric products")
    fit: Literal["crop", "pad"] = Field(default="crop", description="how a photo is made square; padding is masked out")
    seed: int = Field(default=0, ge=0, lt=2**63)
    recipe: Recipe = Field(
        default="paper",
        description="paper: the gated edit as published; offset: a word before the superclass and an offset of the "
        "values where the product is (bias, temperature, ema and lock have no effect)",
    )
    decay: Literal["none", "cosine"] = Field(
        default="none", description="of both step sizes over the training; cosine ends at 2 %"
    )
    stratified: bool = Field(
        default=False, description="spread the rows of a step evenly over the timesteps and the photos"
    )

    gate: Literal["sigmoid", "linear"] = Field(
        default="sigmoid",
        description="of recipe paper: sigmoid: as published; linear: the similarity itself, which exports exactly as a "
        "LoRA (bias and temperature have no effect)",
    )
    store: Literal["auto", "target", "difference", "int8"] = Field(
        default="auto",
        description="the values in a concept file: target: o_V itself; difference: o_V - W_V i_super, which also fits "
        "base models with the same text encoders; int8: the difference in eight bits, half the size; auto: target for "
        "SD 1.x and 2.x, difference for others",
    )

    references: int = Field(
        default=0,
        ge=0,
        le=8,
        description="of recipe offset: how many photos of the product the concept keeps; its pictures look at them "
        "while they are drawn, which keeps the product better and takes longer",
    )

    conv_rank: int = Field(
        default=0,
        ge=0,
        le=8,
        description="of recipe offset: rank of an edit of the denoiser's finest convolutions where the product is, "
        "which keeps its surface better; 0: none",
    )
    lr_conv: float = Field(default=0.003, gt=0, le=10, description="Adam step of that edit")

    not_in_old_keys: ClassVar[frozenset[str]] = frozenset(
        {"recipe", "decay", "stratified", "store", "gate", "references", "conv_rank", "lr_conv"}
    )

    def overridden(self, values: Mapping[str, Any]) -> "TrainingConfig":
        """These settings with others in their place.

        Settings belong to their recipe: if `values` ask for another one, its own defaults (`RECIPE_DEFAULTS`) replace
        the present step sizes and schedule, unless `values` say otherwise.

        Raises:
            pydantic.ValidationError: a name is unknown, or a value is out of range.
        """
        recipe = values.get("recipe", self.recipe)
        defaults = RECIPE_DEFAULTS.get(recipe, {}) if recipe != self.recipe else {}
        return TrainingConfig.model_validate({**self.model_dump(), **defaults, **values})


# Measured on the embedded base (docs/method.md); a base model's perfusion.json may say otherwise.
RECIPE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "lr_value": 0.03,
        "lr_embedding": 0.006,
        "decay": "none",
        "stratified": False,
        "references": 0,
        "conv_rank": 0,
    },
    "offset": {"lr_value": 0.01, "lr_embedding": 0.006, "lock": "local", "decay": "cosine", "stratified": True},
}


class SamplingConfig(Frozen):
    """Defaults of a render; each may be overridden by a column of the prompts manifest."""

    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=6.0, ge=0, le=50, allow_inf_nan=False, description="classifier-free guidance scale")
    scheduler: Annotated[Scheduler, BeforeValidator(scheduler_name)] = Field(
        default="ddim", description="the sampler, in any spelling"
    )
    width: int | None = Field(
        default=None, ge=8, le=4096, multiple_of=8, description="pixels; the base model's own size when absent"
    )
    height: int | None = Field(
        default=None, ge=8, le=4096, multiple_of=8, description="pixels; the base model's own size when absent"
    )
    bias: Bias = 0.6
    temperature: Temperature = 0.15
    lock: Lock = "local"
    negative_prompt: str = ""
    edit_unconditional: bool = Field(default=False, description="apply the concepts to the unconditional rows as well")
    strength: float = Field(
        default=1.0,
        ge=0,
        le=5,
        allow_inf_nan=False,
        description="factor of the offsets of recipe offset: less obeys prompts better, more keeps the product better",
    )
    combine: Combine = Field(
        default="paper",
        description="several concepts in one prompt: paper: all act on its encodings (Eq. 4); regional: each acts "
        "where its product is, from a prompt of its own",
    )
    task: Task = Field(
        default="picture", description="what is drawn: one picture a render, or one video, which needs `motion`"
    )
    frames: int = Field(default=16, ge=2, le=256, description="of a video")
    fps: int = Field(default=8, ge=1, le=60, description="frames a second of a video")
    format: ImageFormat = Field(
        default="png",
        description="of the files; webp is lossless and about a fifth smaller, unless webp_quality is set; videos are "
        "webp, as when absent, or mp4",
    )
    webp_quality: int | None = Field(
        default=None, ge=1, le=100, description="of lossy WebP, which changes pixels; lossless when absent"
    )
    guidance_rescale: float = Field(
        default=0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="how far guidance keeps the contrast that the model predicts (arXiv 2305.08891); 0.7 suits base "
        "models with rescale_betas_zero_snr",
    )
    vae_tiling: bool = Field(
        default=False,
        description="decode pictures that are larger than the base model's own size tile by tile, which needs less "
        "memory and changes pixels a little",
    )
    prompt_weights: bool = Field(
        default=False,
        description="read (word)1.3 in prompts as a weight; other parentheses then need a backslash",
    )

    prompt_chunks: int = Field(
        default=1,
        ge=1,
        le=4,
        description="encodings side by side that a prompt may take: 2 reads prompts of up to 150 tokens with CLIP",
    )

    not_in_old_keys: ClassVar[frozenset[str]] = frozenset(
        {
            *("strength", "combine", "format", "webp_quality", "guidance_rescale", "vae_tiling", "prompt_weights"),
            *("task", "frames", "fps", "prompt_chunks"),
        }
    )

    @model_validator(mode="before")
    @classmethod
    def _videos_are_webp(cls, values: Any) -> Any:
        """The default format of videos."""
        if isinstance(values, Mapping) and values.get("task") == "video":
            return {"format": "webp", **values}
        return values

    @model_validator(mode="after")
    def _format_holds_the_task(self) -> "SamplingConfig":
        if self.task == "video" and self.format == "png":
            raise ValueError("format is 'png', which holds no video: set format to 'webp' or 'mp4', or leave it out")
        if self.task == "picture" and self.format == "mp4":
            raise ValueError("format is 'mp4', which is for videos: set task to 'video', or format to 'png' or 'webp'")
        return self

    @model_validator(mode="after")
    def _quality_is_of_webp(self) -> "SamplingConfig":
        if self.webp_quality is not None and self.format != "webp":
            raise ValueError(
                f"webp_quality is {self.webp_quality} and format {self.format!r}: set format to 'webp', or leave "
                "webp_quality out"
            )
        return self
