"""A base model's tokenizer, loaded without weights, and token counts of texts.

This module does not import torch, so that manifests are checked quickly and on machines without an accelerator.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.base.weights import texts as weighted_texts
from perfusion_ops.families.family import Text

_SLOT = re.compile(r"\{(\d+)\}")
_MAX_CACHED = 100_000


def pieces(prompt: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Split at `{0}`, `{1}`, ...: the k + 1 texts around the k concept numbers."""
    parts = _SLOT.split(prompt)
    return tuple(parts[::2]), tuple(int(number) for number in parts[1::2])


def words(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without start, end or padding."""
    return (
        list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
        if text.strip()
        else []
    )


def load_tokenizer(folder: BaseFolder, part: str | None = None) -> Any:
    """A tokenizer that the base model is loaded with.

    Args:
        folder: the base model.
        part: the folder's part with it; by default the first of the family.

    Raises:
        BaseError: the folder has none, it cannot be read, or it accepts more tokens than the text encoder.
    """
    import transformers
    from transformers.utils import logging

    text = next(each for each in folder.family.texts if part in (None, each.tokenizer))
    path = folder.path / text.tokenizer
    _, name = json.loads((folder.path / "model_index.json").read_text()).get(text.tokenizer) or (None, None)
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        tokenizer = getattr(transformers, name or "CLIPTokenizer").from_pretrained(path, local_files_only=True)
    except Exception as error:  # each file format has a parser with errors of its own
        raise BaseError(f"the tokenizer in {path} cannot be loaded ({error}): copy the model again") from error
    finally:
        logging.set_verbosity(level)
    limit, positions = int(tokenizer.model_max_length), _positions(folder.path / text.encoder)
    if positions is not None and limit > positions:
        raise BaseError(
            f"the tokenizer in {path} reads {limit:,} tokens and the text encoder {positions:,}: "
            f"set model_max_length in tokenizer_config.json to {positions}"
        )
    return fitted(tokenizer, text)


def fitted(tokenizer: Any, text: Text) -> Any:
    """The tokenizer as the family reads with it: its limit, and lower case; the same object if nothing differs.

    Raises:
        BaseError: it has a textual-inversion token of several vectors.
    """
    added = tokenizer.get_added_vocab()
    several = sorted(token for token in added if f"{token}_1" in added)
    if several:
        raise BaseError(
            f"the tokenizer of the base model has the textual inversion {several[0]!r} with several vectors, and a "
            "prompt would take the first alone: add it with one vector, or leave it out"
        )
    if text.limit is None and not text.lower:
        return tokenizer
    from tokenizers.normalizers import Lowercase, Normalizer, Sequence

    own = copy.deepcopy(tokenizer)
    if text.limit is not None:
        own.model_max_length = min(int(own.model_max_length), text.limit)
    if text.lower:
        backend = own.backend_tokenizer
        steps: list[Normalizer] = [Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = Sequence(steps)
    return own


def _positions(encoder: Path) -> int | None:
    """How many tokens the text encoder's own configuration allows."""
    config = encoder / "config.json"
    return json.loads(config.read_text()).get("max_position_embeddings") if config.is_file() else None


class TokenCounter:
    """Token counts of many texts, equal to `len(words(tokenizer, text))`.

    No token of a CLIP tokenizer crosses a blank. So each distinct word is tokenised once, and the count of a text is
    the sum over its words. Other tokenizers, and those with an added token that contains a blank, count whole texts.
    """

    def __init__(self, tokenizer: Any, *, weighted: bool = False) -> None:
        """Start without counts.

        Args:
            tokenizer: of the base model.
            weighted: texts are parts of prompts with weights (`perfusion_ops.base.weights`).
        """
        self._tokenizer, self._weighted = tokenizer, weighted
        self._special = frozenset(tokenizer.all_special_ids)
        clip = type(tokenizer).__name__ in {"CLIPTokenizer", "CLIPTokenizerFast"}
        self._by_word = clip and not any(re.search(r"\s", token) for token in tokenizer.get_added_vocab())
        self._counts: dict[str, int] = {}

    def of_weights(self) -> "TokenCounter":
        """A counter of parts of prompts with weights, by the same tokenizer."""
        return TokenCounter(self._tokenizer, weighted=True)

    @property
    def marks(self) -> int:
        """Start and end tokens of every text: some tokenizers have no start."""
        return 1 if self._tokenizer.bos_token_id is None else 2

    @property
    def limit(self) -> int:
        """The most tokens that the text encoder reads, with start and end."""
        return int(self._tokenizer.model_max_length)

    def count(self, text: str) -> int:
        """Tokens of a text without start and end."""
        if self._weighted:
            return sum(map(self._count, weighted_texts(text)))
        return self._count(text)

    def _count(self, text: str) -> int:
        if not self._by_word:
            return len(words(self._tokenizer, text))
        total = 0
        for word in text.split(" "):
            found = self._counts.get(word)
            total += self._measure(word) if found is None else found
        return total

    def units(self, text: str) -> list[str]:
        """The smallest parts of a text whose counts add up to its count, whatever each part is replaced by."""
        return text.split(" ") if self._by_word else [text]

    def knows(self, text: str) -> bool:
        """Whether at least one token represents characters of the text.

        Characters that are not in the vocabulary become a special token, which carries no meaning.
        """
        return not self._special.issuperset(words(self._tokenizer, text))

    def _measure(self, word: str) -> int:
        if len(self._counts) >= _MAX_CACHED:
            self._counts.clear()
        self._counts[word] = found = len(words(self._tokenizer, word))
        return found
