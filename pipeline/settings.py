"""Everything that decides a run, in one frozen model: what a spec file says, with defaults filled in.

Secrets are not among it: credentials come from the environment, and an option that looks like one is refused.
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema, field_validator

from perfusion_ops.base.folder import BaseFolder
from perfusion_ops.config import Frozen, MetricConfig, SamplingConfig, TrainingConfig
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.uris import carries_credentials, redact
from pipeline.storage.objects import mistyped_uri

_SECRET_WORDS = (
    "access_key",
    "account_key",
    "api_key",
    "apikey",
    "authorization",
    "connection_string",
    "credential",
    "passw",
    "private_key",
    "secret",
    "token",
)
_SECRET_NAMES = {"key", "pass", "sas"}


def _part_of(model: type[BaseModel], value: dict[str, Any]) -> dict[str, Any]:
    """Some settings of a model, checked by it; what they leave out is another's to say."""
    model.model_validate(value)
    return value


_Training = Annotated[
    dict[str, Any],
    AfterValidator(partial(_part_of, TrainingConfig)),
    WithJsonSchema(TrainingConfig.model_json_schema()),
]
_Sampling = Annotated[
    dict[str, Any],
    AfterValidator(partial(_part_of, SamplingConfig)),
    WithJsonSchema(SamplingConfig.model_json_schema()),
]


class EngineSettings(Frozen):
    """How the work is cut and where it runs. None of it is part of any key: it never changes a result."""

    group_size: int = Field(default=8, ge=1, le=1024, description="concepts trained together in one batch")
    render_batch: int = Field(default=8, ge=1, le=1024, description="pictures rendered together in one batch")
    slots: int | None = Field(
        default=None, ge=1, description="workers; one per GPU, or one in all without a GPU, when absent"
    )
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    micro_batch: int = Field(
        default=128, ge=1, le=65536, description="training rows in the denoiser at once; halves by itself"
    )
    checkpoint_s: float = Field(default=60.0, gt=0, description="seconds between training checkpoints")
    flush_s: float = Field(default=20.0, gt=0, description="seconds after which finished rows are staged at the latest")
    deadline_s: float | None = Field(
        default=None, gt=0, description="seconds after which a run stops by itself; run again, it goes on"
    )
    budget_h: float | None = Field(
        default=None, gt=0, description="accelerator-hours that one start of a run may spend, likewise"
    )
    plan_memory: str = Field(
        default="750MB",
        pattern=r"^\d+(\.\d+)?(MB|GB)$",
        description="what planning and publishing hold before they spill; up to 1.2 GB more were seen",
    )
    threads: int = Field(default=8, ge=1, le=256, description="input pictures inspected at once")


class RunSettings(Frozen):
    """One run: two manifests, a base model, and a root that everything is written under."""

    root: str = Field(min_length=1, description="folder or URL for weights, images and tables")
    concepts: str = Field(min_length=1, description="concepts manifest: Parquet, CSV or JSONL; file, folder or glob")
    prompts: str = Field(min_length=1, description="prompts manifest, likewise")
    base: str = Field(
        default="mini", min_length=1, description="'mini', a diffusers folder, an object-store URL or a hub id"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="from which rows without a seed derive theirs")
    metric: MetricConfig = MetricConfig()
    train: _Training = Field(default_factory=dict, description="what differs from the base model's training")
    render: _Sampling = Field(default_factory=dict, description="what differs from the base model's sampling")
    inputs: InputLimits = InputLimits()
    engine: EngineSettings = EngineSettings()
    storage_options: dict[str, Any] = Field(default_factory=dict, description="fsspec options, flat or by scheme")

    @field_validator("root", "concepts", "prompts", "base")
    @classmethod
    def _usable_locations(cls, value: str) -> str:
        return _refuse_mistyped(_refuse_credentials(value))

    @field_validator("metric")
    @classmethod
    def _usable_captions(cls, value: MetricConfig) -> MetricConfig:
        _refuse_mistyped(_refuse_credentials(value.captions_uri or ""))
        return value

    @field_validator("inputs")
    @classmethod
    def _prefixes_without_credentials(cls, value: InputLimits) -> InputLimits:
        for prefix in value.allow:
            _refuse_credentials(prefix)
        return value

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, inner in _leaves(value):
            if _secret_name(name) or (isinstance(inner, str) and carries_credentials(inner)):
                raise ValueError(
                    f"{name!r} looks like a credential: leave it out and set it in the environment, "
                    "a spec is stored with every run"
                )
        return value

    def training(self, base: BaseFolder) -> TrainingConfig:
        """Complete training settings: the method's defaults, then the base model's, then this run's."""
        return TrainingConfig.model_validate({**base.settings.training, **self.train})

    def sampling(self, base: BaseFolder) -> SamplingConfig:
        """Complete sampling settings, likewise."""
        return SamplingConfig.model_validate({**base.settings.sampling, **self.render})


def _refuse_credentials(uri: str) -> str:
    if carries_credentials(uri):
        raise ValueError(
            f"{redact(uri)} is given with credentials: leave them out and set them in the environment, "
            "a spec is stored with every run"
        )
    return uri


def _refuse_mistyped(uri: str) -> str:
    if mistyped := mistyped_uri(uri):
        raise ValueError(mistyped)
    return uri


def _secret_name(name: str) -> bool:
    plain = name.lower().replace("-", "_")
    return plain in _SECRET_NAMES or any(word in plain for word in _SECRET_WORDS)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every name at any depth, with what it stands for; elements of a list go by the list's name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _leaves(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield name, inner
            yield from _leaves(inner, name)
