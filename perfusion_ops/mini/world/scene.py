"""A scene is data; rendering it is a pure function of that data and a size.

`sample_scene` draws the scenes that models of this world are trained and tested on: 7 in 10 show one product, 3 in 10
show two in a relation. `portrait` is a catalogue picture of one product, `photograph` shows it in any place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from PIL import Image

from perfusion_ops.mini.world.backgrounds import GRID, background, grid_x, grid_y
from perfusion_ops.mini.world.drawings import drawing
from perfusion_ops.mini.world.products import BASE_INSTANCES, Product, product
from perfusion_ops.mini.world.sprites import Sprite, View, sprite
from perfusion_ops.mini.world.vocabulary import (
    CATEGORIES,
    CONTAINERS,
    CONTENTS,
    CONTEXTS,
    STUDIO_COLORS,
    STUDIO_PREFIX,
    SUPPORTS,
    Angle,
    Description,
    Framing,
    Relation,
)

SIZE = GRID

# Plain backgrounds, so that a concept learns the product and not its surroundings.
PORTRAIT_BACKGROUNDS = ("studio-white", "wood", "grass", "studio-gray", "kitchen", "brick")

_Option = TypeVar("_Option")

_SCENE_STREAM, _PORTRAIT_STREAM, _PHOTOGRAPH_STREAM, _PAIR_STREAM = 4242, 9, 17, 23
_IN_CONTEXT = 0.8
_RELATIONS: dict[Relation | None, float] = {None: 0.7, "beside": 0.13, "on": 0.06, "wearing": 0.06, "inside": 0.05}
_FRAMINGS: dict[Framing, float] = {"mid": 0.76, "big": 0.14, "small": 0.1}
_ANGLES: dict[Angle, float] = {"front": 0.7, "side": 0.11, "above": 0.09, "tilted": 0.1}
_SCALES: dict[Framing, tuple[float, float]] = {"mid": (20, 25), "big": (29, 32), "small": (11, 13)}
_FLOATING = frozenset({"space", "underwater", "brick", "library"})  # nothing to cast a shadow on


@dataclass(frozen=True)
class Placed:
    """A product and how it is seen."""

    product: Product
    view: View


@dataclass(frozen=True)
class Scene:
    """Everything that a picture depends on, except its size.

    Attributes:
        background: One of BACKGROUNDS.
        background_seed: Seeds the background's own details and its brightness.
        placed: One product, or two from back to front.
        framing: As in `Description`.
        angle: As in `Description`.
        relation: As in `Description`.
    """

    background: str
    background_seed: tuple[int, ...]
    placed: tuple[Placed, ...]
    framing: Framing = "mid"
    angle: Angle = "front"
    relation: Relation | None = None

    def describe(self) -> Description:
        """What words can say about the scene."""
        beside = self.relation == "beside"
        return Description(
            looks=tuple(item.product.look for item in self.placed),
            background=self.background,
            framing=self.framing,
            angle=self.angle,
            relation=self.relation,
            first_is_left=not beside or self.placed[0].view.x < self.placed[1].view.x,
        )


@dataclass(frozen=True)
class Picture:
    """A rendered scene.

    Attributes:
        pixels: (size, size, 3) uint8.
        masks: (number of products, size, size) float32, 0..1: the share of each pixel where that product is seen.
    """

    pixels: np.ndarray
    masks: np.ndarray


def sample_view(rng: np.random.Generator, framing: Framing = "mid", angle: Angle = "front") -> View:
    """A random view of one product alone."""
    play = 0.4 if framing == "big" else 1.0
    turn = rng.uniform(-0.08, 0.08)
    if angle == "tilted":
        turn = (1 if rng.random() < 0.5 else -1) * rng.uniform(0.45, 0.65)
    view = _view(rng, 32 + play * rng.uniform(-4, 4), 35 + play * rng.uniform(-3, 3), rng.uniform(*_SCALES[framing]))
    view = replace(view, angle=turn)
    if angle == "side":
        return replace(view, squeeze=(0.6, 1.0), shear=0.22)
    return replace(view, squeeze=(1.0, 0.6)) if angle == "above" else view


def _view(rng: np.random.Generator, x: float, y: float, scale: float) -> View:
    mirrored, light = bool(rng.random() < 0.5), (rng.uniform(-1, 1), rng.uniform(-0.3, 1))
    return View(x, y, scale, rng.uniform(-0.05, 0.05), mirrored, light, rng.uniform(0.9, 1.08))


def sample_scene(seed: int, instances: range = BASE_INSTANCES) -> Scene:
    """Scene number `seed` (from 0) with products of `instances`; each range of instances gives other scenes."""
    rng = np.random.default_rng([seed, _SCENE_STREAM, instances.start])
    relation = _choice(rng, _RELATIONS)
    place, place_seed = _place(rng), (seed, _SCENE_STREAM, instances.start, 1)
    if relation is None:
        item = _product(rng, CATEGORIES, instances)
        return _alone(item, rng, place, place_seed)
    return Scene(place, place_seed, _two(relation, rng, instances), relation=relation)


def photograph(item: Product, number: int) -> Scene:
    """Picture `number` (from 0) of one product alone, in front of a random background and from a random angle."""
    seed = (item.instance, CATEGORIES.index(item.look.category), number, _PHOTOGRAPH_STREAM)
    rng = np.random.default_rng(seed)
    return _alone(item, rng, _place(rng), (*seed, 1))


def portrait(item: Product, number: int) -> Scene:
    """Picture `number` (from 0) of one product alone, from the front, in front of a plain background."""
    seed = (item.instance, number, _PORTRAIT_STREAM)
    place = PORTRAIT_BACKGROUNDS[number % len(PORTRAIT_BACKGROUNDS)]
    return Scene(place, (*seed, 1), (Placed(item, sample_view(np.random.default_rng(seed))),))


def pair(relation: Relation, first: Product, second: Product, background: str, seed: int) -> Scene:
    """Scene `seed` (from 0) in front of `background` in which `first` is `relation` (beside, on, ...) `second`."""
    rng = np.random.default_rng([seed, _PAIR_STREAM])
    placed = _stand(relation, first, second, _middle(rng), rng)
    return Scene(background, (seed, _PAIR_STREAM, 1), placed, relation=relation)


def _choice(rng: np.random.Generator, shares: Mapping[_Option, float]) -> _Option:
    return list(shares)[int(np.searchsorted(np.cumsum(list(shares.values())), rng.random(), side="right"))]


def _place(rng: np.random.Generator) -> str:
    if rng.random() < _IN_CONTEXT:
        return list(CONTEXTS)[rng.integers(len(CONTEXTS))]
    return STUDIO_PREFIX + STUDIO_COLORS[rng.integers(len(STUDIO_COLORS))]


def _product(rng: np.random.Generator, categories: tuple[str, ...], instances: range) -> Product:
    return product(categories[rng.integers(len(categories))], int(rng.integers(instances.start, instances.stop)))


def _alone(item: Product, rng: np.random.Generator, place: str, place_seed: tuple[int, ...]) -> Scene:
    framing: Framing = _choice(rng, _FRAMINGS)
    angle: Angle = _choice(rng, _ANGLES) if framing == "mid" else "front"
    return Scene(place, place_seed, (Placed(item, sample_view(rng, framing, angle)),), framing, angle)


def _two(relation: Relation, rng: np.random.Generator, instances: range) -> tuple[Placed, Placed]:
    """Two products of different categories, from back to front, as `relation` says of the first."""

    def draw(*categories: str, but: str = "") -> Product:
        return _product(rng, tuple(name for name in categories if name != but), instances)

    x = _middle(rng)
    if relation == "beside":
        first = draw(*CATEGORIES)
        return _stand(relation, first, draw(*CATEGORIES, but=first.look.category), x, rng)
    second = draw(*{"wearing": ("hat",), "inside": CONTAINERS, "on": SUPPORTS}[relation])
    first = draw(*(CONTENTS if relation == "inside" else CATEGORIES), but=second.look.category)
    return _stand(relation, first, second, x, rng)


def _middle(rng: np.random.Generator) -> float:
    return 32 + rng.uniform(-3, 3)


def _stand(
    relation: Relation, first: Product, second: Product, x: float, rng: np.random.Generator
) -> tuple[Placed, Placed]:
    """Both from back to front, the first `relation` the second, about the column `x`."""
    if relation == "beside":
        sides = (17, 47) if rng.random() < 0.5 else (47, 17)
        at = [(side + rng.uniform(-1.5, 1.5), 37 + rng.uniform(-4, 4), rng.uniform(13.5, 15.5)) for side in sides]
        return Placed(first, _view(rng, *at[0])), Placed(second, _view(rng, *at[1]))
    if relation == "wearing":
        view = _view(rng, x, 41 + rng.uniform(-1, 2), rng.uniform(17, 19))
        scale = view.scale * 0.62
        return Placed(first, view), Placed(second, _above(rng, first, view, second, scale, sunk=0.3))
    view = _view(rng, x, 46 + rng.uniform(-1, 1), rng.uniform(14.5, 16))
    scale, sunk = (rng.uniform(13.5, 15), 0.75) if relation == "inside" else (rng.uniform(12.5, 14), 0.05)
    return Placed(first, _above(rng, second, view, first, scale, sunk)), Placed(second, view)


def _above(  # noqa: PLR0917 - who, where, who, how large
    rng: np.random.Generator, lower: Product, view: View, upper: Product, scale: float, sunk: float
) -> View:
    """A view of `upper` that ends `sunk` (in its own units) below the upper edge of `lower` seen as `view`."""
    edge = view.y + view.scale * _extent(lower)[0]
    return _view(rng, view.x, edge - scale * (_extent(upper)[1] - sunk), scale)


def _extent(item: Product) -> tuple[float, float]:
    """The upper and lower edge of a product in its own units."""
    down = np.concatenate([layer.points[:, 1] for layer in drawing(item)])
    return float(down.min()), float(down.max())


def render(scene: Scene, size: int = SIZE) -> Picture:
    """Draw `scene` as a square of `size` pixels a side, 8 to 4096.

    The same scene gives the same picture on every machine. At another size, products are drawn at that size and the
    background is scaled.

    Raises:
        ValueError: a size out of range.
    """
    if not 8 <= size <= 4096:
        raise ValueError(f"size {size} is out of range: use 8 to 4096 pixels")
    rng = np.random.default_rng(scene.background_seed)
    image = background(scene.background, rng) * np.float32(rng.uniform(0.94, 1.05))
    cuts = [sprite(item.product, item.view, size) for item in scene.placed]
    if scene.background not in _FLOATING:
        standing = cuts[-1:] if scene.relation in {"on", "inside"} else cuts[: 1 if scene.relation == "wearing" else 2]
        for cut in standing:
            image = image * _shadow(cut, GRID / size)
    image = _resized(image.astype(np.float32), size)
    masks = np.zeros((len(scene.placed), size, size), np.float32)
    for number, cut in enumerate(cuts):
        box = (slice(cut.top, cut.top + cut.alpha.shape[0]), slice(cut.left, cut.left + cut.alpha.shape[1]))
        seen_through = 1 - cut.alpha
        image[box] = image[box] * seen_through[:, :, None] + cut.color * cut.alpha[:, :, None]
        masks[(slice(number), *box)] *= seen_through
        masks[(number, *box)] = cut.alpha
    return Picture(np.clip(image, 0, 255).astype(np.uint8), masks)


def _shadow(cut: Sprite, unit: float) -> np.ndarray | float:
    """The gain of a soft ellipse under a cut-out, whose pixels are `unit` pixels of the grid."""
    height, width = cut.alpha.shape
    if height == 0:
        return 1.0
    reach = max(width * unit / 2, 2.0)
    x, ground = (cut.left + width / 2) * unit, (cut.top + height) * unit - 1
    distance = ((grid_x - x) / reach) ** 2 + ((grid_y - ground) / (reach * 0.22)) ** 2
    return 1 - 0.35 * np.clip(1.25 - distance, 0, 1)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if size == GRID:
        return image
    channels = [Image.fromarray(np.ascontiguousarray(image[:, :, c])) for c in range(3)]
    scaled = [channel.resize((size, size), Image.Resampling.BICUBIC) for channel in channels]
    return np.stack([np.asarray(channel) for channel in scaled], axis=2).astype(np.float32)
