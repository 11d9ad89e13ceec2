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
from perfusion_ops.families.family import INPAINT, TEXT, Family
from perfusion_ops.families.registry import FAMILIES
from perfusion_ops.families.stable_diffusion import STABLE_DIFFUSION

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


class Lora(Frozen):
    """A LoRA that is fused into the base model whenever it is loaded."""

    file: str = Field(pattern=r"^[^/\\]+\.safetensors$", description="its name in the folder `loras` of the base model")
    weight: float = Field(default=1.0, ge=-10, le=10, allow_inf_nan=False)


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
    pooled: Literal["superclass", "concept"] = Field(
        default="superclass",
        description="the prompt of SDXL's pooled vector: the one with the superclass in the concept's place, as "
        "key-locking demands, or the concept's own",
    )
    clip_skip: int = Field(
        default=0,
        ge=0,
        le=100,
        description="last layers of each text encoder that are left out, as in diffusers; 'Clip skip: 2' of other "
        "programs is 1",
    )
    loras: tuple[Lora, ...] = Field(default=(), description="fused in this order")
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
        schedule: its scheduler_config.json, and what its family adds.
        family: what kind of model it is.
        text_digest: hex sha256 over its text encoders and tokenizers, with what its settings change of them.
        index: values of model_index.json that its family asks for.
        drawn_by: which of its family's pipelines draws with its denoiser.
    """

    path: Path
    name: str
    digest: str
    settings: BaseSettings
    schedule: dict[str, Any] = field(default_factory=dict)
    family: Family = STABLE_DIFFUSION
    text_digest: str = ""
    index: dict[str, Any] = field(default_factory=dict)
    drawn_by: str = TEXT

    @property
    def inpaints(self) -> bool:
        """Whether its denoiser is also given a mask, and the photo around it."""
        return self.drawn_by == INPAINT

    @property
    def title(self) -> str:
        """What kind of model it is, for messages."""
        return f"{self.family.title} for inpainting" if self.inpaints else self.family.title

    @property
    def rescales(self) -> bool:
        """Whether its pipeline takes `guidance_rescale`."""
        return self.drawn_by in self.family.rescales

    @property
    def pools_superclasses(self) -> bool:
        """Whether the denoiser is given a pooled vector, of the prompt with superclasses in the concepts' place."""
        return self.settings.pooled == "superclass" and any(text.pooled for text in self.family.texts)

    @property
    def metric_digest(self) -> str:
        """The digest that its metric is bound to."""
        return self.text_digest if self.family.shares_metric else self.digest


def describe(path: Path) -> BaseFolder:
    """Read a folder's identity and settings.

    Raises:
        BaseError: not a diffusers folder of this family, weights that are not safetensors, or a bad `perfusion.json`.
    """
    file = path / "model_index.json"
    if not file.is_file():
        raise BaseError(f"{path} is not a base model: it has no model_index.json; give a folder saved by diffusers")
    index = _read(file)
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None:
        known = ", ".join(f"{name} ({each.title})" for name, each in FAMILIES.items())
        raise BaseError(f"{path} holds a {index.get('_class_name')}; this version works with {known}")
    for part in family.weight_parts:
        if not list((path / part).glob("*.safetensors")):
            raise BaseError(f"{path / part} has no .safetensors weights; other formats can run code and are not read")
    for text in family.texts:
        if not any((path / text.tokenizer / name).is_file() for name in text.files):
            raise BaseError(f"{path} has no tokenizer: copy the folder {text.tokenizer!r} as well")
    schedule = {**family.schedule, **_schedule(path / "scheduler" / "scheduler_config.json")}
    drawn_by = check_denoiser(path, family)
    settings = _settings(path / "perfusion.json")
    chosen = {name: index.get(name) for name in family.index_settings}
    check_text_settings(path, family, settings)
    singles = _digests(path, family, settings)
    whole = singles if not chosen else {**singles, "model_index.json": json.dumps(chosen, sort_keys=True)}
    texts = {name: digest for name, digest in singles.items() if name.split("/")[0] in family.text_parts}
    texts |= _text_changes(path, settings, singles)
    name = settings.name or path.name
    return BaseFolder(path, name, _joined(whole), settings, schedule, family, _joined(texts), chosen, drawn_by)


def embedding_widths(folder: BaseFolder) -> tuple[int, ...]:
    """The width of the word embeddings of each text encoder, from its configuration.

    Raises:
        BaseError: a configuration does not have it.
    """
    widths: list[int] = []
    for text in folder.family.texts:
        file = folder.path / text.encoder / "config.json"
        config = _read(file)
        width = config.get("hidden_size", config.get("d_model"))  # CLIP's, T5's
        if not isinstance(width, int):
            raise BaseError(f"{file} has neither hidden_size nor d_model: copy the folder {text.encoder!r} again")
        widths.append(width)
    return tuple(widths)


def check_text_settings(path: Path, family: Family, settings: BaseSettings) -> None:
    """Refuse `clip_skip` and `loras` that the base model does not have.

    Raises:
        BaseError: there are not that many layers, the family has no such thing, or a LoRA is missing.
    """
    for lora in settings.loras:
        if not family.loras:
            raise BaseError(f"perfusion.json of {path} has loras, which do not work with {family.title}: remove them")
        if not (path / "loras" / lora.file).is_file():
            raise BaseError(
                f"perfusion.json of {path} names {lora.file!r}, which is not in its folder 'loras': copy it"
            )
    for text in family.texts if settings.clip_skip else ():
        if text.masked:
            raise BaseError(f"perfusion.json of {path} has clip_skip, which {family.title} does not have: remove it")
        layers = _read(path / text.encoder / "config.json").get("num_hidden_layers", 0)
        if settings.clip_skip >= layers:
            raise BaseError(
                f"clip_skip in perfusion.json of {path} is {settings.clip_skip}, and {text.encoder} has {layers} "
                "layers: use a smaller number"
            )


def check_denoiser(path: Path, family: Family) -> str:
    """Refuse a denoiser with inputs that training does not give.

    Returns:
        Which of the family's pipelines draws with it.

    Raises:
        BaseError: see above; or its configuration is missing or damaged.
    """
    file = path / family.denoiser / "config.json"
    if not file.is_file():
        raise BaseError(f"{file} is missing: copy the folder {family.denoiser!r} as well")
    config, latents = _read(file), _read(path / "vae" / "config.json").get("latent_channels", 4)
    channels = config.get("in_channels", latents)
    drawn_by = family.drawn_by(channels, latents)
    if drawn_by is None:
        known = " or ".join(str(each) for each, of in family.further if of == latents)
        raise BaseError(
            f"the denoiser of {path} has {channels} input channels and the VAE {latents}: it is a model for editing or "
            f"the like, which this version does not train; use one with {latents} channels"
            + (f", or with {known} for inpainting" if known else "")
        )
    kinds = [config.get(name) for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")]
    if any(kind is not None for kind in kinds):
        raise BaseError(
            f"the denoiser of {path} takes class embeddings or projected image prompts, which this version does not "
            f"give it: use a plain model of {family.title}"
        )
    if config.get("addition_embed_type") not in family.addition:
        raise BaseError(
            f"the denoiser of {path} has addition_embed_type {config.get('addition_embed_type')!r}: "
            f"a model of {family.title} has {' or '.join(map(repr, family.addition))}"
        )
    return drawn_by


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    except (ValueError, TypeError) as error:
        raise BaseError(f"{file} is damaged ({error}): copy the model again") from error


def _schedule(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise BaseError(
            f"{file} is missing, and without it nothing can be trained: copy the folder 'scheduler' as well"
        )
    schedule = _read(file)
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


def _text_changes(path: Path, settings: BaseSettings, digests: dict[str, str]) -> dict[str, str]:
    """What the settings of a base model change of its text encodings, in the form of `_digests`."""
    changes = {"clip_skip": str(settings.clip_skip)} if settings.clip_skip else {}
    for number, lora in enumerate(settings.loras):
        name = f"loras/{lora.file}"
        if _changes_text(path / name):
            changes[f"{number} {name}"] = f"{digests[name]} {lora.weight!r}"
    return changes


def _changes_text(file: Path) -> bool:
    """Whether a LoRA has weights of a text encoder, in the names of kohya or of diffusers.

    Raises:
        BaseError: the file is damaged.
    """
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    except (ValueError, OverflowError, MemoryError) as error:
        raise BaseError(f"{file} is damaged ({error}): copy it again") from error
    return any(name.startswith(("lora_te", "text_encoder")) for name in header)


def _digests(path: Path, family: Family, settings: BaseSettings) -> dict[str, str]:
    """Hex sha256 of each file of a folder that decides what the model computes, by its path in the folder."""
    files = [path / "perfusion.json"] if (path / "perfusion.json").is_file() else []
    files += [path / "loras" / lora.file for lora in settings.loras]
    suffixes = _DIGESTED_SUFFIXES | {Path(name).suffix for text in family.texts for name in text.files}
    for part in family.parts:
        files += [file for file in (path / part).rglob("*") if file.suffix in suffixes and file.is_file()]
    found: dict[str, str] = {}
    for file in files:
        with file.open("rb") as stream:
            found[file.relative_to(path).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _joined(digests: dict[str, str]) -> str:
    lines = (f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
