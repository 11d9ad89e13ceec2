"""Concepts that act where their product is: offsets, and several concepts in one picture. Not in the paper.

The weights of an attention add up to one. So an offset o of the values at every position of a prompt adds a constant
to the layer's output, and a mask M per concept and pixel (`masks`) restricts it to the product:

    out(x) = A(x) V + sum_j M_j(x) o_j                                     recipe `offset`, all words in one prompt

Several concepts in one prompt share its encodings, and their looks blend. Under `combine: regional` each concept has a
prompt of its own, in which the other concepts are spelt as their superclasses. With A_P V_P the attention to the prompt
in which all are spelt as superclasses, and A_j V_j that to concept j's own prompt,

    out(x) = A_P(x) V_P + sum_j M_j(x) (A_j(x) V_j + o_j - A_P(x) V_P)     `combine: regional`

with o_j = 0 for a concept of recipe `paper`, whose edit is in V_j. In the first steps M is zero: the prompt alone
decides the layout.

The denoiser is unmodified: hooks on the modules of its cross-attention read and add what is needed. Concepts that keep
photos of their product also have a processor on its self-attention (`attention.references`), and those with an edit of
convolutions hooks on these (`attention.convolutions`).
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.attention.convolutions import ConvolutionBatch, edited, edited_layers, widths
from perfusion_ops.attention.maps import attention_to, cross_attentions, grid
from perfusion_ops.attention.masks import density, masks
from perfusion_ops.attention.references import ReferenceAttention, ReferenceBatch, installed
from perfusion_ops.base_model import Base
from perfusion_ops.concept import Concept, OffsetConcept, Spelled
from perfusion_ops.conditioning import Conditioning, PromptRow, condition, prompt_row, prompt_tokens
from perfusion_ops.metric import Metric

_WITHOUT = 0.05  # share of the steps, at least one, in which M is zero
_KEPT = 0.7  # of log D, from one of 20 steps to the next


@dataclass(frozen=True)
class Regions:
    """What the up to J concepts of B rows do where their products are.

    Attributes:
        values: o_j of all layers, (B, J, R / 2); zero in unused slots.
        nouns: (B, J, N): how much each position of the prompt counts as the noun of concept j; adds up to one.
        used: which slots hold a concept, (B, J) bool.
        own: keys and values of each concept's own prompt, (B, J, N, R); None if concepts share the prompt.
        references: photos of the products that the rows look at; None if no concept has any.
        convolutions: edits of convolutions; None if no concept has one.
    """

    values: Tensor
    nouns: Tensor
    used: Tensor
    own: Tensor | None = None
    references: ReferenceBatch | None = None
    convolutions: ConvolutionBatch | None = None

    def rows(self, index: Tensor) -> "Regions":
        """The rows chosen by an index (P,)."""
        own = None if self.own is None else self.own[index]
        references = None if self.references is None else self.references.rows(index)
        edits = None if self.convolutions is None else self.convolutions.rows(index)
        return Regions(self.values[index], self.nouns[index], self.used[index], own, references, edits)


def is_regional(row: PromptRow) -> bool:
    """Whether each concept of the row acts from a prompt of its own."""
    return row.combine == "regional" and len(row.concepts) > 1


def has_offsets(row: PromptRow) -> bool:
    """Whether a concept of the row is of recipe `offset`."""
    return any(isinstance(concept, OffsetConcept) for concept in row.concepts)


def has_references(row: PromptRow) -> bool:
    """Whether a concept of the row has photos to look at."""
    return any(isinstance(concept, OffsetConcept) and concept.references for concept in row.concepts)


def has_convolutions(row: PromptRow) -> bool:
    """Whether a concept of the row has an edit of convolutions."""
    return any(isinstance(concept, OffsetConcept) and concept.convolutions for concept in row.concepts)


def spelled(row: PromptRow, but: int | None = None) -> PromptRow:
    """The row with all its concepts spelt as their superclasses, except number `but`."""
    concepts = (
        concept if number == but else Spelled(concept.superclass) for number, concept in enumerate(row.concepts)
    )
    return replace(row, concepts=tuple(concepts))


def prompts_of(row: PromptRow) -> list[PromptRow]:
    """The prompts that are encoded for a row: itself, or the ones of a regional row."""
    if not is_regional(row):
        return [row]
    return [spelled(row), *(spelled(row, number) for number in range(len(row.concepts)))]


def condition_regions(base: Base, metric: Metric, rows: Sequence[PromptRow]) -> tuple[Conditioning, Regions]:
    """Conditioning of B rows that are all regional or all are not, and what acts in their regions.

    Raises:
        PromptTooLongError: as `conditioning.condition`.
        ValueError: the same; or a concept keeps photos, and the base model is for inpainting or has other latents; or
            a concept's edit of convolutions has another shape than the base model's.
    """
    plain = [spelled(row) for row in rows] if is_regional(rows[0]) else None
    regions = replace(
        row_regions(base, rows, plain),
        references=_references(base, metric, rows, plain),
        convolutions=_convolutions(base, rows, plain),
    )
    if plain is None:
        return condition(base, metric, rows), regions
    singles = [(b, j, spelled(row, j)) for b, row in enumerate(rows) for j in range(len(row.concepts))]
    prompts = condition(base, metric, plain)
    own = prompts.kv[:, None].repeat(1, regions.used.shape[1], 1, 1)
    places = torch.tensor([(b, j) for b, j, _ in singles], device=own.device)
    own[places[:, 0], places[:, 1]] = condition(base, metric, [single for _, _, single in singles]).kv
    return prompts, replace(regions, own=own)


def row_regions(base: Base, rows: Sequence[PromptRow], plain: Sequence[PromptRow] | None = None) -> Regions:
    """The offsets of B rows and where their nouns stand.

    Args:
        base: the base model.
        rows: B rows.
        plain: the prompts whose attention gives the masks, with every concept a slot; by default the rows themselves,
            with a slot for each concept of recipe `offset`.

    Raises:
        PromptTooLongError: a prompt does not fit the text encoder.
    """
    acting = _slots(rows, plain)
    tokens = [prompt_tokens(base, row) for row in plain or rows]
    slots, width = max(map(len, acting)), base.stack.key_rows
    values = torch.zeros(len(rows), slots, width)
    nouns = torch.zeros(len(rows), slots, len(tokens[0].ids))
    used = torch.zeros(len(rows), slots, dtype=torch.bool)
    for b, concepts in enumerate(acting):
        for slot, (number, concept) in enumerate(concepts):
            places = [place for place, noun in enumerate(tokens[b].nouns) if noun == number]
            if places:  # otherwise the concept acts in the row, but its prompt does not name it
                used[b, slot] = True
                nouns[b, slot, places] = 1 / len(places)
                if isinstance(concept, OffsetConcept):
                    values[b, slot] = rows[b].strength * concept.value_offset
    return Regions(values.to(base.device), nouns.to(base.device), used.to(base.device))


def _slots(rows: Sequence[PromptRow], plain: Sequence[PromptRow] | None) -> list[list[tuple[int, Concept | Spelled]]]:
    """The concepts that act in each row, with their numbers, in the order of their slots; see `row_regions`."""
    return [
        [(j, c) for j, c in enumerate(row.concepts) if plain is not None or isinstance(c, OffsetConcept)]
        for row in rows
    ]


def _references(
    base: Base, metric: Metric, rows: Sequence[PromptRow], plain: Sequence[PromptRow] | None = None
) -> ReferenceBatch | None:
    """The photos that B rows look at; None if no concept has any. See `row_regions`."""
    acting = _slots(rows, plain)
    kept = {id(c): (c, c.references) for row in acting for _, c in row if isinstance(c, OffsetConcept) and c.references}
    if not kept:
        return None
    if base.folder.inpaints:
        raise ValueError("a concept keeps photos, but the base model is for inpainting: train it with references 0")
    device, family = base.device, base.folder.family
    counts = [len(photos.latents) for _, photos in kept.values()]
    shapes = {photos.latents.shape[1:] for _, photos in kept.values()}
    if len(shapes) > 1 or next(iter(shapes))[0] != base.vae.config.latent_channels:
        raise ValueError("the photos of a concept are latents of another shape than the base model's: train it again")
    latents = torch.cat([photos.latents for _, photos in kept.values()]).to(device)
    # The photos are drawn as in training: the concept's word before its superclass, and its offset at every pixel.
    text = base.folder.settings.templates[0].format("{0}")
    prompts = [prompt_row(text, (concept,), bias=0.0, temperature=1.0, lock="local") for concept, _ in kept.values()]
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    told = everywhere(base, prompts, condition(base, metric, prompts)).rows(owner.to(device))
    height, width = (float(side * base.latent_factor) for side in latents.shape[2:])
    whole = torch.tensor([[height, width, 0.0, 0.0, height, width]]).expand(len(latents), -1)
    # A photo's noise depends on its number among those of its concept alone, so that rows do not depend on their batch.
    generators = [torch.Generator().manual_seed(number) for count in counts for number in range(count)]
    noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
    starts = itertools.accumulate(counts, initial=0)
    numbers = {key: range(start, start + count) for key, start, count in zip(kept, starts, counts, strict=False)}
    seen = [[(n, slot) for slot, (_, c) in enumerate(row) for n in numbers.get(id(c), ())] for row in acting]
    most = max(map(len, seen))
    shown, slots = torch.tensor([row + [(-1, 0)] * (most - len(row)) for row in seen]).unbind(2)
    return ReferenceBatch(
        latents=latents,
        masks=torch.cat([photos.masks for _, photos in kept.values()]).to(latents),
        kv=told.kv,
        noise=noise.to(latents),
        signal=_signal(base).to(latents),
        shown=shown.to(device),
        slots=slots.to(device),
        added=family.added(told.extra, whole.to(device, base.dtype) if family.time_ids else None),
    )


def _convolutions(
    base: Base, rows: Sequence[PromptRow], plain: Sequence[PromptRow] | None = None
) -> ConvolutionBatch | None:
    """The edits of convolutions of B rows; None if no concept has one. See `row_regions`."""
    acting = _slots(rows, plain)
    kept = [
        (b, slot, rows[b].strength, concept.convolutions)
        for b, row in enumerate(acting)
        for slot, (_, concept) in enumerate(row)
        if isinstance(concept, OffsetConcept) and concept.convolutions
    ]
    if not kept:
        return None
    sizes = widths(edited_layers(base.denoiser))
    if any((edit.reads.shape[1], edit.writes.shape[1]) != sizes for *_, edit in kept):
        raise ValueError("a concept edits convolutions of another shape than the base model's: train it again")
    slots, rank = max(map(len, acting)), max(len(edit.reads) for *_, edit in kept)
    reads, writes = (torch.zeros(len(rows), slots, rank, size) for size in sizes)
    for b, slot, strength, edit in kept:
        reads[b, slot, : len(edit.reads)] = edit.reads
        writes[b, slot, : len(edit.writes)] = strength * edit.writes
    return ConvolutionBatch(reads.to(base.device, base.dtype), writes.to(base.device, base.dtype))


def _signal(base: Base) -> Tensor:
    """The cumulative products of the noise schedule that the base model was trained with."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    schedule: Any = DDPMScheduler.from_config(base.scheduler.config)
    return schedule.alphas_cumprod


def everywhere(base: Base, rows: Sequence[PromptRow], conditioning: Conditioning) -> Conditioning:
    """Conditioning in which the offsets of B rows act at every pixel, without masks and hooks."""
    added = row_regions(base, rows).values.sum(1)
    moved = conditioning.kv.clone()
    moved[..., base.stack.key_rows :] += added[:, None].to(moved.dtype)
    return replace(conditioning, kv=moved)


@contextlib.contextmanager
def acting(base: Base, regions: Regions, steps: int) -> Iterator[None]:
    """Let the regions act while `base.denoiser` denoises a batch whose last B rows are theirs.

    Args:
        base: the base model.
        regions: of B rows; rows before them, the unconditional ones, stay as they are.
        steps: of the sampler; the denoiser is called once for each. Of one with two calls a step, give both.

    Raises:
        RuntimeError: in the denoiser, when it is called more often than that.
    """
    chosen = base.folder.settings.mask_layers
    references = None if regions.references is None else ReferenceAttention(base.denoiser, regions.references)
    run = _Run(regions, steps, select=not chosen, references=references)
    with contextlib.ExitStack() as hooks:
        if references is not None:
            hooks.enter_context(installed(base.denoiser, references))
        hooks.enter_context(edited(edited_layers(base.denoiser), regions.convolutions, run.cover))
        hooks.enter_context(_removed(base.denoiser.register_forward_pre_hook(run.begin, with_kwargs=True)))
        for name, module in cross_attentions(base.denoiser):
            looks = name in chosen if chosen else "up_blocks" in name.split(".")
            for hook in run.watch(module, looks=looks, key_rows=base.stack.key_rows):
                hooks.enter_context(_removed(hook))
        yield


def by_default(maps: Sequence[Tensor], size: tuple[int, int]) -> Sequence[Tensor]:
    """Of the maps (B, J, h, w) of all up-block layers, those at half the latent's side; coarser ones mix nouns."""
    return [each for each in maps if each.shape[2] * 2 == size[0]] or maps


class _Run:
    """The state of one sampling: D so far, the masks of this step, and the maps that it collects for the next."""

    def __init__(self, regions: Regions, steps: int, *, select: bool, references: ReferenceAttention | None) -> None:
        self._regions, self._select, self._references = regions, select, references
        self._kept = _KEPT ** (20 / steps)
        self._calls = steps + 1  # PNDM takes its second step twice
        self._without = max(1, round(_WITHOUT * steps))
        self._step = -1
        self._size = (0, 0)
        self._maps: list[Tensor] = []  # (B, J, h, w) of each layer that looks
        self._seen: Tensor | None = None
        self._masks: Tensor | None = None

    def begin(self, _unet: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before each call of the denoiser."""
        sample = arguments[0] if arguments else named["sample" if "sample" in named else "hidden_states"]
        self._size = (int(sample.shape[-2]), int(sample.shape[-1]))
        if self._maps:
            new = density(by_default(self._maps, self._size) if self._select else self._maps, self._size)
            old = new if self._seen is None else self._seen
            self._seen = old**self._kept * new ** (1 - self._kept)
        self._maps, self._step = [], self._step + 1
        if self._step >= self._calls:
            raise RuntimeError(
                f"the denoiser was called more often than {self._calls - 1} steps need: "
                "give the pipeline's num_inference_steps, and draw once in each `with` block"
            )
        acts = self._seen is not None and self._step >= self._without
        self._masks = masks(self._seen, self._regions.used) if acts and self._seen is not None else None
        if self._references is not None:
            timestep = arguments[1] if len(arguments) > 1 else named["timestep"]
            self._references.begin(timestep, self._masks, self._size)

    def cover(self, height: int, width: int) -> Tensor | None:
        """M (B, J, height, width) of this step; None while no concept acts."""
        if self._masks is None or self._aside:
            return None
        return nn.functional.adaptive_avg_pool2d(self._masks, (height, width))

    @property
    def _aside(self) -> bool:
        """Whether the denoiser runs on photos, not on the rows."""
        return self._references is not None and self._references.at_photos

    def watch(self, attention: Any, *, looks: bool, key_rows: int) -> Iterator[Any]:
        """Hooks on a cross-attention: change its output in the regions, and where it `looks`, collect the maps."""
        start, stop = attention.to_v.start, attention.to_v.stop
        offsets = self._regions.values[..., start - key_rows : stop - key_rows]
        own = self._regions.own
        queries: list[Tensor] = []

        def remember(_module: nn.Module, _arguments: tuple[Tensor, ...], query: Tensor) -> None:
            queries[:] = [query]

        def look(_module: nn.Module, _arguments: tuple[Tensor, ...], key: Tensor) -> None:
            if self._aside:
                return
            found = attention_to(queries[0], key, self._regions.nouns, attention.heads, attention.scale)
            self._maps.append(found.unflatten(2, grid(queries[0].shape[1], self._size)))

        def act(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self._masks is None or self._aside:
                return None
            hidden = arguments[0]
            rows, places = len(offsets), hidden.shape[1]
            covered = (
                nn.functional.adaptive_avg_pool2d(self._masks, grid(places, self._size)).flatten(2).to(hidden.dtype)
            )
            there = hidden[-rows:]
            added = covered.mT @ offsets.to(hidden.dtype)
            if own is not None:
                keys, its_values = attention.to_k.take(own), attention.to_v.take(own)
                outputs = _outputs(queries[0][-rows:], keys, its_values, attention.heads, attention.scale)
                added = added + (covered[..., None] * (outputs - there[:, None])).sum(1)
            return (torch.cat([hidden[:-rows], there + added]), *arguments[1:])

        if looks or own is not None:
            yield attention.to_q.register_forward_hook(remember)
        if looks:
            yield attention.to_k.register_forward_hook(look)
        yield attention.to_out[0].register_forward_pre_hook(act)


def _outputs(query: Tensor, keys: Tensor, values: Tensor, heads: int, scale: float) -> Tensor:
    """Attention (B, J, Q, C) of a query (B, Q, C) to the J prompts with these keys and values, (B, J, N, C)."""
    q = query.unflatten(2, (heads, -1)).transpose(1, 2)[:, None].expand(-1, keys.shape[1], -1, -1, -1)
    k, v = (each.unflatten(3, (heads, -1)).transpose(2, 3) for each in (keys, values))
    return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(2, 3).flatten(3)


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
