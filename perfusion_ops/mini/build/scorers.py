"""What the three scorers share: training pictures, augmentation, and the export to a folder.

A scorer is trained on clean renders, but judges pictures that a diffusion model drew and a VAE decoded. So every
training picture is shifted by a few pixels, softened, and changed in noise and light.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, ResNetConfig

from perfusion_ops.base_model import quiet_libraries
from perfusion_ops.mini.build.pictures import photographed, write_photographs, write_scenes
from perfusion_ops.mini.build.recipe import Recipe, Scorer
from perfusion_ops.mini.build.training.machine import Machine
from perfusion_ops.mini.world.products import SCORER_INSTANCES, product
from perfusion_ops.mini.world.scene import SIZE, Scene, photograph
from perfusion_ops.mini.world.vocabulary import CATEGORIES

VIEWS = 4  # photographs of each product

_SHIFT = 3  # pixels, to each side
_SOFTNESS = 0.8  # share of a 3 x 3 mean in the picture
_NOISE = 0.1  # standard deviation, where the picture spans -1..1
_CONTRAST, _BRIGHTNESS = 0.1, 0.08

# Written here because the file that transformers writes depends on whether torchvision is installed.
_PREPARED = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 2,  # bilinear
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def scenes(machine: Machine, recipe: Recipe, folder: Path) -> np.ndarray:
    """The pictures of the scorers' scenes, (N, 64, 64, 3) uint8; rank 0 renders them if they are missing."""
    path = folder / "scorer_pictures.npy"
    if machine.rank == 0:
        write_scenes(path, recipe.scorer_pictures, SCORER_INSTANCES, machine.processes)
    machine.meet()
    return np.load(path, mmap_mode="r")


def photographs(machine: Machine, recipe: Recipe, folder: Path) -> np.ndarray:
    """The scorers' products, VIEWS pictures in a row of each (see `pictures.photographed`), as `scenes`."""
    path = folder / "scorer_photographs.npy"
    if machine.rank == 0:
        write_photographs(path, recipe.scorer_pictures, SCORER_INSTANCES, VIEWS, machine.processes)
    machine.meet()
    return np.load(path, mmap_mode="r")


def photographed_scene(number: int) -> Scene:
    """The scene of picture `number` of `photographs`."""
    instance, view = photographed(number, SCORER_INSTANCES, VIEWS)
    return photograph(product(CATEGORIES[instance % len(CATEGORIES)], instance), view)


def worn(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each of (B, 3, H, W) pictures in -1..1 shifted, softened, noisy and in other light, as `generator` draws."""
    count, _, height, width = pictures.shape

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1, 1).uniform_(low, high, generator=generator)

    padded = functional.pad(pictures, (_SHIFT,) * 4, mode="replicate")
    top, left = torch.randint(2 * _SHIFT + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    each = torch.arange(count)[:, None, None]
    shifted = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    wide = functional.pad(shifted, (1, 1, 1, 1), mode="replicate")
    across = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]
    soft = (across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]) / 9
    softened = shifted + draw(0, _SOFTNESS) * (soft - shifted)
    lit = softened * draw(1 - _CONTRAST, 1 + _CONTRAST) + draw(-_BRIGHTNESS, _BRIGHTNESS)
    noise = torch.randn(pictures.shape, generator=generator) * draw(0, _NOISE)
    return (lit + noise).clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def residual(sizes: Scorer, **options: Any) -> ResNetConfig:
    """A residual network of `sizes.channels`, each with `sizes.depths` blocks, on 16 x 16 positions and fewer."""
    return ResNetConfig(
        embedding_size=sizes.channels[0],
        hidden_sizes=list(sizes.channels),
        depths=list(sizes.depths),
        layer_type="basic",
        **options,
    )


def write(model: PreTrainedModel, into: Path) -> None:
    """Replace `into` by `model` as a transformers folder: fp16 safetensors and the preprocessor's settings."""
    shutil.rmtree(into, ignore_errors=True)
    with quiet_libraries():
        model.half().save_pretrained(into)
    (into / "preprocessor_config.json").write_text(json.dumps(_PREPARED, indent=2) + "\n")
