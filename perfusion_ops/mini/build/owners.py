"""Which words of a caption tell a product's looks, and captions in which these words are others.

A text encoder spreads what it reads: the words after a noun, the end and the padding all know of it, and a denoiser may
read a product's looks anywhere but at its own words. Then no edit of these words can change the looks alone, and two
edited nouns blend. So in a share of the samples a product's looks are told by its own words only: every other position
has the encoding of a caption that names other looks.
"""

from random import Random

from perfusion_ops.mini.world.vocabulary import CATEGORIES, COLORS, EMBLEMS, PATTERNS

_GENERAL = ("toy", "furniture", "clothing", "object", "product", "item", "thing")
_NOUNS = frozenset({*CATEGORIES, "bear", *_GENERAL})
_PLAIN_PATTERNS = tuple(name for name in PATTERNS if name not in EMBLEMS)
_ARTICLES = ("a", "an")


def split(caption: str) -> list[str]:
    """The words and commas of a caption of the grammar; each of them is one token."""
    return caption.replace(",", " ,").split()


def owners(words: list[str]) -> list[int]:
    """For each word, 1 + the number of the product whose looks it tells, in the caption's order; 0 for the others."""
    found = [0] * len(words)
    products = 0
    for at, word in enumerate(words):
        if word not in _NOUNS or (word == "teddy" and words[at + 1 : at + 2] == ["bear"]):
            continue
        products += 1
        first, last = _phrase(words, at)
        found[first : last + 1] = [0 if each in {*_ARTICLES, "with"} else products for each in words[first : last + 1]]
    return found


def _phrase(words: list[str], noun: int) -> tuple[int, int]:
    """The first and the last word of the phrase around a noun: colours, patterns, noun, emblem."""
    first = noun - 1 if words[noun] == "bear" else noun
    while first and (words[first - 1] in COLORS or words[first - 1] in _PLAIN_PATTERNS or _joins(words, first - 1)):
        first -= 1
    rest = words[noun + 1 : noun + 5]
    if rest[:1] == ["with"] and rest[1:2] and rest[1] in _ARTICLES:
        for length in (2, 3):
            if len(rest) > length and rest[length] in EMBLEMS and set(rest[2:length]) <= set(COLORS):
                return first, noun + 1 + length
    return first, noun


def _joins(words: list[str], at: int) -> bool:
    return words[at] == "and" and words[at - 1] in COLORS and words[at + 1] in COLORS


def altered(words: list[str], owner: list[int], but: int, rng: Random) -> list[str]:
    """The words, with those of every product except number `but` replaced by others of the same kind."""
    return [word if whose in {0, but} else _other(word, rng) for word, whose in zip(words, owner, strict=True)]


def _other(word: str, rng: Random) -> str:
    if word == "bear" or word in CATEGORIES:
        kind: tuple[str, ...] = CATEGORIES
    else:
        kind = next((kind for kind in (COLORS, tuple(sorted(EMBLEMS)), _PLAIN_PATTERNS, _GENERAL) if word in kind), ())
    others = [each for each in kind if each != word]
    return others[int(rng.random() * len(others))] if others else word
