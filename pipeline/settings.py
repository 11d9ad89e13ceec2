"""The settings of a run as one frozen model: a spec file with the defaults filled in.

It holds no secrets: credentials come from the environment, and an option that looks like a credential is refused.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, WithJsonSchema, field_validator, model_validator

from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.config import Frozen, MetricConfig, SamplingConfig, TrainingConfig
from pipeline.engine.machines import ClusterSettings
from pipeline.engine.policy import Policy
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
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


def _part_of(model: type[BaseModel], value: dict[str, Any]) -> dict[str, Any]:
    """Check some of a model's settings; a base model or the method supplies the absent ones."""
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


# Old names, which the spec.json of older runs has: the setting of `engine`, and where it is now.
_OLD_ENGINE_NAMES = {"deadline_s": ("engine", "stop_after_s"), "slots": ("cluster", "slots")}


class EngineSettings(Frozen):
    """How the work is divided. No field is part of a key: none of them changes a result."""

    group_size: int = Field(default=8, ge=1, le=1024, description="concepts trained together in one batch")
    render_batch: int = Field(default=8, ge=1, le=1024, description="renders made together in one batch")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda)$",
        description="auto: the slot's GPU if it has one, else the CPU",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="number type of the denoiser; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    micro_batch: int = Field(
        default=128,
        ge=1,
        le=65536,
        description="training samples in the denoiser at once; a worker halves it when it runs out of memory",
    )
    recompute: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="compute the denoiser's activations twice while training (gradient checkpointing), which takes a "
        "fifth of the memory; auto: once fewer than 4 samples fit",
    )
    compile: bool = Field(
        default=False,
        description="compile the denoiser for rendering with torch.compile, which takes minutes for the first batch of "
        "each size; rows whose concepts act in regions are drawn without",
    )
    checkpoint_s: float = Field(default=60.0, gt=0, description="seconds between training checkpoints")
    store_threads: int = Field(
        default=4, ge=1, le=64, description="renders that a worker encodes and writes at once, beside the next batch"
    )
    png_level: int = Field(
        default=1,
        ge=0,
        le=9,
        description="of zlib; 1 looks for runs only, which suits pictures; 6 takes four times as long for 5 to 10 % "
        "fewer bytes",
    )
    flush_s: float = Field(default=20.0, gt=0, description="finished rows are staged after at most this many seconds")
    stop_after_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds after which the run stops with exit code 4; run the same command again to resume",
    )
    budget_h: float | None = Field(
        default=None,
        gt=0,
        description="accelerator-hours after which the run stops with exit code 4; each resume has the whole budget",
    )
    plan_memory: str = Field(
        default="750MB",
        pattern=r"^\d+(\.\d+)?(MB|GB)$",
        description="memory limit of DuckDB for planning and publishing; the process takes up to 1.2 GB more",
    )
    threads: int = Field(default=8, ge=1, le=256, description="photos inspected at once")


class LineageSettings(Frozen):
    """Who is told about a run, as OpenLineage events. No field is part of a key.

    Without `url` and `file`, the receiver is that of OPENLINEAGE_URL or of the client's `openlineage.yml`.
    """

    namespace: str = Field(default="perfusion", min_length=1, description="namespace of the job")
    job: str | None = Field(
        default=None, min_length=1, description="name of the job; when absent the root without its scheme"
    )
    url: str | None = Field(
        default=None,
        description="server that receives the events, such as http://marquez:5000; OPENLINEAGE_API_KEY has its key",
    )
    file: str | None = Field(
        default=None, min_length=1, description="local file that the events are appended to, one JSON object per line"
    )

    @field_validator("url")
    @classmethod
    def _usable_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        _refuse_credentials(value if "://" in value else f"http://{value}")
        if not re.match(r"https?://[^/]", value):
            raise ValueError("it is not the address of a server: give http://HOST:PORT or https://HOST")
        return value

    @field_validator("file")
    @classmethod
    def _usable_file(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and not value.startswith("file://"):
            raise ValueError("events are appended to a local file only: give a path, or a url instead")
        return None if value is None else _refuse_mistyped(value)

    @model_validator(mode="after")
    def _one_receiver(self) -> Self:
        if self.url is not None and self.file is not None:
            raise ValueError("url and file exclude each other: give one of them")
        return self


class RunSettings(Frozen):
    """One run: two manifests, a base model, and the root under which everything is written."""

    root: str = Field(min_length=1, description="folder or URL for weights, images and tables")
    concepts: str = Field(min_length=1, description="concepts manifest: Parquet, CSV or JSONL; file, folder or glob")
    prompts: str = Field(min_length=1, description="prompts manifest, in the same formats")
    base: str = Field(
        default="mini", min_length=1, description="'mini', a diffusers folder, an object-store URL or a hub id"
    )
    render_base: str | None = Field(
        default=None,
        min_length=1,
        description="a sibling of base that renders: a model with the same text encoders, such as a Turbo or an "
        "LCM-merged one; concepts are trained with base",
    )
    motion: str | None = Field(
        default=None,
        min_length=1,
        description="motion adapter (AnimateDiff) that draws videos with render.task video: a diffusers folder, an "
        "object-store URL or a hub id",
    )
    controls: dict[Annotated[str, Field(pattern=_NAME, max_length=128)], Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict,
        description="ControlNets by the names that rows of prompts have in their column control: for each a diffusers "
        "folder, an object-store URL or a hub id",
        json_schema_extra={"additionalProperties": False},
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="base seed of the rows that give no seed")
    metric: MetricConfig = MetricConfig()
    train: _Training = Field(default_factory=dict, description="overrides of the base model's training settings")
    render: _Sampling = Field(default_factory=dict, description="overrides of the base model's sampling settings")
    points: str | None = Field(
        default=None,
        min_length=1,
        description="file of sampling settings of single concepts, as `perfusion sweep` writes it",
    )
    inputs: InputLimits = InputLimits()
    engine: EngineSettings = EngineSettings()
    cluster: ClusterSettings = ClusterSettings()
    policy: Policy = Policy()
    lineage: LineageSettings | None = Field(
        default=None, description="OpenLineage events of the run; off when absent, an empty table turns them on"
    )
    storage_options: dict[str, Any] = Field(default_factory=dict, description="fsspec options, flat or by scheme")

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, values: Any) -> Any:
        """Read old names; where both names have a value, the new name wins."""
        engine = values.get("engine") if isinstance(values, Mapping) else None
        if not isinstance(engine, Mapping):
            return values
        values = {**values, "engine": dict(engine)}
        for old, (section, new) in _OLD_ENGINE_NAMES.items():
            value = values["engine"].pop(old, None)
            if value is not None and isinstance(values.get(section, {}), Mapping):
                given = dict(values.get(section, {}))
                given.setdefault(new, value)
                values[section] = given if given[new] is not None else {**given, new: value}
        return values

    @field_validator("root", "concepts", "prompts", "base", "render_base", "motion", "points")
    @classmethod
    def _usable_locations(cls, value: str | None) -> str | None:
        return None if value is None else _refuse_mistyped(_refuse_credentials(value))

    @field_validator("controls")
    @classmethod
    def _usable_controls(cls, value: dict[str, str]) -> dict[str, str]:
        for location in value.values():
            _refuse_mistyped(_refuse_credentials(location))
        return value

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
        """Complete training settings: this run's, else the base model's, else the method's defaults."""
        return TrainingConfig.model_validate(base.settings.training).overridden(self.train)

    def sampling(self, base: BaseFolder) -> SamplingConfig:
        """Complete sampling settings, in the same order of precedence as `training`.

        Args:
            base: the base model that renders.

        Raises:
            BaseError: the run's settings and those of the base model contradict each other.
        """
        try:
            return SamplingConfig.model_validate({**base.settings.sampling, **self.render})
        except ValidationError as error:
            # Each of the two is valid by itself, so the error is of a rule for several settings.
            why = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
            raise BaseError(
                f"render of the spec does not fit sampling in perfusion.json of {base.path}: {why}"
            ) from error


def old_names(values: Mapping[str, Any]) -> list[str]:
    """A notice for each setting of an unchecked spec that has an old name."""
    engine = values.get("engine")
    used = [old for old in _OLD_ENGINE_NAMES if isinstance(engine, Mapping) and old in engine]
    return [
        f"engine.{old} is now called {'.'.join(_OLD_ENGINE_NAMES[old])}: rename it, the next version refuses the old "
        "name"
        for old in used
    ]


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
    """Each (name, value) at any depth; the elements of a list have the list's name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _leaves(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield name, inner
            yield from _leaves(inner, name)
