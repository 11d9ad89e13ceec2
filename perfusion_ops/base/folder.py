"""Identity and defaults of a base model folder, read from its files without loading a tensor.

A base is an ordinary diffusers folder. An optional `perfusion.json` beside `model_index.json` holds defaults that suit
the model; it belongs to the model's identity like its weights.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from perfusion_ops.base.schedules import PREDICTIONS
from perfusion_ops.config import Frozen, SamplingConfig, TrainingConfig
from perfusion_ops.errors import UsageError

PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
_DIGESTED_SUFFIXES = {".json", ".safetensors", ".txt"}

# The neutral prompts of the reference implementations; {} is the concept.
TEMPLATES = (
    "a photo of a {}",
    "a good photo of a {}",
    "the photo of a {}",
    "a good photo of the {}",
    "image of a {}",
    "image of the {}",
    "a photograph of {}",
    "a {} shown in a photo",
    "a photo of {}",
)


class BaseError(UsageError, ValueError):
    """The folder is not a base model that this program can use."""


def _part_of(model: type[BaseModel], value: dict[str, Any]) -> dict[str, Any]:
    model.model_validate(value)
    return value


def _one_place(template: str) -> str:
    if template.count("{}") != 1 or template.replace("{}", "").strip("{}") != template.replace("{}", ""):
        raise ValueError("a template holds {} once and no other brace")
    return template


class BaseSettings(Frozen):
    """Contents of `perfusion.json`; every key is optional."""

    name: str = ""
    resolution: int | None = Field(
        default=None, ge=8, le=4096, multiple_of=8, description="side of a training picture in pixels"
    )
    captions: Literal["general", "mini"] = Field(
        default="general", description="which built-in captions estimate the metric"
    )
    templates: tuple[Annotated[str, AfterValidator(_one_place)], ...] = Field(
        default=TEMPLATES, min_length=1, description="training prompts, {} is the concept"
    )
    mask_layers: tuple[str, ...] = Field(
        default=(),
        description="cross-attentions whose maps say where a concept is, found by `python -m perfusion_ops.compare`; "
        "default: those of the up blocks at half the latent's side",
    )
    training: Annotated[dict[str, Any], AfterValidator(partial(_part_of, TrainingConfig))] = Field(
        default_factory=dict, description="defaults that differ from TrainingConfig's"
    )
    sampling: Annotated[dict[str, Any], AfterValidator(partial(_part_of, SamplingConfig))] = Field(
        default_factory=dict, description="defaults that differ from SamplingConfig's"
    )


@dataclass(frozen=True)
class BaseFolder:
    """A base model on local disk.

    Attributes:
        path: the folder.
        name: from perfusion.json, or the folder's name.
        digest: hex sha256 over everything that decides what the model computes.
        settings: its perfusion.json.
        schedule: its scheduler_config.json.
    """

    path: Path
    name: str
    digest: str
    settings: BaseSettings
    schedule: dict[str, Any] = field(default_factory=dict)


def describe(path: Path) -> BaseFolder:
    """Read a folder's identity and settings.

    Raises:
        BaseError: not a diffusers folder of this family, weights that are not safetensors, or a bad `perfusion.json`.
    """
    index = path / "model_index.json"
    if not index.is_file():
        raise BaseError(f"{path} is not a base model: it has no model_index.json; give a folder saved by diffusers")
    try:
        kind = dict(json.loads(index.read_text())).get("_class_name")
    except (ValueError, TypeError) as error:
        raise BaseError(f"{index} is damaged ({error}): copy the model again") from error
    if kind != "StableDiffusionPipeline":
        raise BaseError(f"{path} holds a {kind}; this version works with StableDiffusionPipeline (SD 1.x and 2.x)")
    for part in ("text_encoder", "unet", "vae"):
        if not list((path / part).glob("*.safetensors")):
            raise BaseError(f"{path / part} has no .safetensors weights; other formats can run code and are not read")
    if not any((path / "tokenizer" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise BaseError(f"{path} has no tokenizer: copy the folder 'tokenizer' as well")
    schedule = _schedule(path / "scheduler" / "scheduler_config.json")
    settings = _settings(path / "perfusion.json")
    return BaseFolder(path, settings.name or path.name, _digest(path), settings, schedule)


def _schedule(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise BaseError(
            f"{file} is missing, and without it nothing can be trained: copy the folder 'scheduler' as well"
        )
    try:
        schedule = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise BaseError(f"{file} is damaged ({error}): copy the model again") from error
    if schedule.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise BaseError(
            f"{file} has prediction_type {schedule['prediction_type']!r}: training knows {', '.join(PREDICTIONS)}"
        )
    return schedule


def _settings(file: Path) -> BaseSettings:
    if not file.is_file():
        return BaseSettings()
    try:
        return BaseSettings.model_validate_json(file.read_text())
    except ValidationError as error:
        raise BaseError(f"{file} is not usable: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from error


def _digest(path: Path) -> str:
    files = [path / "perfusion.json"] if (path / "perfusion.json").is_file() else []
    for part in PARTS:
        files += [file for file in (path / part).rglob("*") if file.suffix in _DIGESTED_SUFFIXES and file.is_file()]
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.relative_to(path).as_posix()):
        with file.open("rb") as stream:
            single = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{file.relative_to(path).as_posix()}\0{single}\n".encode())
    return whole.hexdigest()
