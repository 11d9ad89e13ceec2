"""Which cross-attentions of a base model know where a product is; their maps become the masks of concepts.

Photos with masks are noised, and the attention to the superclass is read in every layer. Two questions are asked of a
set of layers, each answered by an area under the ROC curve (0.5 by chance, 1 at best):

- *found*: is a pixel of the product looked at more than one of its background?
- *told apart*: with two products side by side, is a pixel of one looked at more for its own noun than for the other's?

Layers are added, the best one first, as long as the mean of both answers rises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from perfusion_ops.attention.maps import grid, watching
from perfusion_ops.attention.masks import density
from perfusion_ops.base_model import Base, encode_pictures
from perfusion_ops.compare.products import Product
from perfusion_ops.config import Frozen
from perfusion_ops.regions import by_default
from perfusion_ops.training.examples import square

_TIMES = (0.85, 0.7, 0.55)  # shares of the schedule, where a picture's layout is decided
_GAIN = 0.005  # that one more layer must bring
_MOST = 4  # layers
_SCENES = 16  # at most, of each kind
_FEWEST = 8  # scenes in all: on fewer, some layers look better by chance
_INSIDE, _OUTSIDE = 0.5, 0.05  # coverage of a pixel that counts as the product's, or as background

Maps = Mapping[str, Tensor]
Choose = Callable[[Maps, tuple[int, int]], Sequence[Tensor]]


class MaskLayers(Frozen):
    """What a calibration found.

    Attributes:
        layers: names of the chosen cross-attentions; empty if those of the default are as good, or on fewer than
            eight pictures.
        area: mean area under both ROC curves, with the chosen layers.
        default: the same with the default.
        alone: the same of each layer.
        scenes: how many pictures were looked at, each at three noise levels.
    """

    layers: tuple[str, ...]
    area: float
    default: float
    alone: dict[str, float]
    scenes: int


@dataclass(frozen=True)
class _Seen:
    """One noised picture: the maps (1, J, h, w) of every layer, and the masks (J, h, w) of its J products."""

    maps: Maps
    masks: Tensor


def calibrate(base: Base, products: Sequence[Product]) -> MaskLayers | None:
    """Find the layers on photos that have masks; None without such photos.

    Args:
        base: the base model.
        products: whose first photo with a mask is looked at, alone and beside that of another superclass.
    """
    shown = [each for each in map(_first, products) if each is not None]
    beside = [pair for pair in pairwise([*shown, *shown[:1]]) if pair[0].superclass != pair[1].superclass]
    pictures = [*((each,) for each in shown[:_SCENES]), *beside[:_SCENES]]
    looked = [scenes for scenes in (_seen(base, each) for each in pictures) if scenes]
    if not looked:
        return None
    names = list(looked[0][0].maps)

    def area(choose: Choose) -> float:
        """The mean of the answers to both questions."""
        answers: dict[int, list[float]] = {}
        for scene in chain.from_iterable(looked):
            answers.setdefault(len(scene.masks), []).append(_answer(scene, choose))
        return float(np.mean([np.mean(each) for each in answers.values()]))

    def of(chosen: Sequence[str]) -> float:
        return area(lambda maps, _: [maps[name] for name in chosen])

    layers, best = greedy(names, of)
    default = area(_default)
    better = best - default >= _GAIN and len(looked) >= _FEWEST
    return MaskLayers(
        layers=tuple(layers) if better else (),
        area=best if better else default,
        default=default,
        alone={name: of([name]) for name in names},
        scenes=len(looked),
    )


def greedy(names: Sequence[str], worth: Callable[[Sequence[str]], float]) -> tuple[list[str], float]:
    """Add the name that raises the worth most, until none raises it by _GAIN.

    Returns:
        The chosen names in the order of `names`, and their worth.
    """
    chosen: list[str] = []
    best = 0.0
    while len(chosen) < min(_MOST, len(names)):
        value, name = max((worth([*chosen, name]), name) for name in names if name not in chosen)
        if value - best < _GAIN:
            break
        chosen, best = [*chosen, name], value
    return [name for name in names if name in chosen], best


def roc_area(inside: NDArray[np.floating], outside: NDArray[np.floating]) -> float:
    """The chance that a value of `inside` exceeds one of `outside`; equal ones count half."""
    order = np.sort(outside)
    below = np.searchsorted(order, inside, side="left") + np.searchsorted(order, inside, side="right")
    return float(below.mean() / (2 * len(order)))


@dataclass(frozen=True)
class _Photo:
    superclass: str
    picture: Image.Image
    mask: Image.Image


def _first(product: Product) -> _Photo | None:
    """The first photo of a product that has a mask."""
    for picture, mask in product.pictures():
        if mask is not None:
            return _Photo(product.superclass, picture, mask)
    return None


def _default(maps: Maps, size: tuple[int, int]) -> Sequence[Tensor]:
    return by_default([each for name, each in maps.items() if "up_blocks" in name.split(".")], size)


def _answer(scene: _Seen, choose: Choose) -> float:
    size = (scene.masks.shape[1], scene.masks.shape[2])
    logs = density(choose(scene.maps, size), size)[0].log()
    values = (logs[0] if len(logs) == 1 else logs[0] - logs[1]).numpy()
    inside = scene.masks[0] >= _INSIDE
    outside = scene.masks[0] <= _OUTSIDE if len(logs) == 1 else scene.masks[1] >= _INSIDE
    return roc_area(values[inside.numpy()], values[outside.numpy()])


@torch.no_grad()
def _seen(base: Base, shown: Sequence[_Photo]) -> list[_Seen]:
    """A picture of one product, or of two side by side, at every noise level; none where a product cannot be seen."""
    side = base.resolution
    picture, masks = _drawn(
        [square(each.picture, side, "pad") for each in shown], [square(each.mask, side, "pad") for each in shown]
    )
    latents = encode_pictures(base, picture[None])
    size = (latents.shape[2], latents.shape[3])
    small = nn.functional.adaptive_avg_pool2d(masks, size)
    background = len(shown) > 1 or bool((small[0] <= _OUTSIDE).any())
    if not background or bool((small.amax((1, 2)) < _INSIDE).any()):
        return []
    nouns = [each.superclass for each in shown]
    prompt = "a photo of a {0}" if len(nouns) == 1 else "a photo of a {0} next to a {1}"
    tokens = base.texts.tokenize(prompt, nouns, range(len(nouns)))
    groups = torch.tensor(
        [[[float(noun == j) for noun in tokens.nouns] for j in range(len(nouns))]], device=base.device
    )
    encoded = base.texts.encode([tokens])
    conditioning = encoded.encodings.to(base.dtype) @ base.stack.weight.mT
    side = float(base.resolution)
    sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=base.device, dtype=base.dtype)
    extra = {name: each.to(base.dtype) if each.is_floating_point() else each for name, each in encoded.extra.items()}
    added = base.folder.family.added(extra, sizes)
    found = []
    for share in _TIMES:
        step = int(share * base.scheduler.config.num_train_timesteps)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step)).to(latents)
        noisy = base.scheduler.add_noise(latents, noise, torch.tensor([step]))
        with watching(base.denoiser, groups) as maps:
            base.denoiser(noisy.to(base.dtype), timestep=step, encoder_hidden_states=conditioning, **added)
        whole = {name: each.unflatten(2, grid(each.shape[2], size)).float().cpu() for name, each in maps.items()}
        found.append(_Seen(whole, small))
    return found


def _drawn(pictures: Sequence[Image.Image], masks: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """One product, or two of half the size on their mean colour: (3, S, S) in -1..1, and their masks (J, S, S)."""
    side = pictures[0].width
    if len(pictures) == 1:
        canvas, covers = pictures[0], list(masks)
    else:
        half, top = side // 2, side // 4
        mean = np.mean([np.asarray(each).reshape(-1, 3).mean(0) for each in pictures], axis=0)
        canvas = Image.new("RGB", (side, side), tuple(int(each) for each in mean))
        covers = []
        for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            canvas.paste(picture.resize((half, half), Image.Resampling.LANCZOS), (number * half, top))
            cover = Image.new("L", (side, side))
            cover.paste(mask.resize((half, half), Image.Resampling.LANCZOS), (number * half, top))
            covers.append(cover)
    pixels = torch.from_numpy(np.asarray(canvas).transpose(2, 0, 1).astype(np.float32)) / 127.5 - 1
    return pixels, torch.from_numpy(np.stack([np.asarray(each, np.float32) / 255 for each in covers]))
