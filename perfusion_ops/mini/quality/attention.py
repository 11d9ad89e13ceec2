"""Where a base model looks while it draws a product: how much attention the product's own noun gets.

Every edit of a word acts through the attention that pictures give to this word. Real renders with known masks are
noised, and the cross-attention of their true captions is read at the products' pixels.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from perfusion_ops.attention.maps import grid, watching
from perfusion_ops.base_model import Base, encode_pictures
from perfusion_ops.config import Frozen
from perfusion_ops.mini.world.products import HELD_OUT, product
from perfusion_ops.mini.world.scene import Scene, pair, photograph, render
from perfusion_ops.mini.world.vocabulary import CATEGORIES, CONTEXTS, phrases, superclass
from perfusion_ops.text import Tokens, words

_TIMESTEPS = (200, 500, 800)  # of 1,000
_FIRST = 570_000  # of the products, which no other measurement uses
_APART = 5  # classes between the two products of a pair


class NounAttention(Frozen):
    """Shares of the cross-attention at a product's pixels: mean over layers, heads, timesteps and pictures.

    Attributes:
        noun: on the product's own noun.
        before: on the words before it.
        after: on the words after it.
        start: on the start token.
        end: on the end token and the padding.
        told_apart: with two products, the share of their pixels at which the own noun is looked at more than the
            other's, in the layers of the up path at half the latent's side; 0.5 by chance.
    """

    noun: float
    before: float
    after: float
    start: float
    end: float
    told_apart: float


@torch.no_grad()
def noun_attention(base: Base, count: int) -> NounAttention:
    """Measure `count` pictures of one product and as many of two."""
    shares = [_shares(base, number) for number in range(count)]
    apart = [_told_apart(base, number) for number in range(count)]
    noun, before, after, start, end = np.mean(shares, axis=0)
    return NounAttention(noun=noun, before=before, after=after, start=start, end=end, told_apart=float(np.mean(apart)))


def _shares(base: Base, number: int) -> list[float]:
    """Of one picture: noun, before, after, start, end."""
    item = product(CATEGORIES[number % len(CATEGORIES)], HELD_OUT + _FIRST + number)
    scene = photograph(item, 0)
    noun = superclass(item.look.category)
    tokens = _tokens(base, [noun], f"a photo of a {{0}} {phrases(scene.background)[0]}")
    last, stop = tokens.nouns.index(0), tokens.length - 1
    first = last + 1 - len(words(base.tokenizer, noun))
    groups = torch.zeros(1, 5, len(tokens.ids), device=base.device)
    for group, places in enumerate(
        (range(first, last + 1), range(1, first), range(last + 1, stop), range(1), range(stop, len(tokens.ids)))
    ):
        groups[0, group, list(places)] = 1
    found: list[Tensor] = []
    for mask, maps in _seen(base, scene, tokens, groups):
        for each in maps:
            small = nn.functional.adaptive_avg_pool2d(mask[:1], _size(each))[0]
            found.append((each[0] * small).sum((1, 2)) / small.sum())
    return torch.stack(found).mean(0).tolist()


def _told_apart(base: Base, number: int) -> float:
    one, other = (
        product(CATEGORIES[(number + step) % len(CATEGORIES)], HELD_OUT + _FIRST + number + step)
        for step in (0, _APART)
    )
    background = list(CONTEXTS)[number % len(CONTEXTS)]
    scene = pair("beside", one, other, background, number)
    nouns = [superclass(item.look.category) for item in (one, other)]
    tokens = _tokens(base, nouns, f"a photo of a {{0}} next to a {{1}} {phrases(background)[0]}")
    groups = torch.tensor([[[float(noun == j) for noun in tokens.nouns] for j in range(2)]], device=base.device)
    right: list[float] = []
    for masks, maps in _seen(base, scene, tokens, groups, only="up_blocks"):
        for each in maps:
            if each.shape[-1] * 2 != masks.shape[-1]:
                continue
            relative = each[0] / each[0].mean((1, 2), keepdim=True)
            small = nn.functional.adaptive_avg_pool2d(masks, _size(each))
            mine = torch.stack([relative[0] > relative[1], relative[1] > relative[0]]).float()
            right.append(float((mine * small).sum() / small.sum()))
    return float(np.mean(right))


def _tokens(base: Base, nouns: Sequence[str], prompt: str) -> Tokens:
    return base.texts.tokenize(prompt, nouns, range(len(nouns)))


def _seen(
    base: Base, scene: Scene, tokens: Tokens, groups: Tensor, only: str = ""
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """At each timestep: the masks at the latent's size (J, h, w), and of each layer the attention to the groups."""
    picture = render(scene)
    pixels = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = encode_pictures(base, pixels)
    masks = nn.functional.adaptive_avg_pool2d(torch.from_numpy(picture.masks), _size(latents)).to(base.device)
    conditioning = base.texts.encode([tokens]).encodings.to(base.dtype) @ base.stack.weight.mT
    for step in _TIMESTEPS:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step)).to(latents)
        noisy = base.scheduler.add_noise(latents, noise, torch.tensor([step]))
        with watching(base.denoiser, groups) as maps:
            base.denoiser(noisy.to(base.dtype), step, conditioning)
        yield (
            masks,
            [each.unflatten(2, grid(each.shape[2], _size(latents))) for name, each in maps.items() if only in name],
        )


def _size(map_: Tensor) -> tuple[int, int]:
    return map_.shape[-2], map_.shape[-1]
