"""Captions: what a scene is called, and what users type.

Pure Python, one `random.Random` and nothing of it but `random()`, whose sequence Python keeps from version to version.
Every word is one token of the embedded base's tokenizer, and no caption is longer than its context.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TypeVar

from perfusion_ops.mini.vocabulary import BACKGROUNDS, CATEGORIES, COLORS, EMBLEMS, PATTERNS, Description, Look, phrases

MAX_TOKENS = 30  # words and commas; the start and end tokens fill the context of 32

_FRAMES = (
    "a photo of ", "a photo of ", "a photo of ", "a picture of ", "an image of ", "a photograph of ", "", "",
)  # fmt: skip
_GENERAL = {
    "teddy": "toy",
    "car": "toy",
    "chair": "furniture",
    "lamp": "furniture",
    "shoe": "clothing",
    "hat": "clothing",
}

_TYPED_FRAMES = (
    "a photo of ", "a good photo of ", "a nice photo of ", "the photo of ", "a picture of ", "a nice picture of ",
    "an image of ", "a photograph of ", "a closeup of ", "a close photo of ", "a painting of ", "a side view of ",
    "a front view of ", "a top view of ", "",
)  # fmt: skip
_DETERMINERS = ("a", "a", "a", "my", "my", "the", "this", "that", "one")
_ADJECTIVES = ("", "", "", "", "small", "large", "big", "tiny", "new", "old", "nice", "good")
_THINGS = (*CATEGORIES, *CATEGORIES, *CATEGORIES, "teddy bear", "product", "toy", "item", "object", "thing")
_LINKS = ("next to", "and", "beside", "near", "behind", "with", "holding", "to the left of", "to the right of")

_Option = TypeVar("_Option")


def _pick(options: Sequence[_Option], rng: Random) -> _Option:
    return options[int(rng.random() * len(options))]


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def caption(scene: Description, rng: Random) -> str:
    """One of the many true captions of `scene`, as the embedded base was trained on."""
    nouns = [_noun(look, rng, general=0.06) for look in scene.looks]
    if scene.wears_hat:
        hat = _noun(scene.looks[-1], rng)
        words = f"{nouns[0]} {'wearing' if rng.random() < 0.8 else 'with'} {hat}"
    elif len(nouns) == 2:
        side = "to the left of" if scene.first_is_left else "to the right of"
        words = f"{nouns[0]} {_pick(('next to', 'and', 'beside', side), rng)} {nouns[1]}"
    else:
        words = nouns[0]
    frame = _pick(_FRAMES, rng)
    if scene.framing == "big" and rng.random() < 0.8:
        frame = _pick(("a closeup of ", "a close photo of "), rng)
    if scene.framing == "small" and rng.random() < 0.7:
        words = f"a small {words.split(' ', 1)[1]}" if rng.random() < 0.6 else f"{words} far away"
    if rng.random() < 0.06:
        return frame + words
    place = _pick(phrases(scene.background), rng)
    plain = f"{frame}{words} {place}"
    # The comma is a token, too.
    if rng.random() < 0.06 and plain.count(" ") + 2 <= MAX_TOKENS:
        return f"{place}, {frame}{words}"
    return plain


def _noun(look: Look, rng: Random, general: float = 0.0) -> str:
    """A look with article: its class (or, in a share `general`, a wider one), perhaps its colour and its pattern."""
    word = look.category
    if word == "teddy" and rng.random() < 0.5:
        word = "teddy bear"
    if rng.random() < general:
        word = "object" if rng.random() < 0.6 else _GENERAL.get(look.category, "object")
    colored, patterned = rng.random() < 0.5, rng.random() < 0.5
    if not patterned:
        return _with_article(f"{look.primary} {word}" if colored else word)
    if look.pattern in EMBLEMS:
        emblem = f"{look.emblem_color} {look.pattern}" if rng.random() < 0.3 else look.pattern
        return _with_article(f"{look.primary} {word}" if colored else word) + f" with {_with_article(emblem)}"
    if look.pattern == "plain":
        pattern = "plain " if rng.random() < 0.5 else ""
    elif rng.random() < 0.3:
        return _with_article(f"{look.primary} and {look.secondary} {look.pattern} {word}")
    else:
        pattern = f"{look.pattern} "
    return _with_article(f"{look.primary} {pattern}{word}" if colored else pattern + word)


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
        if words not in seen and words.count(" ") + words.count(",") < MAX_TOKENS:
            seen.add(words)
            yield words


def _sample_look(rng: Random, category: str | None = None) -> Look:
    first, second, third = (int(rng.random() * (len(COLORS) - taken)) for taken in range(3))
    rest = list(COLORS)
    colors = rest.pop(first), rest.pop(second), rest.pop(third)
    return Look(category or _pick(CATEGORIES, rng), *colors, _pick(PATTERNS, rng))


def _sample_description(rng: Random) -> Description:
    place, kind, look = _pick(BACKGROUNDS, rng), rng.random(), _sample_look(rng)
    if kind < 0.3:
        return Description((look, _sample_look(rng)), place, "pair", first_is_left=rng.random() < 0.5)
    if kind < 0.4:
        return Description((look, _sample_look(rng, "hat")), place, wears_hat=True)
    return Description((look,), place, _pick(("mid", "mid", "mid", "big", "small"), rng))


def _typed(rng: Random) -> str:
    """What a user may ask for, whether or not the world can draw it."""
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
