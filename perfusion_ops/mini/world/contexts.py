"""Which of the world's contexts a prompt names; scoring compares it with the context that a picture shows."""

import re
from functools import lru_cache

from perfusion_ops.mini.world.vocabulary import BACKGROUNDS, phrases

_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
# The longest first, so that "in front of a brick wall" is not looked for after a shorter phrase took part of it.
_PHRASES = sorted(
    ((phrase, background) for background in BACKGROUNDS for phrase in phrases(background)),
    key=lambda pair: (-len(pair[0]), pair),
)
_PATTERNS = tuple(
    (re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE), background) for phrase, background in _PHRASES
)


@lru_cache(maxsize=65_536)
def named_context(prompt: str) -> str | None:
    """The one context (of BACKGROUNDS) that a prompt names by one of its phrases.

    Args:
        prompt: as users write it; text in braces is a product and is ignored.

    Returns:
        None when the prompt names none or several.
    """
    rest, found = " ".join(_PLACEHOLDER.sub(" {} ", prompt).split()), set()
    for pattern, background in _PATTERNS:
        rest, count = pattern.subn(" {} ", rest)
        if count:
            found.add(background)
    return found.pop() if len(found) == 1 else None
