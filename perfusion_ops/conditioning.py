"""From prompts with concepts to the pre-projected conditioning of the denoiser: the edit of a mixed batch.

Each row has its own concepts, biases, temperatures and lock. A row without concepts gets exactly the projections of the
unmodified model. A concept of recipe `offset` acts here through its word alone; `perfusion_ops.regions` adds the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from perfusion_ops.base_model import Base
from perfusion_ops.concept import Concept, GatedConcept, Spelled
from perfusion_ops.config import Combine, Lock
from perfusion_ops.edit import gate_and_remove, project, solve_targets
from perfusion_ops.families.family import POOLED
from perfusion_ops.metric import Metric
from perfusion_ops.text import PromptTooLongError, Tokens, pieces, renumber


@dataclass(frozen=True)
class PromptRow:
    """One prompt and the settings of its concepts.

    Attributes:
        prompt: text with `{0}`, `{1}`, ... for the concepts.
        concepts: the concepts by number.
        bias: the paper's beta, per concept of the row.
        temperature: the paper's tau, per concept of the row.
        lock: local or global key-locking; `trained` uses the keys that a concept has learned.
        combine: how several concepts act together; see `perfusion_ops.regions`. `condition` is always Eq. 4.
        strength: factor of the offsets of recipe `offset`.
        weighted: the prompt has weights (`perfusion_ops.base.weights`).
        chunks: encodings of the text encoder's length that lie side by side (`perfusion_ops.base.chunks`).
    """

    prompt: str
    concepts: tuple[Concept | Spelled, ...] = ()
    bias: tuple[float, ...] = ()
    temperature: tuple[float, ...] = ()
    lock: Lock = "local"
    combine: Combine = "paper"
    strength: float = 1.0
    weighted: bool = False
    chunks: int = 1


def prompt_row(
    text: str,
    concepts: Sequence[Concept],
    *,
    bias: float,
    temperature: float,
    lock: Lock,
    combine: Combine = "paper",
    strength: float = 1.0,
    weighted: bool = False,
    everywhere: Sequence[Concept | Spelled] = (),
) -> PromptRow:
    """The row of a text with the concepts that it names by number; other concepts do not act in it.

    Args:
        text: a prompt or a negative prompt with `{0}`, `{1}`, ... for the concepts that it names.
        concepts: concepts by number.
        bias: of every concept of the row; see `PromptRow`.
        temperature: of every concept.
        lock: see `PromptRow`.
        combine: see `PromptRow`.
        strength: see `PromptRow`.
        weighted: see `PromptRow`.
        everywhere: concepts that act in the row whether the text names them or not.

    Raises:
        ValueError: the text names a concept number that is absent.
    """
    prompt, numbers = renumber(text)
    if max(numbers, default=-1) >= len(concepts):
        raise ValueError(f"{text!r} names the concept {{{max(numbers)}}}, but there are {len(concepts)} concepts")
    named = [concepts[number] for number in numbers]
    acting = (*named, *(concept for concept in everywhere if not any(concept is each for each in named)))
    biases, temperatures = (bias,) * len(acting), (temperature,) * len(acting)
    return PromptRow(prompt, acting, biases, temperatures, lock, combine, strength, weighted)


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is given for B prompts.

    Attributes:
        kv: keys and values of all layers, (B, N, R).
        extra: what the family needs beside them, each with B rows; see `perfusion_ops.families.family`.
    """

    kv: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, index: Tensor) -> "Conditioning":
        """The prompts chosen by an index (P,)."""
        return Conditioning(self.kv[index], {name: each[index] for name, each in self.extra.items()})

    def expand(self, rows: int) -> "Conditioning":
        """One prompt as `rows` equal ones, without a copy."""
        extra = {name: each.expand(rows, *each.shape[1:]) for name, each in self.extra.items()}
        return Conditioning(self.kv.expand(rows, -1, -1), extra)

    def beside(self, columns: Tensor) -> "Conditioning":
        """The same prompts with further columns (B, N, C) behind their keys and values, for another model."""
        return Conditioning(torch.cat([self.kv, columns], -1), self.extra)

    def with_zeros(self, index: Tensor) -> "Conditioning":
        """The same prompts, those chosen by an index (P,) as zeros."""
        return Conditioning(
            self.kv.index_fill(0, index, 0), {name: each.index_fill(0, index, 0) for name, each in self.extra.items()}
        )


@dataclass(frozen=True)
class _Plan:
    tokens: tuple[Tokens, ...]
    plain: dict[int, tuple[Tokens, tuple[int, ...]]]  # rows with a superclass prompt, and its alignment
    locked: tuple[int, ...]  # rows under global lock: their keys come from the superclass prompt


def _plan(base: Base, rows: Sequence[PromptRow]) -> _Plan:
    for row in rows:
        if max(pieces(row.prompt)[1], default=-1) >= len(row.concepts):
            raise ValueError(f"{row.prompt!r} names a concept number that its {len(row.concepts)} concepts do not have")
    named = {index for index, row in enumerate(rows) if len(_spelled(row)) < len(row.concepts)}
    locked = tuple(index for index in sorted(named) if rows[index].lock == "global")
    plain = {
        index: base.texts.substitute(
            rows[index].prompt,
            [concept.superclass for concept in rows[index].concepts],
            [concept.noun for concept in rows[index].concepts],
            _spelled(rows[index]),
            weighted=rows[index].weighted,
            chunks=rows[index].chunks,
        )
        for index in (sorted(named) if base.folder.pools_superclasses else locked)
    }
    return _Plan(tuple(prompt_tokens(base, row) for row in rows), plain, locked)


def prompt_tokens(base: Base, row: PromptRow) -> Tokens:
    """The tokens of a row's prompt, with the words that its concepts bring.

    Raises:
        PromptTooLongError: they do not fit the text encoder.
    """
    nouns = [concept.noun for concept in row.concepts]
    return base.texts.tokenize(row.prompt, nouns, _spelled(row), weighted=row.weighted, chunks=row.chunks)


def _spelled(row: PromptRow) -> frozenset[int]:
    return frozenset(number for number, concept in enumerate(row.concepts) if isinstance(concept, Spelled))


def count_chunks(base: Base, rows: Sequence[PromptRow], most: int) -> int:
    """The fewest chunks, up to `most`, into which each of some prompts fits.

    Raises:
        PromptTooLongError: one does not fit.
    """
    for chunks in range(1, most + 1):
        try:
            for row in rows:
                _plan(base, [replace(row, chunks=chunks)])
        except PromptTooLongError:
            if chunks == most:
                raise
        else:
            return chunks
    raise ValueError(f"most is {most}: use 1 or more")


@torch.no_grad()
def condition(base: Base, metric: Metric, rows: Sequence[PromptRow]) -> Conditioning:
    """Keys and values of B prompts for all layers (Eqs. 3 and 4), local, global or trained lock.

    A pooled vector has no positions that an edit could be gated by, so it would bypass the key lock: it is the one of
    the prompt with superclasses in the concepts' place, unless `pooled` in perfusion.json says otherwise.

    Args:
        base: the base model.
        metric: its metric, on any device.
        rows: B rows; each has as many biases and temperatures as concepts.

    Returns:
        Keys and values (B, N, R) in the denoiser's type, which are its `encoder_hidden_states`, and the extras.

    Raises:
        PromptTooLongError: a prompt does not fit the text encoder.
        ValueError: two concepts of one row have the same direction, a prompt names a concept number that is absent, or
            the lock is `trained` and a concept has no trained keys.
    """
    plan = _plan(base, rows)
    distinct = {(id(concept), row.lock == "trained"): concept for row in rows for concept in row.concepts}
    order = {key: index for index, key in enumerate(distinct)}
    slots = max((len(row.concepts) for row in rows), default=0)
    if slots == 0:
        encoded = base.texts.encode(plan.tokens)
        plain = encoded.encodings.to(base.dtype) @ base.stack.weight.mT
        return _typed(base, _weighted(base, plan.tokens, plain, base.stack.weight), encoded.extra)
    device = base.device
    index = torch.zeros(len(rows), slots, dtype=torch.long)
    used = torch.zeros(len(rows), slots, dtype=torch.bool)
    bias, temperature = torch.zeros(len(rows), slots), torch.ones(len(rows), slots)
    for b, row in enumerate(rows):
        for j, concept in enumerate(row.concepts):
            index[b, j] = order[id(concept), row.lock == "trained"]
            used[b, j] = isinstance(concept, GatedConcept)
            bias[b, j], temperature[b, j] = row.bias[j], row.temperature[j]
    index, used, bias, temperature = index.to(device), used.to(device), bias.to(device), temperature.to(device)
    concepts = list(distinct.values())
    wordless = torch.zeros(base.embedding_width)
    embeddings = torch.stack(
        [wordless if isinstance(concept, Spelled) else concept.embedding for concept in concepts]
    ).to(device)[index]
    unedited = torch.zeros(base.text_width), torch.zeros(len(base.stack.weight), device=device)
    inputs = torch.stack(
        [concept.target_input if isinstance(concept, GatedConcept) else unedited[0] for concept in concepts]
    ).to(device)[index]
    outputs = torch.stack(
        [
            concept.outputs(base.stack, trained_keys=trained) if isinstance(concept, GatedConcept) else unedited[1]
            for (_, trained), concept in distinct.items()
        ]
    )[index]
    encoded = base.texts.encode(plan.tokens, embeddings)
    encodings = encoded.encodings
    targets = solve_targets(inputs, used, metric.inverse.to(device))
    linear = torch.tensor([isinstance(c, GatedConcept) and c.gate == "linear" for c in concepts], device=device)[index]
    kept, gates = gate_and_remove(encodings, targets, bias, temperature, linear)
    # A row without an edit keeps the encoder's own encodings: it is bit-identical to the unmodified model's.
    kept = torch.where(used.any(1)[:, None, None], kept, encodings)
    result = project(kept, gates, outputs, base.stack.weight)
    extra = _with_superclasses(base, plan, result, encoded.extra) if plan.plain else encoded.extra
    return _typed(base, _weighted(base, plan.tokens, result, base.stack.weight), extra)


@torch.no_grad()
def project_superclasses(base: Base, rows: Sequence[PromptRow], weight: Tensor) -> Tensor:
    """Keys and values of B prompts for a model that has projections of its own, such as a ControlNet.

    No concept has target outputs for it, so it is given the unedited encodings of the prompts with the superclasses in
    the concepts' place, as under global key-locking. Weights of words act as in the base model.

    Args:
        base: the base model, whose text encoders are used.
        rows: B rows.
        weight: the projections, (R_c, D).

    Returns:
        (B, N, R_c) in the type of `weight`.

    Raises:
        PromptTooLongError: a prompt with its superclasses does not fit the text encoder.
    """
    plain = [replace(row, concepts=tuple(Spelled(concept.superclass) for concept in row.concepts)) for row in rows]
    tokens = [prompt_tokens(base, row) for row in plain]
    columns = base.texts.encode(tokens).encodings.to(weight.dtype) @ weight.mT
    return _weighted(base, tokens, columns, weight)


def _weighted(base: Base, tokens: Sequence[Tokens], kv: Tensor, weight: Tensor) -> Tensor:
    """Keys and values (B, N, R), moved away from those of the empty prompt or towards them by the prompts' weights.

    It comes after the edit: weights change how much is seen of a word, and not what the gates see.
    """
    rows = [index for index, each in enumerate(tokens) if each.weights]
    if not rows:
        return kv
    if not base.folder.family.weights_words:
        raise ValueError(f"{base.folder.family.title} has no weights of words: set prompt_weights to false")
    nothing = base.texts.encode([base.texts.tokenize("", chunks=tokens[0].chunks)])
    empty = (nothing.encodings.to(weight.dtype) @ weight.mT).float()
    weights = torch.tensor([tokens[index].weights for index in rows], device=kv.device)[..., None]
    moved = kv.clone()
    moved[rows] = torch.where(weights == 1, kv[rows], (empty + weights * (kv[rows].float() - empty)).to(kv.dtype))
    return moved


def _typed(base: Base, kv: Tensor, extra: Mapping[str, Tensor]) -> Conditioning:
    return Conditioning(
        kv, {name: each.to(base.dtype) if each.is_floating_point() else each for name, each in extra.items()}
    )


def _with_superclasses(base: Base, plan: _Plan, result: Tensor, extra: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What is taken from superclass prompts: the keys of global rows, in place (section 4.3), and pooled vectors."""
    encoded = base.texts.encode([tokens for tokens, _ in plan.plain.values()])
    place = {index: number for number, index in enumerate(plan.plain)}
    if plan.locked:
        chosen = [place[index] for index in plan.locked]
        align = torch.tensor([plan.plain[index][1] for index in plan.locked], device=result.device)
        encodings = encoded.encodings[chosen]
        aligned = encodings.gather(1, align[..., None].expand(-1, -1, encodings.shape[-1]))
        result[list(plan.locked), :, : base.stack.key_rows] = aligned.to(base.dtype) @ base.stack.keys.mT
    if POOLED not in extra or base.folder.settings.pooled == "concept":
        return extra
    pooled = extra[POOLED].clone()
    pooled[list(plan.plain)] = encoded.extra[POOLED]
    return {**extra, POOLED: pooled}
