"""Blended latents: after each step, the part that stays is the photo again, with the noise of that step.

`SceneScheduler` does this around any scheduler of diffusers, so that the pipelines stay as they are. Rows do not affect
each other. (Avrahami et al., Blended Latent Diffusion, arXiv 2206.02779.)
"""

from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn


def latent_stays(stays: Tensor, least: Tensor, height: int, width: int) -> Tensor:
    """Which latents stay.

    Args:
        stays: (B, H, W) weights of pixels; those with the weight 1 stay.
        least: (B,): a latent stays if more than this share of its pixels does.
        height: h of the latents.
        width: w of the latents.

    Returns:
        (B, 1, h, w) booleans.
    """
    shares = nn.functional.interpolate((stays[:, None] == 1).float(), size=(height, width), mode="area")
    return shares > least[:, None, None, None]


class SceneScheduler:
    """A scheduler that starts at a share of its noise, and puts the photo back after each step.

    It has all attributes of the scheduler that it wraps.
    """

    def __init__(self, scheduler: Any, photos: Tensor, noise: Tensor, stays: Tensor, strength: float) -> None:
        """Wrap a scheduler for one call of a pipeline.

        Args:
            scheduler: of diffusers.
            photos: latents of the photos, (B, C, h, w).
            noise: of the renders, of the same shape.
            stays: (B, 1, h, w), true where a latent of the photo stays.
            strength: above 0 and at most 1: the share of the steps that is taken.
        """
        self._scheduler = scheduler
        self._photos, self._noise, self._stays, self._strength = photos, noise, stays, strength
        self._timesteps: Any = None
        self._done = 0

        @wraps(scheduler.step)  # pipelines look at the signature
        def step(*arguments: Any, **named: Any) -> Any:
            return self._step(*arguments, **named)

        self.step = step

    def __getattr__(self, name: str) -> Any:
        """An attribute of the wrapped scheduler."""
        return getattr(self._scheduler, name)

    @property
    def timesteps(self) -> Tensor:
        """The timesteps that are taken."""
        return self._timesteps

    def set_timesteps(self, *arguments: Any, **named: Any) -> None:
        """As the wrapped scheduler, which may raise ValueError; begins at the strength's share of the steps."""
        scheduler = self._scheduler
        scheduler.set_timesteps(*arguments, **named)
        every = scheduler.timesteps
        repeats = hasattr(scheduler, "plms_timesteps")  # PNDM takes its second step twice, wherever it begins
        if repeats and len(every) > 1:
            every = torch.cat([every[:1], every[2:]])
        order = getattr(scheduler, "order", 1)
        steps = -(-len(every) // order)
        first = (steps - max(1, int(steps * self._strength))) * order
        taken = every[first:]
        if repeats and len(taken) > 1:
            taken = torch.cat([taken[:2], taken[1:]])
        if hasattr(scheduler, "set_begin_index"):
            # Then `add_noise` uses the scheduler's own place, which is exact where timesteps are rounded.
            scheduler.set_begin_index(first)
        self._timesteps, self._done = taken, 0

    def begin(self) -> Tensor:
        """The latents to start from, before the pipeline scales them; call it after `set_timesteps`."""
        noisy = self._noisy(self._timesteps[0]) / self._scheduler.init_noise_sigma
        return noisy if self._strength < 1 else torch.where(self._stays, noisy, self._noise)

    def _step(self, *arguments: Any, **named: Any) -> Any:
        output = self._scheduler.step(*arguments, **named)
        self._done += 1
        last = self._done == len(self._timesteps)
        photos = self._photos if last else self._noisy(self._timesteps[self._done])
        if isinstance(output, tuple):
            return (torch.where(self._stays, photos.to(output[0].dtype), output[0]), *output[1:])
        output.prev_sample = torch.where(self._stays, photos.to(output.prev_sample.dtype), output.prev_sample)
        return output

    def _noisy(self, timestep: Tensor) -> Tensor:
        times = timestep.reshape(1).expand(len(self._photos)).to(self._photos.device)
        return self._scheduler.add_noise(self._photos, self._noise, times)
