"""Captions of two kinds: descriptions of scenes, and prompts as users type them.

Random numbers come from `random.Random.random()` alone: Python guarantees its sequence in every version.
Every word is one token of the embedded base's tokenizer, and no caption is longer than its context.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

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
    Look,
    Relation,
    phrases,
    superclass,
)

MAX_TOKENS = 30  # words and commas; the start and end tokens fill the context of 32

_FRAMES = (
    "a photo of ", "a photo of ", "a photo of ", "a picture of ", "an image of ", "a photograph of ", "the photo of ",
    "a good photo of ", "a nice photo of ", "", "",
)  # fmt: skip
_ANGLES: dict[Angle, tuple[str, ...]] = {
    "front": ("a front view of ",),
    "side": ("a side view of ", "a side view of ", "a photo from the side of "),
    "above": ("a top view of ", "a view from above of ", "a photo from above of "),
    "tilted": ("a tilted photo of ", "a tilted view of "),
}
_RELATIONS: dict[Relation, tuple[str, ...]] = {
    "beside": ("next to", "next to", "and", "beside", "near"),
    "on": ("on top of", "on top of", "on", "standing on"),
    "wearing": ("wearing", "wearing", "wearing", "with"),
    "inside": ("inside", "inside", "in", "standing in"),
}
_GENERAL = {
    "teddy": "toy",
    "car": "toy",
    "duck": "toy",
    "chair": "furniture",
    "lamp": "furniture",
    "shoe": "clothing",
    "hat": "clothing",
}
_THING = ("object", "product", "item", "thing")

_TYPED_FRAMES = (
    "a photo of ", "a good photo of ", "a nice photo of ", "the photo of ", "a picture of ", "a nice picture of ",
    "an image of ", "a photograph of ", "a closeup of ", "a close photo of ", "a painting of ", "a side view of ",
    "a front view of ", "a top view of ", "",
)  # fmt: skip
_DETERMINERS = ("a", "a", "a", "a", "my", "my", "the", "this", "that", "one")
_ADJECTIVES = ("", "", "", "", "small", "large", "big", "tiny", "new", "old", "nice", "good")
_PRAISE = ("new", "old", "nice", "good")
_THINGS = (*CATEGORIES, *CATEGORIES, *CATEGORIES, "teddy bear", "product", "toy", "item", "object", "thing")
_LINKS = (
    "next to", "and", "beside", "near", "behind", "with", "holding", "to the left of", "to the right of", "on top of",
    "inside",
)  # fmt: skip

_Option = TypeVar("_Option")


def _pick(options: Sequence[_Option], rng: Random) -> _Option:
    return options[int(rng.random() * len(options))]


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _tokens(words: str) -> int:
    # A comma is a token of its own.
    return words.count(" ") + words.count(",") + 1


def caption(scene: Description, rng: Random) -> str:
    """One of the many true captions of `scene`, as the embedded base is trained on; at most MAX_TOKENS tokens."""
    while True:
        words = _caption(scene, rng)
        if _tokens(words) <= MAX_TOKENS:
            return words


def _caption(scene: Description, rng: Random) -> str:
    frame = _frame(scene, rng)
    if scene.relation is None:
        if rng.random() < 0.02:
            return superclass(scene.looks[0].category)
        small = scene.framing == "small" and rng.random() < 0.85
        words = _noun(scene.looks[0], rng, general=0.06, adjective=_pick(("small", "tiny"), rng) if small else "")
    else:
        words = _both(scene, scene.relation, rng)
    if rng.random() < 0.08:
        return frame + words
    place = _pick(phrases(scene.background), rng)
    return f"{place}, {frame}{words}" if rng.random() < 0.06 else f"{frame}{words} {place}"


def _frame(scene: Description, rng: Random) -> str:
    if scene.angle != "front":
        return _pick(_ANGLES[scene.angle] if rng.random() < 0.85 else _FRAMES, rng)
    if scene.framing == "big" and rng.random() < 0.85:
        return _pick(("a closeup of ", "a close photo of "), rng)
    return _pick(_ANGLES["front"] if rng.random() < 0.03 else _FRAMES, rng)


def _both(scene: Description, relation: Relation, rng: Random) -> str:
    first, second = (_noun(look, rng) for look in scene.looks)
    link = _pick(_RELATIONS[relation], rng)
    if relation != "beside":
        return f"{first} {link} {second}"
    left = scene.first_is_left
    if rng.random() < 0.5:
        first, second, left = second, first, not left
    if rng.random() < 0.3:
        link = "to the left of" if left else "to the right of"
    return f"{first} {link} {second}"


def _noun(look: Look, rng: Random, general: float = 0.0, adjective: str = "") -> str:
    """A look with determiner: its class (or, in a share `general`, a wider one), perhaps its colour and its pattern."""
    word = look.category
    if word == "teddy" and rng.random() < 0.5:
        word = superclass(word)
    if rng.random() < general:
        word = _pick(_THING, rng) if rng.random() < 0.6 else _GENERAL.get(look.category, "object")
    if not adjective and rng.random() < 0.04:
        adjective = _pick(_PRAISE, rng)
    colored, patterned = rng.random() < 0.55, rng.random() < 0.8
    color, pattern, emblem = look.primary if colored else "", "", ""
    if patterned and look.pattern in EMBLEMS:
        emblem = f" with {_with_article(f'{look.emblem_color} {look.pattern}' if rng.random() < 0.3 else look.pattern)}"
    elif patterned and look.pattern == "plain":
        pattern = "plain" if rng.random() < 0.5 else ""
    elif patterned:
        pattern = look.pattern
        color = f"{look.primary} and {look.secondary}" if rng.random() < 0.3 else color
    words = " ".join(part for part in (adjective, color, pattern, word) if part)
    determiner = _pick(_DETERMINERS, rng) if rng.random() < 0.5 else "a"
    return (_with_article(words) if determiner == "a" else f"{determiner} {words}") + emblem


def captions(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` distinct captions, half of them of random scenes and half as users type.

    The first n of a longer stream are the stream of length n. Memory grows with `count`: some 150 bytes a caption.

    Args:
        count: 0 to 10,000,000; the grammar holds far more.
        seed: Any integer.

    Raises:
        ValueError: `count` out of range.
    """
    if not 0 <= count <= 10_000_000:
        raise ValueError(f"{count} captions are out of range: use 0 to 10,000,000")
    return _distinct(count, Random(seed))  # noqa: S311


def _distinct(count: int, rng: Random) -> Iterator[str]:
    seen: set[str] = set()
    while len(seen) < count:
        words = caption(_sample_description(rng), rng) if rng.random() < 0.5 else _typed(rng)
        if words not in seen and _tokens(words) <= MAX_TOKENS:
            seen.add(words)
            yield words


def _sample_look(rng: Random, categories: Sequence[str], but: str = "") -> Look:
    first, second, third = (int(rng.random() * (len(COLORS) - taken)) for taken in range(3))
    rest = list(COLORS)
    colors = rest.pop(first), rest.pop(second), rest.pop(third)
    return Look(_pick([name for name in categories if name != but], rng), *colors, _pick(PATTERNS, rng))


def _sample_description(rng: Random) -> Description:
    place, kind = _pick(BACKGROUNDS, rng), rng.random()
    if kind < 0.7:
        framing = _pick(("mid", "mid", "mid", "big", "small"), rng)
        angle = _pick(("front", "front", "side", "above", "tilted"), rng) if framing == "mid" else "front"
        return Description((_sample_look(rng, CATEGORIES),), place, framing, angle)
    relation: Relation = _pick(("beside", "beside", "on", "wearing", "inside"), rng)
    seconds = {"beside": CATEGORIES, "on": SUPPORTS, "wearing": ("hat",), "inside": CONTAINERS}[relation]
    second = _sample_look(rng, seconds)
    first = _sample_look(rng, CONTENTS if relation == "inside" else CATEGORIES, but=second.category)
    return Description((first, second), place, relation=relation, first_is_left=rng.random() < 0.5)


def _typed(rng: Random) -> str:
    """A prompt that a user may type; the world may be unable to draw it."""
    words = _typed_thing(rng)
    kind = rng.random()
    if kind < 0.25:
        words = f"{words} {_pick(_LINKS, rng)} {_typed_thing(rng)}"
    elif kind < 0.35:
        words = f"{words} {_pick(('wearing', 'with', 'without'), rng)} {_with_article(_pick(COLORS, rng))} hat"
    if rng.random() < 0.1:
        return words
    words = _pick(_TYPED_FRAMES, rng) + words
    return words if rng.random() < 0.15 else f"{words} {_pick(phrases(_pick(BACKGROUNDS, rng)), rng)}"


def _typed_thing(rng: Random) -> str:
    parts = [_pick(_ADJECTIVES, rng)]
    if rng.random() < 0.5:
        parts.append(_pick(COLORS, rng))
    if rng.random() < 0.25:
        parts.append(_pick(("plain", "striped", "dotted", "checked"), rng))
    parts.append(_pick(_THINGS, rng))
    words = " ".join(part for part in parts if part)
    determiner = _pick(_DETERMINERS, rng)
    words = _with_article(words) if determiner == "a" else f"{determiner} {words}"
    return f"{words} with {_with_article(_pick(('star', 'heart'), rng))}" if rng.random() < 0.1 else words
