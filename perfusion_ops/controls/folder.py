"""Identity of a ControlNet's folder, and whether it fits a base model; no tensor is loaded.

A ControlNet is an ordinary diffusers folder with one model: `config.json` and safetensors. (Zhang et al., Adding
Conditional Control to Text-to-Image Diffusion Models, arXiv 2302.05543.)
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion_ops.base.folder import BaseError, BaseFolder

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
_KIND = "ControlNetModel"
# A base model's denoiser adds what a ControlNet gives after each of its blocks. So these must be equal.
_SHAPES = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}  # with the defaults of diffusers
_ADDED = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
_EXTRAS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type")


class ControlError(BaseError):
    """The folder is no ControlNet that works with the base model."""


@dataclass(frozen=True)
class ControlFolder:
    """A ControlNet on local disk.

    Attributes:
        path: the folder.
        digest: hex sha256 over the files that are loaded.
    """

    path: Path
    digest: str


def describe_control(path: Path, base: BaseFolder) -> ControlFolder:
    """Check a folder against the base model that it is to work with, and read its identity.

    Args:
        path: the folder.
        base: the base model that renders.

    Raises:
        ControlError: it is no ControlNet, has no safetensors, or does not fit the base model.
    """
    if "control" not in base.family.pipelines:
        raise ControlError(f"ControlNets do not work with {base.family.title}: leave controls out")
    if base.inpaints:
        raise ControlError(
            f"ControlNets do not work with {base.path}, which is a model for inpainting: use a plain base model"
        )
    if not (path / CONFIG).is_file():
        raise ControlError(f"{path} is no ControlNet: it has no {CONFIG}; give a folder saved by diffusers")
    config = _read(path / CONFIG)
    if config.get("_class_name") != _KIND:
        raise ControlError(
            f"{path} holds a {config.get('_class_name')}; this version works with {_KIND} of SD 1.x, SD 2.x and SDXL"
        )
    _check_fit(path, config, base)
    return ControlFolder(path, _digest(path))


def _check_fit(path: Path, config: dict[str, Any], base: BaseFolder) -> None:
    """Compare its configuration with that of the base model's denoiser."""
    unet = _read(base.path / base.family.denoiser / CONFIG)
    fit = f"does not fit the base model {base.path}"
    remedy = f"use a ControlNet that was trained for {base.family.title}, and for this text width"
    width, text_width = config.get("cross_attention_dim", 1280), unet.get("cross_attention_dim", 1280)
    if width != text_width:
        raise ControlError(f"{path} {fit}: it reads text encodings of {width} numbers, not of {text_width}; {remedy}")
    channels, latents = config.get("in_channels", 4), unet.get("in_channels", 4)
    if channels != latents:
        raise ControlError(f"{path} {fit}: it has {channels} input channels, not {latents}; {remedy}")
    shown = config.get("conditioning_channels", 3)
    if shown != 3:
        raise ControlError(f"{path} takes pictures of {shown} channels: use a ControlNet that takes RGB pictures")
    for name, usual in (*_SHAPES.items(), *((name, None) for name in _ADDED)):
        own, wanted = config.get(name, usual), unet.get(name, usual)
        if own != wanted:
            raise ControlError(f"{path} {fit}: its {name} is {own!r}, not {wanted!r}; {remedy}")
    halvings, needed = (
        len(each) - 1
        for each in (
            config.get("conditioning_embedding_out_channels", [16, 32, 96, 256]),
            _read(base.path / "vae" / CONFIG).get("block_out_channels", [64]),
        )
    )
    if halvings != needed:
        raise ControlError(
            f"{path} {fit}: it halves its picture {halvings} times, and the VAE {needed} times; {remedy}"
        )
    extras = [name for name in _EXTRAS if config.get(name) is not None]
    if extras:
        raise ControlError(f"{path} has {extras[0]}, which this version does not give it: use a plain ControlNet")


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ControlError(f"{file} cannot be read ({error}): copy the model again") from error


def weight_files(path: Path) -> list[Path]:
    """The files of a folder that are loaded as its weights; files of other precisions are none of them.

    Raises:
        ControlError: it has none, or one of them is missing.
    """
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        raise ControlError(f"{path} has no {WEIGHTS}: save it with safetensors; other formats can run code")
    shards: Any = _read(path / INDEX).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) else []
    lost = [name for name in names if not (path / str(name)).is_file()]
    if lost or not names:
        raise ControlError(f"{path} has no {lost[0] if lost else 'weights'}: copy the model again")
    return [path / INDEX, *(path / str(name) for name in names)]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in (path / CONFIG, *weight_files(path)):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()
