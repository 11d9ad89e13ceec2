"""Photos of a product at which its pictures look: self-attention that also sees photos. Not in the paper.

Text cannot say all that a photo shows. While a row is drawn, the denoiser also runs on photos of the row's products,
noised to the row's own level. In every self-attention, the row's pixels then attend to the positions of the photos
beside their own. With q, k, s the queries, keys and scale of the attention, pixel x gives position z of a photo of
concept j the weight

    exp(s q(x) k(z)) M_j(x) m_j(z),

and its own picture's position y the weight exp(s q(x) k(y)). M_j says where the product is in the picture
(`attention.masks`), and m_j where it is in the photo. So the background of a photo is not seen, and the background of
the picture sees no photo. Photos are seen in the second half of the noise schedule, after the layout is decided.

Both factors are inner products of further dimensions of q and k, because log M_j(x) + log m_j(z) has rank J + 1. So the
attention needs no mask of pixels times positions, and any kernel computes it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.attention.maps import grid

_SEEN_FROM = 0.5  # share of the noise schedule; above it no photo is seen
_LEAST = 1e-6  # of M and m, whose logarithms are taken
_NEVER = -60.0  # the logarithm of no weight at all, which float16 holds
_ALIGNED = 8  # widths of heads that fast kernels take are multiples of it


@dataclass(frozen=True)
class ReferenceBatch:
    """The photos of the products of B rows: N in all, of which each row sees up to S.

    Attributes:
        latents: (N, C, h, w), scaled.
        masks: (N, h, w), 0 to 1: where the product is.
        kv: the denoiser's conditioning of each photo, (N, L, R).
        added: further arguments of the denoiser.
        noise: (N, C, h, w), standard normal.
        signal: the noise schedule's cumulative products, by timestep.
        shown: (B, S): which photos each row sees; -1 for none.
        slots: (B, S): of which concept of the row each photo is.
    """

    latents: Tensor
    masks: Tensor
    kv: Tensor
    noise: Tensor
    signal: Tensor
    shown: Tensor
    slots: Tensor
    added: Mapping[str, Any] = field(default_factory=dict)

    def rows(self, index: Tensor) -> "ReferenceBatch":
        """The rows chosen by an index (P,)."""
        return replace(self, shown=self.shown[index], slots=self.slots[index])


class ReferenceAttention:
    """The state of one sampling: what each self-attention saw of the photos in this step, and who sees it.

    Args:
        denoiser: whose self-attention looks.
        references: of B rows, the last ones of a batch.
    """

    def __init__(self, denoiser: Any, references: ReferenceBatch) -> None:
        self._denoiser, self._references = denoiser, references
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # keys and values (., Z, C) of photos, by attention
        self._masks: Tensor | None = None
        self._size = (0, 0)
        self.at_photos = False  # while the denoiser runs on the photos

    @torch.no_grad()
    def begin(self, timestep: Any, masks: Tensor | None, size: tuple[int, int]) -> None:
        """Look at the photos before a step.

        Args:
            timestep: of the step.
            masks: M (B, J, h, w); None if no concept acts in this step.
            size: height and width of the rows' latents.
        """
        time = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        self._seen, self._masks, self._size = {}, None, size
        if masks is None or time > _SEEN_FROM * len(self._references.signal):
            return
        photos = self._references
        share = photos.signal[min(max(round(time), 0), len(photos.signal) - 1)]
        noisy = (share.sqrt() * photos.latents + (1 - share).sqrt() * photos.noise).to(photos.kv.dtype)
        self.at_photos = True
        try:
            # As many rows at a time as a step with guidance has, so that photos do not decide the peak of memory.
            for part in torch.arange(len(noisy), device=noisy.device).split(2 * self.rows):
                added = _chosen(photos.added, part)
                # The hooks on the denoiser itself count the steps of the rows: `forward` passes them by.
                self._denoiser.forward(noisy[part], timestep=timestep, encoder_hidden_states=photos.kv[part], **added)
        finally:
            self.at_photos = False
        self._masks = masks

    def keep(self, name: str, keys: Tensor, values: Tensor) -> None:
        """Keep what an attention has of the photos."""
        self._seen.setdefault(name, []).append((keys, values))

    @property
    def is_open(self) -> bool:
        """Whether rows see the photos in this step."""
        return self._masks is not None

    @property
    def rows(self) -> int:
        """B."""
        return len(self._references.shown)

    def attend(self, name: str, attention: Any, hidden: Tensor) -> Tensor:
        """What an attention gives to the B rows `hidden` (B, Q, C) before its output projection, (B, Q, C)."""
        assert self._masks is not None
        references = self._references
        photo_keys, photo_values = (torch.cat(each) for each in zip(*self._seen[name], strict=True))
        shown = references.shown.clamp(min=0)
        keys, values = photo_keys[shown].flatten(1, 2), photo_values[shown].flatten(1, 2)
        of_photos = grid(photo_keys.shape[1], (references.masks.shape[1], references.masks.shape[2]))
        inside = nn.functional.adaptive_avg_pool2d(references.masks[:, None], of_photos).flatten(1)
        weight = inside.clamp_min(_LEAST).log()[shown]
        weight = weight.masked_fill((references.shown < 0)[..., None], _NEVER).flatten(1)
        cover = nn.functional.adaptive_avg_pool2d(self._masks, grid(hidden.shape[1], self._size)).flatten(2).mT
        slots = references.slots.repeat_interleave(photo_keys.shape[1], 1)
        return seeing(
            attention.to_q(hidden),
            (attention.to_k(hidden), attention.to_v(hidden)),
            (keys, values),
            cover.clamp_min(_LEAST).log(),
            (slots, weight),
            heads=attention.heads,
            scale=attention.scale,
        )


def _chosen(added: Mapping[str, Any], part: Tensor) -> dict[str, Any]:
    """The denoiser's further arguments for some of the photos; they may be nested."""
    return {
        name: _chosen(each, part) if isinstance(each, Mapping) else each[part] if isinstance(each, Tensor) else each
        for name, each in added.items()
    }


def seeing(
    query: Tensor,
    own: tuple[Tensor, Tensor],
    photos: tuple[Tensor, Tensor],
    cover: Tensor,
    place: tuple[Tensor, Tensor],
    *,
    heads: int,
    scale: float,
) -> Tensor:
    """The attention of the module's first paragraph.

    Args:
        query: (B, Q, C).
        own: keys and values (B, Y, C) of the row.
        photos: keys and values (B, Z, C) of the photos that it sees.
        cover: log M_j, (B, Q, J).
        place: of which concept each position of the photos is, (B, Z), and log m there, (B, Z).
        heads: of the attention.
        scale: of the products.

    Returns:
        (B, Q, C).
    """
    slots, weight = place
    rows, positions, width = query.shape[0], own[0].shape[1], query.shape[2] // heads
    further = cover.shape[2] + 1
    room = -(width + further) % _ALIGNED
    of_query = torch.cat([cover, torch.ones_like(cover[..., :1])], 2) / scale
    of_photos = torch.cat([nn.functional.one_hot(slots, cover.shape[2]).to(weight), weight[..., None]], 2)
    of_keys = torch.cat([of_photos.new_zeros(rows, positions, further), of_photos], 1)
    q = _headed(query, heads, of_query, room)
    k = _headed(torch.cat([own[0], photos[0]], 1), heads, of_keys, room)
    v = _headed(torch.cat([own[1], photos[1]], 1), heads, torch.zeros_like(of_keys), room)
    found = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return found[..., :width].transpose(1, 2).flatten(2)


def _headed(each: Tensor, heads: int, further: Tensor, room: int) -> Tensor:
    """(B, heads, N, width + further + room) of (B, N, C), with the same further dimensions for all heads."""
    split = each.unflatten(2, (heads, -1)).transpose(1, 2)
    same = nn.functional.pad(further, (0, room)).to(split.dtype)[:, None].expand(-1, heads, -1, -1)
    return torch.cat([split, same], 3)


class _Processor:
    """An attention's own processor, except that the last rows of a batch see the photos while they are open."""

    def __init__(self, name: str, plain: Any, references: ReferenceAttention) -> None:
        self._name, self._plain, self._references = name, plain, references

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._references.at_photos:
            self._references.keep(self._name, attn.to_k(hidden_states), attn.to_v(hidden_states))
        if not self._references.is_open:
            return self._plain(attn, hidden_states, *args, **kwargs)
        rows = self._references.rows
        others, own = hidden_states[:-rows], hidden_states[-rows:]
        drawn = attn.to_out[1](attn.to_out[0](self._references.attend(self._name, attn, own)))
        return torch.cat([self._plain(attn, others, *args, **kwargs), drawn]) if len(others) else drawn


def self_attentions(denoiser: Any) -> list[tuple[str, Any]]:
    """The self-attentions of a denoiser with their names, in its order."""
    return [(name, module) for name, module in denoiser.named_modules() if name.rsplit(".", 1)[-1] == "attn1"]


@contextmanager
def installed(denoiser: Any, references: ReferenceAttention) -> Iterator[None]:
    """Let the self-attentions of a denoiser see photos."""
    layers = self_attentions(denoiser)
    before = [layer.processor for _, layer in layers]
    for (name, layer), plain in zip(layers, before, strict=True):
        layer.processor = _Processor(name, plain, references)
    try:
        yield
    finally:
        for (_, layer), plain in zip(layers, before, strict=True):
            layer.processor = plain
