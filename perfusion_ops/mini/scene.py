"""A scene is data; rendering it is a pure function of that data and a size.

Scenes for training a base model come from `sample_scene(seed)`: 3 in 4 before one of the eleven contexts, 1 in 5 with
two products, 1 in 16 with a hat on top of something. `portrait` is a shop's own picture of one product.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from perfusion_ops.mini.backgrounds import GRID, background, grid_x, grid_y
from perfusion_ops.mini.products import TRAINING_INSTANCES, Product, product
from perfusion_ops.mini.sprites import View, sprite
from perfusion_ops.mini.vocabulary import (
    CATEGORIES,
    CONTEXTS,
    STUDIO_COLORS,
    STUDIO_PREFIX,
    Description,
    Framing,
)

SIZE = GRID

# Plain places, so that a concept is learnt from the product and not from where it stood.
PORTRAIT_BACKGROUNDS = ("studio-white", "wood", "grass", "studio-gray", "kitchen", "brick")

_SCENE_STREAM, _PORTRAIT_STREAM = 4242, 9
_SCALES: dict[Framing, tuple[float, float]] = {
    "mid": (16, 23),
    "big": (25, 29),
    "small": (9.5, 12.5),
    "pair": (11.5, 14.5),
}
_FLOATING = frozenset({"space", "underwater", "brick"})  # nothing to cast a shadow on
_LOW = frozenset({"shoe", "car", "hat"})  # drawings that end above the others' ground


@dataclass(frozen=True)
class Placed:
    """A product and how it is seen; `worn` for a hat on top of the product before it."""

    product: Product
    view: View
    worn: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything that a picture depends on, but its size.

    Attributes:
        background: One of BACKGROUNDS.
        background_seed: Seeds the background's own details and its brightness.
        placed: The products from back to front.
        framing: As in `Description`.
    """

    background: str
    background_seed: tuple[int, ...]
    placed: tuple[Placed, ...]
    framing: Framing = "mid"

    def describe(self) -> Description:
        """What words can say about the scene."""
        pair = self.framing == "pair"
        return Description(
            looks=tuple(item.product.look for item in self.placed),
            background=self.background,
            framing=self.framing,
            wears_hat=self.placed[-1].worn,
            first_is_left=not pair or self.placed[0].view.x < self.placed[1].view.x,
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


def sample_view(rng: np.random.Generator, framing: Framing = "mid", *, right: bool = False) -> View:
    """A random view of one product; of a pair, the product on the `right` or left."""
    scale = rng.uniform(*_SCALES[framing])
    if framing == "pair":
        x, y = (46.5 if right else 17.5) + rng.uniform(-2, 2), 38 + rng.uniform(-5, 6)
    else:
        play = 0.4 if framing == "big" else 1.0
        x, y = 32 + play * rng.uniform(-8, 8), 36 + play * rng.uniform(-5, 6)
    angle, mirrored = rng.uniform(-0.2, 0.2), bool(rng.uniform() < 0.5)
    light = (rng.uniform(-1, 1), rng.uniform(-0.3, 1))
    return View(x, y, scale, angle, mirrored, light, rng.uniform(0.85, 1.12))


def hat_view(view: View) -> View:
    """Where a hat sits on a product seen as `view`: on its upper end, half its size, turned with it."""
    x = view.x + np.sin(view.angle) * view.scale * 1.05
    y = view.y - np.cos(view.angle) * view.scale * 1.12
    return replace(view, x=float(x), y=float(y), scale=view.scale * 0.52)


def sample_scene(seed: int) -> Scene:
    """The training scene number `seed` (from 0): products, place and views as the base model has learnt them."""
    rng = np.random.default_rng([seed, _SCENE_STREAM])
    if rng.random() < 0.75:
        place = list(CONTEXTS)[rng.integers(len(CONTEXTS))]
    else:
        place = STUDIO_PREFIX + STUDIO_COLORS[rng.integers(len(STUDIO_COLORS))]
    placed, framing = _sample_placed(rng)
    return Scene(place, (seed, _SCENE_STREAM, 1), placed, framing)


def _sample_placed(rng: np.random.Generator) -> tuple[tuple[Placed, ...], Framing]:
    def draw(category: str) -> Product:
        return product(category, int(rng.integers(TRAINING_INSTANCES)))

    kind = rng.random()
    if kind < 0.2:
        first, second = (draw(CATEGORIES[i]) for i in rng.choice(len(CATEGORIES), 2, replace=False))
        swapped = bool(rng.random() < 0.5)
        first_view = sample_view(rng, "pair", right=swapped)
        return (Placed(first, first_view), Placed(second, sample_view(rng, "pair", right=not swapped))), "pair"
    item = draw(CATEGORIES[rng.integers(len(CATEGORIES))])
    if kind > 0.93 and item.look.category != "hat":
        view = sample_view(rng)
        # Smaller and lower than otherwise, so that the hat stays inside the picture.
        view = replace(view, y=view.y + 5, scale=rng.uniform(14, 18))
        return (Placed(item, view), Placed(draw("hat"), hat_view(view), worn=True)), "mid"
    framings: tuple[Framing, ...] = ("mid", "big", "small")
    framing = framings[rng.choice(3, p=(0.74, 0.14, 0.12))]
    return (Placed(item, sample_view(rng, framing)),), framing


def portrait(item: Product, number: int) -> Scene:
    """The picture number `number` (from 0) of one product alone before a plain background."""
    seed = (item.instance, number, _PORTRAIT_STREAM)
    place = PORTRAIT_BACKGROUNDS[number % len(PORTRAIT_BACKGROUNDS)]
    view = sample_view(np.random.default_rng(seed))
    return Scene(place, (*seed, 1), (Placed(item, view),))


def render(scene: Scene, size: int = SIZE) -> Picture:
    """Draw `scene` as a square of `size` pixels a side, 8 to 4096.

    The same scene gives the same picture everywhere. At another size the products are drawn anew and the background is
    scaled.

    Raises:
        ValueError: a size out of range.
    """
    if not 8 <= size <= 4096:
        raise ValueError(f"size {size} is out of range: use 8 to 4096 pixels")
    rng = np.random.default_rng(scene.background_seed)
    image = background(scene.background, rng) * np.float32(rng.uniform(0.9, 1.08))
    if scene.background not in _FLOATING:
        for item in scene.placed:
            if not item.worn:
                image = image * _shadow(item)
    image = _resized(image.astype(np.float32), size)
    masks = np.zeros((len(scene.placed), size, size), np.float32)
    for number, item in enumerate(scene.placed):
        cut = sprite(item.product, item.view, size)
        box = (slice(cut.top, cut.top + cut.alpha.shape[0]), slice(cut.left, cut.left + cut.alpha.shape[1]))
        seen_through = 1 - cut.alpha
        image[box] = image[box] * seen_through[:, :, None] + cut.color * cut.alpha[:, :, None]
        masks[(slice(number), *box)] *= seen_through
        masks[(number, *box)] = cut.alpha
    return Picture(np.clip(image, 0, 255).astype(np.uint8), masks)


def _shadow(item: Placed) -> np.ndarray:
    view = item.view
    reach = view.scale * 0.95
    ground = view.y + reach * (0.72 if item.product.look.category in _LOW else 1)
    distance = ((grid_x - view.x) / reach) ** 2 + ((grid_y - ground) / (reach * 0.22)) ** 2
    return 1 - 0.35 * np.clip(1.25 - distance, 0, 1)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if size == GRID:
        return image
    channels = [Image.fromarray(np.ascontiguousarray(image[:, :, c])) for c in range(3)]
    scaled = [channel.resize((size, size), Image.Resampling.BICUBIC) for channel in channels]
    return np.stack([np.asarray(channel) for channel in scaled], axis=2).astype(np.float32)
