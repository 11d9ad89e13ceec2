"""Recipe `offset`: what a concept adds to the attention's output where the product is. Not in the paper.

The weights of an attention add up to one. So an offset of the values at every position of a prompt adds a constant to
the layer's output. A mask M per concept and pixel restricts it to the product:

    out(x) = A(x) V + sum_j M_j(x) o_j

The masks come from the attention of the prompt's own nouns, step by step. With D_j the attention of concept j's noun,
divided by its mean over the picture,

    M_j = softmax_j(6 log D_j) sigmoid(4 log max_j D_j)

The first factor divides the picture among the concepts; the second one leaves out what none of them is looked at for
more than on average. In the first steps M is zero: the prompt alone decides the layout.

The denoiser is unmodified: hooks on the modules of its cross-attention read and add what is needed.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.base_model import Base
from perfusion_ops.concept import OffsetConcept
from perfusion_ops.conditioning import PromptRow, prompt_tokens

_WITHOUT = 0.05  # share of the steps, at least one, in which M is zero
_DIVIDING, _AGAINST_BACKGROUND = 6.0, 4.0  # see the module
_KEPT = 0.7  # of log D, from one of 20 steps to the next
_BLUR = 1 / 16  # standard deviation of the masks' blur, as a share of the picture's side
_LEAST = 1e-6


@dataclass(frozen=True)
class Offsets:
    """What B rows with up to J concepts of recipe `offset` add.

    Attributes:
        values: o_j of all layers, (B, J, R / 2); zero in unused slots.
        nouns: (B, J, N): how much each position of the prompt counts as the noun of concept j; adds up to one.
        used: which slots hold a concept, (B, J) bool.
    """

    values: Tensor
    nouns: Tensor
    used: Tensor


def has_offsets(row: PromptRow) -> bool:
    """Whether a concept of the row is of recipe `offset`."""
    return any(isinstance(concept, OffsetConcept) for concept in row.concepts)


def row_offsets(base: Base, rows: Sequence[PromptRow]) -> Offsets:
    """The offsets of B rows.

    Raises:
        PromptTooLongError: a prompt does not fit the text encoder.
    """
    acting = [[(j, c) for j, c in enumerate(row.concepts) if isinstance(c, OffsetConcept)] for row in rows]
    tokens = [prompt_tokens(base, row) for row in rows]
    slots, width = max(map(len, acting)), base.stack.key_rows
    values = torch.zeros(len(rows), slots, width)
    nouns = torch.zeros(len(rows), slots, len(tokens[0].ids))
    used = torch.zeros(len(rows), slots, dtype=torch.bool)
    for b, concepts in enumerate(acting):
        for slot, (number, concept) in enumerate(concepts):
            places = [place for place, noun in enumerate(tokens[b].nouns) if noun == number]
            if places:  # otherwise the concept acts in the row, but its prompt does not name it
                values[b, slot], used[b, slot] = concept.value_offset, True
                nouns[b, slot, places] = 1 / len(places)
    return Offsets(values.to(base.device), nouns.to(base.device), used.to(base.device))


def everywhere(base: Base, rows: Sequence[PromptRow], conditioning: Tensor) -> Tensor:
    """Conditioning (B, N, R) in which the offsets of B rows act at every pixel, without masks and hooks."""
    added = row_offsets(base, rows).values.sum(1)
    moved = conditioning.clone()
    moved[..., base.stack.key_rows :] += added[:, None].to(moved.dtype)
    return moved


def density(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """D: where nouns are looked at, relative to the mean over the picture.

    Args:
        maps: per layer (B, J, h, w), the attention of each concept's noun.
        size: height and width of the result.

    Returns:
        (B, J, *size): the layers' geometric mean, blurred, with a mean of one.
    """
    relative = [each / _mean(each).clamp_min(_LEAST) for each in maps]
    resized = [nn.functional.interpolate(each, size=size, mode="bilinear") for each in relative]
    together = torch.stack([each.clamp_min(_LEAST).log() for each in resized]).mean(0).exp()
    blurred = _blurred(together)
    return blurred / _mean(blurred).clamp_min(_LEAST)


def masks(seen: Tensor, used: Tensor) -> Tensor:
    """M of D (B, J, h, w) and of the slots that hold a concept, (B, J); zero in the others."""
    logs = seen.clamp_min(_LEAST).log().masked_fill(~used[..., None, None], -math.inf)
    peak = logs.amax(1, keepdim=True)
    shares = (_DIVIDING * (logs - peak.clamp_min(math.log(_LEAST)))).softmax(1).nan_to_num(0.0)
    return shares * torch.sigmoid(_AGAINST_BACKGROUND * peak)


@contextlib.contextmanager
def acting(base: Base, offsets: Offsets, steps: int) -> Iterator[None]:
    """Let the offsets act while `base.unet` denoises a batch whose last B rows are theirs.

    Args:
        base: the base model.
        offsets: of B rows; rows before them, the unconditional ones, stay as they are.
        steps: of the sampler; the denoiser is called once for each.
    """
    run = _Run(offsets, steps)
    with contextlib.ExitStack() as hooks:
        hooks.enter_context(_removed(base.unet.register_forward_pre_hook(run.begin, with_kwargs=True)))
        for name, module in base.unet.named_modules():
            if name.rsplit(".", 1)[-1] == "attn2":
                for hook in run.watch(module, looks="up_blocks" in name.split("."), key_rows=base.stack.key_rows):
                    hooks.enter_context(_removed(hook))
        yield


class _Run:
    """The state of one sampling: D so far, the masks of this step, and the maps that it collects for the next."""

    def __init__(self, offsets: Offsets, steps: int) -> None:
        self._offsets = offsets
        self._kept = _KEPT ** (20 / steps)
        self._without = max(1, round(_WITHOUT * steps))
        self._step = -1
        self._size = (0, 0)
        self._maps: list[Tensor] = []  # (B, J, h, w) of each layer that looks
        self._seen: Tensor | None = None
        self._masks: Tensor | None = None

    def begin(self, _unet: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before each call of the denoiser."""
        sample = named["sample"] if "sample" in named else arguments[0]
        self._size = (int(sample.shape[-2]), int(sample.shape[-1]))
        if self._maps:
            # The layers at half the latent's side tell nouns apart; coarser ones mix them.
            halved = [each for each in self._maps if each.shape[2] * 2 == self._size[0]]
            new = density(halved or self._maps, self._size)
            old = new if self._seen is None else self._seen
            self._seen = old**self._kept * new ** (1 - self._kept)
        self._maps, self._step = [], self._step + 1
        acts = self._seen is not None and self._step >= self._without
        self._masks = masks(self._seen, self._offsets.used) if acts and self._seen is not None else None

    def watch(self, attention: Any, *, looks: bool, key_rows: int) -> Iterator[Any]:
        """Hooks on a cross-attention: add the offset, and where it `looks`, collect the nouns' attention."""
        start, stop = (edge - key_rows for edge in (attention.to_v.start, attention.to_v.stop))
        values = self._offsets.values[..., start:stop]

        def add(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self._masks is None:
                return None
            hidden = arguments[0]
            rows, places = len(values), hidden.shape[1]
            covered = nn.functional.adaptive_avg_pool2d(self._masks, self._side(places)).flatten(2)
            added = covered.mT.to(hidden.dtype) @ values.to(hidden.dtype)
            return (torch.cat([hidden[:-rows], hidden[-rows:] + added]), *arguments[1:])

        yield attention.to_out[0].register_forward_pre_hook(add)
        if not looks:
            return
        queries: list[Tensor] = []

        def remember(_module: nn.Module, _arguments: tuple[Tensor, ...], query: Tensor) -> None:
            queries[:] = [query]

        def look(_module: nn.Module, _arguments: tuple[Tensor, ...], key: Tensor) -> None:
            found = _attention(queries[0], key, self._offsets.nouns, attention.heads, attention.scale)
            self._maps.append(found.unflatten(2, self._side(queries[0].shape[1])))

        yield attention.to_q.register_forward_hook(remember)
        yield attention.to_k.register_forward_hook(look)

    def _side(self, places: int) -> tuple[int, int]:
        """Height and width of a layer with this number of positions."""
        height, width = self._size
        reduced = max(1, round(math.sqrt(height * width / places)))
        return -(-height // reduced), -(-width // reduced)


def _attention(query: Tensor, key: Tensor, nouns: Tensor, heads: int, scale: float) -> Tensor:
    """The attention (B, J, Q) that the last B rows of a query (., Q, C) give to J nouns (B, J, N), mean over heads."""
    rows = len(nouns)
    exact = torch.promote_types(query.dtype, torch.float32)
    q, k = (each[-rows:].to(exact).unflatten(2, (heads, -1)).transpose(1, 2) for each in (query, key))
    weights = (q @ k.mT * scale).softmax(-1).mean(1)
    return nouns.to(exact) @ weights.mT


def _mean(maps: Tensor) -> Tensor:
    return maps.mean((2, 3), keepdim=True)


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian blur of (B, J, h, w); the border repeats."""
    for axis, side in ((2, maps.shape[2]), (3, maps.shape[3])):
        sigma = _BLUR * side
        reach = min(math.ceil(2 * sigma) + 1, side)
        at = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
        kernel = torch.exp(-(at**2) / (2 * sigma**2))
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded = nn.functional.pad(maps.flatten(0, 1)[:, None], padding, mode="replicate")
        smooth = nn.functional.conv2d(padded, (kernel / kernel.sum()).reshape(shape))
        maps = smooth[:, 0].unflatten(0, maps.shape[:2])
    return maps


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
