"""Prompts with concepts: token ids, positions of concepts, and encodings by the frozen text encoder.

A prompt holds `{0}`, `{1}`, ... for its concepts. Each concept is ONE position whose word embedding v* replaces the
looked-up one, so the tokenizer and the encoder's vocabulary are unchanged. Under recipe `offset`, the words of the
superclass follow that position. Positions are found while tokenising, never by counting spaces.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.base.tokenizer import pieces, words
from perfusion_ops.base.weights import fragments
from perfusion_ops.errors import PerfusionError

__all__ = ["PromptTooLongError", "Tokens", "encode", "pieces", "renumber", "substitute", "tokenize", "words"]


def renumber(prompt: str) -> tuple[str, tuple[int, ...]]:
    """Number the concepts of a prompt 0, 1, ... in the order in which they first appear.

    Returns:
        The renumbered prompt, and the old number of each concept in the new order.

    >>> renumber("a {2} on a {0} and a {2}")
    ('a {0} on a {1} and a {0}', (2, 0))
    """
    texts, numbers = pieces(prompt)
    place = {number: index for index, number in enumerate(dict.fromkeys(numbers))}
    placed = (f"{{{place[number]}}}{text}" for number, text in zip(numbers, texts[1:], strict=True))
    return "".join([texts[0], *placed]), tuple(place)


class PromptTooLongError(PerfusionError, ValueError):
    """The prompt has more tokens than the text encoder takes; cutting it would drop words silently."""


@dataclass(frozen=True)
class Tokens:
    """One prompt as the text encoder takes it.

    Attributes:
        ids: N token ids, padded.
        slots: N numbers: the concept at the position, or -1.
        length: tokens up to and including the first end token.
        nouns: N numbers: the concept whose superclass ends at the position, or -1; empty if none is spelt out.
        others: the ids for each further text encoder of the base model; only the padding differs.
        weights: N weights of the positions; empty if all are 1.
    """

    ids: tuple[int, ...]
    slots: tuple[int, ...]
    length: int
    nouns: tuple[int, ...] = ()
    others: tuple[tuple[int, ...], ...] = ()
    weights: tuple[float, ...] = ()


def tokenize(
    tokenizer: Any, prompt: str, nouns: Sequence[str] = (), spelled: Collection[int] = (), *, weighted: bool = False
) -> Tokens:
    """Tokenise a prompt; each concept becomes one token.

    Args:
        tokenizer: a CLIPTokenizer.
        prompt: see the module.
        nouns: by concept number the words that follow its token; "" for none, which is also the default.
        spelled: numbers of concepts that have no token, only their words.
        weighted: the prompt has weights (`perfusion_ops.base.weights`).

    Raises:
        PromptTooLongError: it does not fit the tokenizer's `model_max_length`.
        ValueError: its weights are not well formed.
    """
    ids = _start(tokenizer)
    slots, ends, weights = [-1] * len(ids), [-1] * len(ids), [1.0] * len(ids)
    for text, number, weight in _parts(prompt, weighted):
        tokens = words(tokenizer, text)
        ids += tokens
        slots += [-1] * len(tokens)
        ends += [-1] * len(tokens)
        if number is not None:
            # The embedding of this id is replaced, so any id works that is neither the end nor the padding.
            place = tokenizer.unk_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            noun = words(tokenizer, nouns[number]) if nouns else []
            own = [] if number in spelled else [number]
            ids += [*([place] * len(own)), *noun]
            slots += [*own, *([-1] * len(noun))]
            ends += [*([-1] * (len(own) + len(noun) - 1)), number if noun else -1]
        weights += [weight] * (len(ids) - len(weights))
    tokens = _padded(tokenizer, ids, slots, ends if any(nouns) else [])
    if all(weight == 1 for weight in weights):
        return tokens
    return replace(tokens, weights=(*weights, *([1.0] * (len(tokens.ids) - len(weights)))))


def _parts(prompt: str, weighted: bool) -> Iterator[tuple[str, int | None, float]]:
    """The texts of a prompt, each with the number of the concept behind it, if there is one, and the weight of both."""
    for fragment, weight in fragments(prompt) if weighted else [(prompt, 1.0)]:
        texts, numbers = pieces(fragment)
        yield from ((text, number, weight) for text, number in zip(texts, (*numbers, None), strict=True))


def substitute(
    tokenizer: Any,
    prompt: str,
    superclasses: Sequence[str],
    nouns: Sequence[str] = (),
    spelled: Collection[int] = (),
    *,
    weighted: bool = False,
) -> tuple[Tokens, tuple[int, ...]]:
    """The same prompt with every concept spelt as its superclass, aligned to `tokenize(prompt, nouns, spelled)`.

    Returns:
        The tokens, and for each of the N positions of the concept prompt the position here that corresponds to it: a
        concept corresponds to the last sub-token of its superclass, where a causal encoder has read the whole word. If
        the concept prompt spells the superclass out, its sub-tokens correspond to the ones here.

    Raises:
        PromptTooLongError: it does not fit the tokenizer's `model_max_length`.
        ValueError: its weights are not well formed.
    """
    ids = _start(tokenizer)
    align = list(range(len(ids)))
    for text, number, _ in _parts(prompt, weighted):
        for token in words(tokenizer, text):
            align.append(len(ids))
            ids.append(token)
        if number is not None:
            start = len(ids)
            ids += words(tokenizer, superclasses[number])
            align += [] if number in spelled else [len(ids) - 1]
            align += range(start, len(ids)) if nouns and nouns[number] else ()
    tokens = _padded(tokenizer, ids, [-1] * len(ids), [])
    maximum = len(tokens.ids)
    tail = range(len(ids), len(ids) + maximum - len(align))
    return tokens, (*align, *(min(position, maximum - 1) for position in tail))


def _start(tokenizer: Any) -> list[int]:
    """The start token, which some tokenizers do not have."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _padded(tokenizer: Any, ids: list[int], slots: list[int], nouns: list[int]) -> Tokens:
    maximum = int(tokenizer.model_max_length)
    length = len(ids) + 1
    if length > maximum:
        raise PromptTooLongError(
            f"the prompt has {length} tokens with start and end, the text encoder takes {maximum}: shorten it"
        )
    padding = maximum - length
    return Tokens(
        ids=(*ids, tokenizer.eos_token_id, *([tokenizer.pad_token_id] * padding)),
        slots=(*slots, *([-1] * (padding + 1))),
        length=length,
        nouns=(*nouns, *([-1] * (padding + 1))) if nouns else (),
    )


def encode(text_encoder: nn.Module, tokens: Sequence[Tokens], embeddings: Tensor | None = None) -> Tensor:
    """Encodings e of B prompts: the encoder's last hidden state, as diffusers feeds it to SD 1.x and 2.x.

    Args:
        text_encoder: a frozen CLIPTextModel.
        tokens: B tokenised prompts of equal N.
        embeddings: v*, (B, J, E): the word embeddings of each row's concepts; gradients flow through the encoder to it.

    Returns:
        (B, N, D) in the encoder's type.
    """
    return encoder_output(text_encoder, tokens, embeddings).last_hidden_state


def encoder_output(
    text_encoder: Any,
    tokens: Sequence[Tokens],
    embeddings: Tensor | None = None,
    *,
    which: int = 0,
    hidden: bool = False,
    masked: bool = False,
) -> Any:
    """What a text encoder returns for B prompts, with v* in the place of its concepts' word embeddings.

    Args:
        text_encoder: a frozen encoder of transformers.
        tokens: see `encode`.
        embeddings: see `encode`.
        which: number of the encoder among those of the base model.
        hidden: whether all hidden states are returned.
        masked: whether positions behind the end token are hidden from the encoder.
    """
    table: Any = text_encoder.get_input_embeddings()
    device = table.weight.device
    ids = torch.tensor([row.others[which - 1] if which else row.ids for row in tokens], device=device)
    options: dict[str, Any] = {"output_hidden_states": True} if hidden else {}
    if masked:
        lengths = torch.tensor([row.length for row in tokens], device=device)
        options["attention_mask"] = (torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]).long()
    if embeddings is None:
        return text_encoder(ids, **options)
    slots = torch.tensor([row.slots for row in tokens], device=device)
    chosen = embeddings.to(table.weight.dtype).gather(
        1, slots.clamp(min=0)[..., None].expand(-1, -1, embeddings.shape[-1])
    )

    replaced: list[bool] = []

    def replace(_module: nn.Module, _inputs: tuple[Tensor, ...], looked_up: Tensor) -> Tensor:
        replaced.append(True)
        return torch.where((slots >= 0)[..., None], chosen, looked_up)

    # Some encoders look words up in a second module that shares the table's weights.
    tables = [each for each in text_encoder.modules() if getattr(each, "weight", None) is table.weight]
    hooks = [each.register_forward_hook(replace) for each in tables if isinstance(each, nn.Embedding)]
    try:
        output = text_encoder(ids, **options)
    finally:
        for hook in hooks:
            hook.remove()
    if len(replaced) != 1:
        raise RuntimeError(f"{type(text_encoder).__name__} looked its words up {len(replaced)} times, not once")
    return output
