"""Which products are learned, from which photos, and what is asked of them.

The tuning set and both final sets are different instances of all twelve classes, and no other measurement uses them.
"""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from PIL import Image

from perfusion_ops.mini.world.products import HELD_OUT, Product, contrasting, product
from perfusion_ops.mini.world.scene import Placed, Scene, pair, photograph, render, sample_view
from perfusion_ops.mini.world.vocabulary import CATEGORIES, COLORS, CONTEXTS, Angle, Framing, superclass

SetName = Literal["tuning", "a", "b"]
Kind = Literal["context", "angle", "color", "framing", "other"]

PHOTOS = 4  # photographs that a picture is judged against, however many a method has seen

_FIRST = {"tuning": 500_000, "a": 510_000, "b": 520_000}
_STRANGERS, _COMPANIONS = 530_000, 540_000
_STREAM, _PHASE = 43, 5  # of real scenes; and how far apart the contexts of two prompts are
# What the 20 prompts ask for beside a context, so that any first few of them are of several kinds.
_KINDS: tuple[tuple[Kind, str], ...] = (
    ("context", ""), ("color", ""), ("context", ""), ("other", ""), ("framing", "small"),
    ("context", ""), ("angle", "side"), ("context", ""), ("framing", "big"), ("context", ""),
    ("context", ""), ("angle", "above"), ("context", ""), ("color", ""), ("context", ""),
    ("framing", "small"), ("context", ""), ("other", ""), ("framing", "big"), ("context", ""),
)  # fmt: skip
PROMPTS = len(_KINDS)
_OTHERS = ("duck", "mug", "chair", "bottle")


@dataclass(frozen=True)
class Ask:
    """One prompt for one product, and what its picture must show.

    Attributes:
        number: from 0; the same number asks every product for the same kind of thing.
        prompt: with `{}` for the product.
        background: one of CONTEXTS.
        kind: what it asks for beside the context.
        angle: of the camera.
        color: name of the body's colour, which the product itself does not have.
        framing: how much of the picture the product fills.
        other: category of another product beside it.
    """

    number: int
    prompt: str
    background: str
    kind: Kind
    angle: Angle = "front"
    color: str | None = None
    framing: Framing = "mid"
    other: str | None = None

    @property
    def same_look(self) -> bool:
        """Whether the product keeps its own look in the picture."""
        return self.color is None

    @property
    def alone(self) -> bool:
        """Whether it is the only product of the picture, in its own look."""
        return self.color is None and self.other is None


def products(name: SetName, count: int) -> list[Product]:
    """The first `count` products of a set; the classes take turns."""
    return [product(CATEGORIES[n % len(CATEGORIES)], HELD_OUT + _FIRST[name] + n) for n in range(count)]


def strangers(category: str, count: int) -> list[Product]:
    """Other products of a class, which a picture must not look like; of no set."""
    return [product(category, HELD_OUT + _STRANGERS + n) for n in range(count)]


def photos(item: Product, count: int) -> list[tuple[Image.Image, Image.Image]]:
    """Photographs 0 to `count` of a product: RGB pictures, each with its mask in mode L."""
    taken = [render(photograph(item, number)) for number in range(count)]
    return [
        (Image.fromarray(each.pixels), Image.fromarray(np.rint(each.masks[0] * 255).astype(np.uint8))) for each in taken
    ]


def asks(item: Product, count: int) -> list[Ask]:
    """The first `count` of the 20 prompts for a product; each product has contexts and words of its own."""
    return [_ask(item, number) for number in range(count)]


def _ask(item: Product, number: int) -> Ask:
    kind, detail = _KINDS[number]
    round_, turn = divmod(item.instance, len(CONTEXTS))
    background = list(CONTEXTS)[(7 * turn + _PHASE * number) % len(CONTEXTS)]
    place = CONTEXTS[background][number % len(CONTEXTS[background])]
    if kind == "angle":
        words = {"side": "a side view of a {}", "above": "a top view of a {}"}[detail]
        return Ask(number, f"{words} {place}", background, kind, angle=cast("Angle", detail))
    if kind == "framing":
        words = {"small": "a photo of a small {}", "big": "a closeup of a {}"}[detail]
        return Ask(number, f"{words} {place}", background, kind, framing=cast("Framing", detail))
    if kind == "color":
        free = [name for name in COLORS if name not in (item.look.primary, item.look.secondary)]
        color = free[(round_ + turn + number) % len(free)]
        article = "an" if color[0] in "aeiou" else "a"
        return Ask(number, f"a photo of {article} {color} {{}} {place}", background, kind, color=color)
    if kind == "other":
        free = [name for name in _OTHERS if name != item.look.category]
        other = free[(round_ + turn + number) % len(free)]
        return Ask(number, f"a photo of a {{}} next to a {superclass(other)} {place}", background, kind, other=other)
    return Ask(number, f"a photo of a {{}} {place}", background, kind)


def real_scene(item: Product, ask: Ask, number: int) -> Scene:
    """Scene `number` (from 0) of a product that shows what is asked."""
    seed = (item.instance, CATEGORIES.index(item.look.category), ask.number, number, _STREAM)
    if ask.other is not None:
        companion = product(ask.other, HELD_OUT + _COMPANIONS + item.instance % 1000 + 1000 * number)
        return pair("beside", item, companion, ask.background, int(np.random.default_rng(seed).integers(2**31)))
    shown = item
    if ask.color is not None:
        own = item.look
        names = list(dict.fromkeys((ask.color, own.primary, own.secondary, own.accent, *COLORS)))
        shown = product(own.category, item.instance, colors=contrasting(names))
    view = sample_view(np.random.default_rng(seed), ask.framing, ask.angle)
    return Scene(ask.background, (*seed, 1), (Placed(shown, view),), framing=ask.framing, angle=ask.angle)
