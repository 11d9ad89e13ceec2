"""Prompts that an export is fitted on and measured on: the base model's built-in captions, with the concepts in them.

In captions with one noun, the concepts replace it and the adjectives before it, as in "a photo of a {0} on the beach".
Captions that say what the product has are left out: users do not describe a product that the concept knows. The
captions of the first part of the stream are for fitting, those of the second for measuring; all are distinct.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from perfusion_ops.api.metrics import built_in_captions
from perfusion_ops.base.captions import NOUNS
from perfusion_ops.base_model import Base
from perfusion_ops.mini.world.vocabulary import CATEGORIES
from perfusion_ops.text import PromptTooLongError, Tokens

_EACH = 384  # captions to fit on, with the concepts and without them
_HELD_OUT = 192  # captions to measure on, likewise
_READ = 60_000  # captions of the stream that are looked at
_LINKS = ("next to a {}", "and a {}", "beside a {}", "with a {}")
_DETERMINERS = "a|an|my|the|this|that|one"
_DESCRIBES = re.compile(r"\b(?:with|without|wearing|holding)\b")


@dataclass(frozen=True)
class Prompts:
    """Prompts as tokens.

    Attributes:
        named: prompts that name all concepts as `{0}`, `{1}`, ...
        plain: prompts without a concept.
    """

    named: tuple[Tokens, ...]
    plain: tuple[Tokens, ...]


def export_prompts(
    base: Base, concepts: int, *, each: int = _EACH, held_out: int = _HELD_OUT
) -> tuple[Prompts, Prompts]:
    """Prompts to fit on and held-out prompts to measure on.

    Args:
        base: the base model; its captions and, for fitting, its templates.
        concepts: how many concepts each named prompt has.
        each: captions to fit on, with the concepts and as many without.
        held_out: captions to measure on, likewise.

    Raises:
        PromptTooLongError: no prompt can hold so many concepts.
    """
    nouns = (*CATEGORIES, "teddy bear") if base.folder.settings.captions == "mini" else NOUNS
    found = list(islice(_named(base, concepts, nouns), each + held_out))
    if len(found) < 2:
        raise PromptTooLongError(f"no prompt of the text encoder can hold {concepts} concepts: export fewer together")
    # A small share of the stream fits if there are many concepts; both parts keep their proportion.
    cut = len(found) * each // (each + held_out)
    plain = built_in_captions(base, each + held_out)
    others = [tokens for text in plain if (tokens := _tokens(base, text)) is not None]
    templates = [tokens for text in _templates(base, concepts) if (tokens := _tokens(base, text)) is not None]
    return (
        Prompts((*templates, *found[:cut]), tuple(others[:each])),
        Prompts(tuple(found[cut:]), tuple(others[each:])),
    )


def _tokens(base: Base, prompt: str) -> Tokens | None:
    try:
        return base.texts.tokenize(prompt)
    except PromptTooLongError:
        return None


def _templates(base: Base, concepts: int) -> Iterator[str]:
    for template in base.folder.settings.templates:
        for number in range(len(_LINKS)) if concepts > 1 else (0,):
            yield template.replace("{}", _joined(concepts, number))


def _named(base: Base, concepts: int, nouns: Sequence[str]) -> Iterator[Tokens]:
    """Distinct captions with the concepts in the place of their only noun."""
    noun = rf"(?:{'|'.join(map(re.escape, sorted(nouns, key=len, reverse=True)))})\b"
    adjectives = rf"(?:(?!(?:{_DETERMINERS}|of)\b)\w+ ){{0,4}}?"
    phrase, one = re.compile(rf"\b({_DETERMINERS}) {adjectives}{noun}"), re.compile(rf"\b{noun}")
    seen: set[str] = set()
    for number, caption in enumerate(built_in_captions(base, _READ)):
        place = phrase.search(caption)
        if place is None or len(one.findall(caption)) > 1 or _DESCRIBES.search(caption):
            continue
        determiner = "a" if place[1] == "an" else place[1]
        text = f"{caption[: place.start()]}{determiner} {_joined(concepts, number)}{caption[place.end() :]}"
        if text not in seen and (tokens := _tokens(base, text)) is not None:
            seen.add(text)
            yield tokens


def _joined(concepts: int, number: int) -> str:
    """`{0} next to a {1}`, and so on; the number chooses the words between them and which concept is named first."""
    order = [(place + number // len(_LINKS)) % concepts for place in range(concepts)]
    first, *others = (f"{{{concept}}}" for concept in order)
    return " ".join(
        [first, *(_LINKS[(number + place) % len(_LINKS)].format(each) for place, each in enumerate(others))]
    )
