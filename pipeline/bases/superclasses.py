"""Checks by a base model's tokenizer, before any training, whether the model can read a superclass."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from perfusion_ops.base.folder import BaseError
from perfusion_ops.base.tokenizer import TokenCounter
from perfusion_ops.config import Recipe
from pipeline.contract.errors import Code, RowError
from pipeline.contract.messages import show

_START_AND_END = 2
_MAX_CACHED = 100_000


def superclass_check(
    counter: TokenCounter, templates: Sequence[str], recipe: Recipe = "paper"
) -> Callable[[str], None]:
    """A check of superclasses for one base model: the tokenizer knows a word, and every training prompt fits.

    The returned function takes a superclass with single blanks between its words, and raises `RowError`.

    Args:
        counter: of the base model.
        templates: the base model's training prompts, each with one `{}`.
        recipe: of the training; under `offset` the concept's own word stands before the superclass.

    Raises:
        BaseError: a training prompt leaves no room for any superclass.
    """
    beside = 1 if recipe == "offset" else 0
    room = (
        counter.limit - _START_AND_END - beside - max(sum(map(counter.count, text.split("{}"))) for text in templates)
    )
    if room < 1:
        raise BaseError(
            f"a training prompt of the base model has more than the {counter.limit} tokens that it reads: "
            "shorten the templates in its perfusion.json"
        )

    @lru_cache(_MAX_CACHED)
    def flaw(words: str) -> tuple[Code, str] | None:
        if not counter.knows(words):
            return Code.EMPTY_SUPERCLASS, (
                f"superclass is {show(words)}, of which the base model's tokenizer knows no character: "
                "name the kind of thing in words that it knows, such as 'mug'"
            )
        if (count := counter.count(words)) > room:
            return Code.TEXT_TOO_LONG, (
                f"superclass {show(words)} has {count} tokens, the base model's training prompts have room for {room}: "
                "name the kind of thing in a word or two"
            )
        return None

    def checked(words: str) -> None:
        if found := flaw(words):
            raise RowError(*found, column="superclass")

    return checked
