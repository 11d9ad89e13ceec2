"""Attention in loops that acts in regions and records the nouns' attention: what the hooks must amount to."""

import math

import torch
from diffusers.models.attention_processor import AttnProcessor

from perfusion_ops.attention.masks import density, masks


class Naive:
    """A denoiser's cross-attention, computed head by head and concept by concept."""

    def __init__(self, regions, key_rows):
        self.regions, self.key_rows, self.masks, self.maps = regions, key_rows, None, []

    def processor(self, looks):
        def call(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
            q, k = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
            v = attn.to_v(encoder_hidden_states)
            rows = len(self.regions.values)
            out, seen = attend(q, k, v, attn.heads)
            side = int(math.sqrt(q.shape[1]))
            if looks:
                nouns = torch.einsum("bqn,bjn->bjq", seen[-rows:], self.regions.nouns.to(seen))
                self.maps.append(nouns.reshape(rows, -1, side, side))
            if self.masks is not None:
                self._act(attn, q, out, rows, side)
            return attn.to_out[1](attn.to_out[0](out))

        return call

    def _act(self, attn, q, out, rows, side):
        small = torch.nn.functional.adaptive_avg_pool2d(self.masks, side)
        values = slice(attn.to_v.start - self.key_rows, attn.to_v.stop - self.key_rows)
        for b in range(rows):
            place = len(out) - rows + b
            plain = out[place].clone()
            for j in range(small.shape[1]):
                there = self.regions.values[b, j, values].to(out.dtype).expand_as(plain)
                if self.regions.own is not None:
                    own = self.regions.own[b, j][None]
                    k, v = own[..., attn.to_k.start : attn.to_k.stop], own[..., attn.to_v.start : attn.to_v.stop]
                    there = there + attend(q[place][None], k, v, attn.heads)[0][0] - plain
                out[place] += small[b, j].reshape(-1, 1).to(out.dtype) * there


def attend(q, k, v, heads):
    """The output of an attention and its weights, mean over heads."""
    size = q.shape[-1] // heads
    out, seen = torch.zeros_like(q), torch.zeros(len(q), q.shape[1], k.shape[1], dtype=q.dtype)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = (q[..., part] @ k[..., part].mT / math.sqrt(size)).softmax(-1)
        out[..., part] = weights @ v[..., part]
        seen += weights / heads
    return out, seen


def naive_steps(base, regions, conditioning, latents, timestep=7):
    """What the denoiser predicts for each of the latents in turn, masks and all."""
    naive = Naive(regions, base.stack.key_rows)
    before = base.denoiser.attn_processors
    base.denoiser.set_attn_processor(
        {
            name: naive.processor("up_blocks" in name) if "attn2" in name else AttnProcessor()
            for name in base.denoiser.attn_processors
        }
    )
    try:
        seen, expected = None, []
        with torch.no_grad():
            for number, sample in enumerate(latents):
                if naive.maps:
                    new = density(naive.maps, tuple(sample.shape[-2:]))
                    seen = new if seen is None else seen**0.7 * new**0.3
                naive.maps = []
                naive.masks = masks(seen, regions.used) if number else None
                expected.append(base.denoiser(sample, timestep, conditioning).sample)
    finally:
        base.denoiser.set_attn_processor(before)
    return expected
