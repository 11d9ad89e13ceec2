"""Prompts with concepts: token ids, positions of concepts, and encodings by the frozen text encoder.

A prompt holds `{0}`, `{1}`, ... for its concepts. Each concept is ONE position whose word embedding v* replaces the
looked-up one, so the tokenizer and the encoder's vocabulary are unchanged. Under recipe `offset`, the words of the
superclass follow that position. Positions are found while tokenising, never by counting spaces.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.base.chunks import divide
from perfusion_ops.base.tokenizer import pieces, words
from perfusion_ops.base.weights import fragments
from perfusion_ops.errors import PerfusionError

__all__ = [
    "PromptTooLongError",
    "Tokens",
    "encode",
    "pieces",
    "renumber",
    "side_by_side",
    "substitute",
    "tokenize",
    "words",
]


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
        chunks: how many encodings of equal length lie side by side (`perfusion_ops.base.chunks`).
    """

    ids: tuple[int, ...]
    slots: tuple[int, ...]
    length: int
    nouns: tuple[int, ...] = ()
    others: tuple[tuple[int, ...], ...] = ()
    weights: tuple[float, ...] = ()
    chunks: int = 1


@dataclass
class _Body:
    """The tokens of a prompt without start, end and padding, each with its properties; see `Tokens`.

    Attributes:
        ids: token ids.
        slots: concepts.
        ends: concepts whose superclass ends here.
        weights: of words.
        glued: whether a token must be encoded in the chunk of the one before it.
    """

    ids: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    glued: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], weight: float, *, slot: int = -1, noun: int = -1, group: bool = False) -> None:
        """Append tokens; the first one is concept `slot`, and the last one ends the superclass of concept `noun`."""
        count = len(ids)
        if not count:
            return
        self.ids += ids
        self.slots += [slot, *([-1] * (count - 1))]
        self.ends += [*([-1] * (count - 1)), noun]
        self.weights += [weight] * count
        self.glued += [False, *([group] * (count - 1))]


def tokenize(
    tokenizer: Any,
    prompt: str,
    nouns: Sequence[str] = (),
    spelled: Collection[int] = (),
    *,
    weighted: bool = False,
    chunks: int = 1,
) -> Tokens:
    """Tokenise a prompt; each concept becomes one token.

    Args:
        tokenizer: a CLIPTokenizer.
        prompt: see the module.
        nouns: by concept number the words that follow its token; "" for none, which is also the default.
        spelled: numbers of concepts that have no token, only their words.
        weighted: the prompt has weights (`perfusion_ops.base.weights`).
        chunks: see `Tokens`.

    Raises:
        PromptTooLongError: it does not fit the tokenizer's `model_max_length`, or that many chunks of it.
        ValueError: its weights are not well formed.
    """
    tokens, _ = _laid_out(tokenizer, _body(tokenizer, prompt, nouns, spelled, weighted), chunks)
    return replace(
        tokens,
        nouns=tokens.nouns if any(nouns) else (),
        weights=() if all(weight == 1 for weight in tokens.weights) else tokens.weights,
    )


def _body(tokenizer: Any, prompt: str, nouns: Sequence[str], spelled: Collection[int], weighted: bool) -> _Body:
    """The tokens of a prompt; see `tokenize`."""
    body = _Body()
    # The embedding of this id is replaced, so any id works that is neither the end nor the padding.
    place = tokenizer.unk_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for text, number, weight in _parts(prompt, weighted):
        body.add(words(tokenizer, text), weight)
        if number is None:
            continue
        noun = words(tokenizer, nouns[number]) if nouns else []
        own = number not in spelled
        ids = [*([place] if own else []), *noun]
        body.add(ids, weight, slot=number if own else -1, noun=number if noun else -1, group=True)
    return body


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
    chunks: int = 1,
) -> tuple[Tokens, tuple[int, ...]]:
    """The same prompt with every concept spelt as its superclass, aligned to `tokenize(prompt, nouns, spelled)`.

    Returns:
        The tokens, and for each of the N positions of the concept prompt the position here that corresponds to it: a
        concept corresponds to the last sub-token of its superclass, where a causal encoder has read the whole word. If
        the concept prompt spells the superclass out, its sub-tokens correspond to the ones here.

    Raises:
        PromptTooLongError: it does not fit, as in `tokenize`.
        ValueError: its weights are not well formed.
    """
    body, align = _Body(), list[int]()
    for text, number, _ in _parts(prompt, weighted):
        ids = words(tokenizer, text)
        align += range(len(body.ids), len(body.ids) + len(ids))
        body.add(ids, 1.0)
        if number is not None:
            start, ids = len(body.ids), words(tokenizer, superclasses[number])
            body.add(ids, 1.0, group=True)
            own = [] if number in spelled else [len(body.ids) - 1]
            noun = range(start, len(body.ids)) if nouns and nouns[number] else ()
            align += [*own, *noun]
    tokens, places = _laid_out(tokenizer, body, chunks)
    _, positions = _laid_out(tokenizer, _body(tokenizer, prompt, nouns, spelled, weighted), chunks)
    maximum = int(tokenizer.model_max_length)
    found = dict(zip(positions.body, (places.body[each] for each in align), strict=True))
    for chunk, (here, there) in enumerate(zip(positions.ends, places.ends, strict=True)):
        last = (chunk + 1) * maximum - 1
        found |= {chunk * maximum + offset: chunk * maximum + offset for offset in range(len(_start(tokenizer)))}
        found |= {here + offset: min(there + offset, last) for offset in range(last - here + 1)}
    return replace(tokens, nouns=(), weights=()), tuple(found[place] for place in range(chunks * maximum))


def _start(tokenizer: Any) -> list[int]:
    """The start token, which some tokenizers do not have."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


@dataclass(frozen=True)
class _Places:
    """Where the tokens of a body are, and the end token of each chunk."""

    body: list[int]
    ends: list[int]


def _laid_out(tokenizer: Any, body: _Body, chunks: int) -> tuple[Tokens, _Places]:
    """The chunks of a body side by side, each with start, end and padding."""
    maximum = int(tokenizer.model_max_length)
    start = _start(tokenizer)
    room = maximum - len(start) - 1
    parts = divide(body.glued, _inside(tokenizer, body) if len(body.ids) > room else body.glued, chunks, room)
    if parts is None:
        length, most = len(body.ids) + len(start) + 1, chunks * room + len(start) + 1
        reads = f"the text encoder takes {maximum}" + (f", and {chunks} chunks take {most} at most" * (chunks > 1))
        raise PromptTooLongError(f"the prompt has {length} tokens with start and end, {reads}: shorten it")
    ids, slots, ends, weights, places, stops = [], [], [], [], list[int](), list[int]()
    for chunk, (first, stop) in enumerate(parts):
        padding = room - (stop - first)
        places += range(chunk * maximum + len(start), chunk * maximum + len(start) + stop - first)
        stops.append(chunk * maximum + len(start) + stop - first)
        ids += [*start, *body.ids[first:stop], tokenizer.eos_token_id, *([tokenizer.pad_token_id] * padding)]
        for row, values, nothing in ((slots, body.slots, -1), (ends, body.ends, -1), (weights, body.weights, 1.0)):
            row += [*([nothing] * len(start)), *values[first:stop], *([nothing] * (padding + 1))]
    tokens = Tokens(tuple(ids), tuple(slots), stops[0] + 1, tuple(ends), weights=tuple(weights), chunks=chunks)
    return tokens, _Places(places, stops)


def _inside(tokenizer: Any, body: _Body) -> list[bool]:
    """By token, whether it continues the word of the one before; CLIP's tokenizers mark the last token of a word."""
    texts = tokenizer.convert_ids_to_tokens(body.ids)
    continued = [
        slot < 0 and not text.endswith("</w>") and text not in tokenizer.all_special_tokens
        for text, slot in zip(texts, body.slots, strict=True)
    ]
    return [False, *continued[:-1]]


def encode(text_encoder: nn.Module, tokens: Sequence[Tokens], embeddings: Tensor | None = None) -> Tensor:
    """Encodings e of B prompts: the encoder's last hidden state, as diffusers feeds it to SD 1.x and 2.x.

    Args:
        text_encoder: a frozen CLIPTextModel.
        tokens: B tokenised prompts of equal N and equal numbers of chunks.
        embeddings: v*, (B, J, E): the word embeddings of each row's concepts; gradients flow through the encoder to it.

    Returns:
        (B, N, D) in the encoder's type.
    """
    return side_by_side(encoder_output(text_encoder, tokens, embeddings).last_hidden_state, tokens)


def side_by_side(encodings: Tensor, tokens: Sequence[Tokens]) -> Tensor:
    """Encodings (B C, N, D) of the chunks of B prompts as one encoding of each prompt, (B, C N, D)."""
    return encodings.reshape(len(tokens), -1, encodings.shape[-1])


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
        masked: whether positions behind the end token are hidden from the encoder; of prompts of one chunk.

    Returns:
        Its output for B C rows, those of one prompt's C chunks one after the other.
    """
    table: Any = text_encoder.get_input_embeddings()
    device = table.weight.device
    chunks = tokens[0].chunks
    ids = torch.tensor([row.others[which - 1] if which else row.ids for row in tokens], device=device)
    ids = ids.reshape(len(tokens) * chunks, -1)
    options: dict[str, Any] = {"output_hidden_states": True} if hidden else {}
    if masked:
        lengths = torch.tensor([row.length for row in tokens], device=device)
        options["attention_mask"] = (torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]).long()
    if embeddings is None:
        return text_encoder(ids, **options)
    slots = torch.tensor([row.slots for row in tokens], device=device).reshape(ids.shape)
    chosen = (
        embeddings.to(table.weight.dtype)
        .repeat_interleave(chunks, 0)
        .gather(1, slots.clamp(min=0)[..., None].expand(-1, -1, embeddings.shape[-1]))
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
