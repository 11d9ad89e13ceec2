"""The text encoders of a base model as one: prompts to token ids and encodings, whatever the family.

Encodings of several encoders lie side by side, (B, N, D) with D the sum of their widths. So do word embeddings: v* of a
concept is one vector of E numbers, of which each encoder takes its own part.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.families.family import MASK, POOLED, Text
from perfusion_ops.text import Tokens, encoder_output, side_by_side, substitute, tokenize


@dataclass(frozen=True)
class TextModel:
    """One tokenizer and its frozen encoder in float32, and what the family reads from it."""

    text: Text
    tokenizer: Any
    encoder: nn.Module

    @property
    def table(self) -> Tensor:
        """Its word embeddings, (V, E_k)."""
        encoder: Any = self.encoder
        return encoder.get_input_embeddings().weight


@dataclass(frozen=True)
class Encoded:
    """B prompts as the denoiser is given them, before the projection to keys and values.

    Attributes:
        encodings: e, (B, N, D).
        extra: what the family needs beside them, by name; see `perfusion_ops.families.family`.
    """

    encodings: Tensor
    extra: Mapping[str, Tensor]


@dataclass(frozen=True)
class TextModels:
    """The text encoders of one base model, in the order of its family, and the projection behind them if it has one."""

    models: tuple[TextModel, ...]
    projection: nn.Module | None = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that counts: all of them split a text into the same tokens (`check` in `tokenize`)."""
        return self.models[0].tokenizer

    @property
    def device(self) -> torch.device:
        """The encoders' device."""
        return self.models[0].table.device

    @property
    def embedding_width(self) -> int:
        """E, the sum of the widths of the word embeddings."""
        return sum(self.widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of the word embeddings of each text encoder."""
        return tuple(model.table.shape[1] for model in self.models)

    def embeddings(self, ids: Sequence[int] | None = None) -> Tensor:
        """Mean word embedding of token ids, or of all words if None: (E,)."""
        return torch.cat(
            [(model.table if ids is None else model.table[list(ids)]).mean(0) for model in self.models]
        ).detach()

    def tokenize(
        self,
        prompt: str,
        nouns: Sequence[str] = (),
        spelled: Collection[int] = (),
        *,
        weighted: bool = False,
        chunks: int = 1,
    ) -> Tokens:
        """`perfusion_ops.text.tokenize` for all encoders.

        Raises:
            PromptTooLongError: it does not fit.
            ValueError: the tokenizers split the prompt differently, or the encoders read prompts in one piece only.
        """
        if chunks > 1 and any(model.text.masked for model in self.models):
            raise ValueError("the text encoder ignores padding and reads prompts in one piece: set prompt_chunks to 1")
        return _merged(
            [
                tokenize(model.tokenizer, prompt, nouns, spelled, weighted=weighted, chunks=chunks)
                for model in self.models
            ]
        )

    def substitute(
        self,
        prompt: str,
        superclasses: Sequence[str],
        nouns: Sequence[str] = (),
        spelled: Collection[int] = (),
        *,
        weighted: bool = False,
        chunks: int = 1,
    ) -> tuple[Tokens, tuple[int, ...]]:
        """`perfusion_ops.text.substitute` for all encoders.

        Raises:
            PromptTooLongError: it does not fit.
            ValueError: the tokenizers split the prompt differently.
        """
        found = [
            substitute(model.tokenizer, prompt, superclasses, nouns, spelled, weighted=weighted, chunks=chunks)
            for model in self.models
        ]
        return _merged([tokens for tokens, _ in found]), found[0][1]

    def encode(self, tokens: Sequence[Tokens], embeddings: Tensor | None = None) -> Encoded:
        """Encodings of B prompts, as diffusers gives them to the denoiser.

        Args:
            tokens: B tokenised prompts of equal N and equal numbers of chunks. The pooled vector is that of the first
                chunk.
            embeddings: v*, (B, J, E): the word embeddings of each row's concepts; gradients flow to it.
        """
        parts: list[Tensor] = []
        extra: dict[str, Tensor] = {}
        start = 0
        for number, model in enumerate(self.models):
            width = model.table.shape[1]
            own = None if embeddings is None else embeddings[..., start : start + width]
            start += width
            output = encoder_output(
                model.encoder, tokens, own, which=number, hidden=model.text.layer is not None, masked=model.text.masked
            )
            layer = model.text.layer
            hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
            parts.append(side_by_side(hidden, tokens))
            if model.text.pooled:
                extra[POOLED] = output[0][:: tokens[0].chunks]
            if model.text.masked:
                extra[MASK] = lengths_mask(tokens, model.table.device)
        return Encoded(self._joined(parts), extra)

    def encode_captions(self, captions: Sequence[str], *, padded: bool) -> tuple[Tensor, Tensor]:
        """Encodings (B, N, D) of plain captions, cut at the tokenizer's limit, and which positions are tokens (B, N).

        Args:
            captions: B texts.
            padded: pad to the tokenizer's limit; otherwise to the longest caption, which suits causal encoders only.
        """
        parts: list[Tensor] = []
        mask = torch.zeros(0)
        for model in self.models:
            whole = padded or model.text.masked
            rows = model.tokenizer(
                list(captions), padding="max_length" if whole else "longest", truncation=True, return_tensors="pt"
            )
            ids = rows["input_ids"].to(self.device)
            # The tokenizers split alike and differ in their padding alone.
            mask = rows["attention_mask"].to(self.device).bool() if model is self.models[0] else mask
            options: dict[str, Any] = {"attention_mask": mask.long()} if model.text.masked else {}
            layer = model.text.layer
            output = model.encoder(ids, output_hidden_states=layer is not None, **options)
            parts.append(output.last_hidden_state if layer is None else output.hidden_states[layer])
        return self._joined(parts), mask

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        joined = parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)
        return joined if self.projection is None else self.projection(joined)

    def each(self, change: Callable[[nn.Module], Any]) -> None:
        """Call a function with every encoder."""
        for model in self.models:
            change(model.encoder)


def lengths_mask(tokens: Sequence[Tokens], device: torch.device) -> Tensor:
    """Which positions of B prompts hold tokens, (B, N) of 0 and 1."""
    lengths = torch.tensor([row.length for row in tokens], device=device)
    return (torch.arange(len(tokens[0].ids), device=device)[None] < lengths[:, None]).long()


def _merged(rows: Sequence[Tokens]) -> Tokens:
    first, *others = rows
    for other in others:
        if (other.slots, other.length, other.nouns) != (first.slots, first.length, first.nouns):
            raise ValueError("the tokenizers of the base model split a prompt differently: copy the model again")
    return replace(first, others=tuple(other.ids for other in others)) if others else first
