"""Identity and limits of a motion adapter (AnimateDiff, arXiv 2307.04725), read from its files; no tensor is loaded.

An adapter is a folder that diffusers' `MotionAdapter` has saved. An optional `scheduler/scheduler_config.json` in it
has the values of the noise schedule that it was trained on, where they differ from the base model's; it belongs to the
adapter's identity like its weights.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfusion_ops.base.folder import BaseError, BaseFolder

CONFIG = "config.json"
SCHEDULE = "scheduler/scheduler_config.json"
# The files that diffusers loads: one, or numbered parts and their index; no other precision.
_WEIGHTS = re.compile(
    r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors|diffusion_pytorch_model\.safetensors\.index\.json"
)
_MOST_FRAMES, _BLOCKS = 32, (320, 640, 1280, 1280)  # defaults of diffusers


@dataclass(frozen=True)
class MotionFolder:
    """A motion adapter on local disk.

    Attributes:
        path: the folder.
        digest: hex sha256 over its configuration, its weights and its schedule.
        most_frames: the longest video that it has positions for.
        blocks: channels of the denoiser's blocks that it fits between.
        schedule: values of the noise schedule that replace those of the base model.
    """

    path: Path
    digest: str
    most_frames: int
    blocks: tuple[int, ...]
    schedule: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


def is_weights(name: str) -> bool:
    """Whether a file at the top of an adapter's folder holds weights that are loaded."""
    return _WEIGHTS.fullmatch(name) is not None


def describe_motion(path: Path) -> MotionFolder:
    """Read a motion adapter's identity and limits.

    Raises:
        BaseError: it is no motion adapter, its weights are not safetensors, or it needs pictures beside the prompt.
    """
    if not (path / CONFIG).is_file():
        raise BaseError(f"{path} is no motion adapter: it has no {CONFIG}; give a folder saved by MotionAdapter")
    config = _read(path / CONFIG)
    if config.get("_class_name") != "MotionAdapter":
        raise BaseError(
            f"{path} holds a {config.get('_class_name')}, and motion needs a MotionAdapter of diffusers: give the "
            "folder of one"
        )
    if config.get("conv_in_channels") is not None:
        raise BaseError(
            f"the motion adapter {path} takes pictures beside the prompt (conv_in_channels), which this version does "
            "not give it: use a plain one"
        )
    weights = sorted(file for file in path.iterdir() if is_weights(file.name) and file.is_file())
    if not any(file.suffix == ".safetensors" for file in weights):
        raise BaseError(f"{path} has no .safetensors weights; other formats can run code and are not read")
    files = [path / CONFIG, *weights, *([path / SCHEDULE] if (path / SCHEDULE).is_file() else [])]
    blocks = config.get("block_out_channels") or _BLOCKS
    return MotionFolder(
        path,
        _digest(path, files),
        int(config.get("motion_max_seq_length") or _MOST_FRAMES),
        tuple(int(each) for each in blocks),
        motion_schedule(path),
    )


def motion_schedule(path: Path) -> dict[str, Any]:
    """Values of the noise schedule that an adapter's folder has; empty if it has none.

    Raises:
        BaseError: the file is damaged.
    """
    return _read(path / SCHEDULE) if (path / SCHEDULE).is_file() else {}


def check_motion(motion: MotionFolder, base: BaseFolder) -> None:
    """Refuse a motion adapter that does not fit between the layers of a base model.

    Raises:
        BaseError: the family draws no videos, the base model is for inpainting, or its denoiser has other blocks.
    """
    if "video" not in base.family.pipelines:
        raise BaseError(
            f"the motion adapter {motion.path} works with SD 1.x, and {base.name} is of the family "
            f"{base.family.title}: use a base model of SD 1.x, or leave motion out"
        )
    if base.inpaints:
        raise BaseError(
            f"the motion adapter {motion.path} does not work with {base.path}, which is a model for inpainting: use a "
            "plain base model of SD 1.x"
        )
    blocks = tuple(_read(base.path / base.family.denoiser / CONFIG).get("block_out_channels", ()))
    if motion.blocks != blocks:
        raise BaseError(
            f"the motion adapter {motion.path} does not fit the base model {base.path}: its blocks have "
            f"{_listed(motion.blocks)} channels, and those of the denoiser {_listed(blocks)}; use an adapter that was "
            "trained for this family"
        )


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "no"


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BaseError(f"{file} is damaged ({error}): copy it again") from error


def _digest(path: Path, files: list[Path]) -> str:
    lines: list[str] = []
    for file in files:
        with file.open("rb") as stream:
            lines.append(f"{file.relative_to(path).as_posix()}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
