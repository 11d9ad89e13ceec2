"""Prompts that cover the product world evenly, each with a real scene that it describes.

Six in ten ask for one product: every category in front of every background in turn, half of them with a colour, half
with a pattern. Four in ten ask for two products: every relation in turn, with every pair that it allows.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TypeVar, get_args

import numpy as np

from perfusion_ops.mini.world.products import HELD_OUT, Product, contrasting, product
from perfusion_ops.mini.world.scene import Placed, Scene, pair, sample_view
from perfusion_ops.mini.world.vocabulary import (
    BACKGROUNDS,
    CATEGORIES,
    COLORS,
    CONTAINERS,
    CONTENTS,
    EMBLEMS,
    PATTERNS,
    SUPPORTS,
    Angle,
    Description,
    Relation,
    phrases,
    superclass,
)

_LINKS: dict[Relation, str] = {"beside": "next to", "on": "on top of", "wearing": "wearing", "inside": "inside"}
_FIRSTS = {"beside": CATEGORIES, "on": CATEGORIES, "wearing": CATEGORIES, "inside": CONTENTS}
_SECONDS = {"beside": CATEGORIES, "on": SUPPORTS, "wearing": ("hat",), "inside": CONTAINERS}
_STREAM = 41

_T = TypeVar("_T")


@dataclass(frozen=True)
class Shown:
    """What a picture must show; None for a feature that is not asked for.

    Attributes:
        categories: of one product, or of two.
        background: one of BACKGROUNDS.
        color: of a product alone.
        pattern: of a product alone.
        angle: of the camera to a product alone.
        relation: of the first of two to the second; None for a product alone.
    """

    categories: tuple[str, ...]
    background: str
    color: str | None = None
    pattern: str | None = None
    angle: Angle | None = None
    relation: Relation | None = None


@dataclass(frozen=True)
class Request:
    """A prompt and what it asks for."""

    prompt: str
    shown: Shown


def shown(scene: Description) -> Shown:
    """All that a scene shows."""
    categories = tuple(look.category for look in scene.looks)
    if scene.relation is not None:
        return Shown(categories, scene.background, relation=scene.relation)
    look = scene.looks[0]
    return Shown(categories, scene.background, look.primary, look.pattern, scene.angle)


def requests(count: int, seed: int = 0) -> list[Request]:
    """`count` requests in random order, the same for the same `seed`; 24 hold every kind at least once.

    Raises:
        ValueError: fewer than 24.
    """
    if count < 24:
        raise ValueError(f"{count} prompts do not ask for everything once: take 24 or more")
    rng = Random(seed)  # noqa: S311
    alone = count * 6 // 10
    places = _endless([(category, place) for category in CATEGORIES for place in BACKGROUNDS], rng)
    colors, patterns = _endless(list(COLORS), rng), _endless(list(PATTERNS), rng)
    asked = [
        _alone(*next(places), next(colors) if n % 2 else None, next(patterns) if n // 2 % 2 else None, rng)
        for n in range(alone)
    ]
    backgrounds = _endless(list(BACKGROUNDS), rng)
    pairs = {
        relation: _endless([(a, b) for a in _FIRSTS[relation] for b in _SECONDS[relation] if a != b], rng)
        for relation in _LINKS
    }
    relations = itertools.islice(itertools.cycle(get_args(Relation)), count - alone)
    asked += [_two(relation, next(pairs[relation]), next(backgrounds), rng) for relation in relations]
    rng.shuffle(asked)
    return asked


def _endless(items: list[_T], rng: Random) -> Iterator[_T]:
    """All items in random order, again and again."""
    while True:
        yield from rng.sample(items, len(items))


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _alone(category: str, background: str, color: str | None, pattern: str | None, rng: Random) -> Request:
    emblem = f" with {_with_article(pattern)}" if pattern in EMBLEMS else ""
    words = " ".join(part for part in (color, None if emblem else pattern, superclass(category)) if part)
    prompt = f"a photo of {_with_article(words)}{emblem} {rng.choice(phrases(background))}"
    return Request(prompt, Shown((category,), background, color, pattern))


def _two(relation: Relation, categories: tuple[str, str], background: str, rng: Random) -> Request:
    first, second = (_with_article(superclass(category)) for category in categories)
    prompt = f"a photo of {first} {_LINKS[relation]} {second} {rng.choice(phrases(background))}"
    return Request(prompt, Shown(categories, background, relation=relation))


def scene_of(asked: Shown, number: int) -> Scene:
    """Scene `number` (from 0) that shows what is asked, with products that no model was trained on."""
    items = [_held_out(category, HELD_OUT + number, asked) for category in asked.categories]
    if asked.relation is not None:
        return pair(asked.relation, items[0], items[1], asked.background, HELD_OUT + number)
    angle = asked.angle or "front"
    view = sample_view(np.random.default_rng([HELD_OUT + number, _STREAM]), angle=angle)
    return Scene(asked.background, (HELD_OUT + number, _STREAM, 1), (Placed(items[0], view),), angle=angle)


def _held_out(category: str, instance: int, asked: Shown) -> Product:
    if asked.color is None:
        return product(category, instance, pattern=asked.pattern)
    own = product(category, instance).look
    names = dict.fromkeys((asked.color, own.primary, own.secondary, own.accent, *COLORS))
    return product(category, instance, colors=contrasting(list(names)), pattern=asked.pattern)
