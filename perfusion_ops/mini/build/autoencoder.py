"""The VAE: diffusers' AutoencoderKL, trained from scratch on rendered scenes.

The loss is the sum of absolute error, squared error, the error of differences between neighbours (for sharp edges) and
a light KL term, which keeps the latents near a unit Gaussian and makes the decoder tolerant of small errors.

Most steps use a window of each picture, which makes them four times as fast. The last steps, with a falling rate, use
whole pictures, so that the group norms adapt to their statistics.
"""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from perfusion_ops.mini.build.pictures import tensor
from perfusion_ops.mini.build.recipe import Recipe
from perfusion_ops.mini.build.training.loop import Loss, load_mean, train
from perfusion_ops.mini.build.training.machine import Machine
from perfusion_ops.mini.world.scene import SIZE

NAME = "autoencoder"
_KL = 2e-4  # per latent number
_BATCH = 64  # when nothing is trained


def build(recipe: Recipe) -> AutoencoderKL:
    """The untrained VAE; one latent position for 4 x 4 pixels."""
    sizes = recipe.autoencoder
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        block_out_channels=sizes.channels,  # pyright: ignore[reportArgumentType]
        latent_channels=sizes.latent,
        norm_num_groups=sizes.groups,
        sample_size=SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def fit(machine: Machine, recipe: Recipe, folder: Path, until: float | None) -> None:
    """Train it to the end, or `until` that time; the checkpoint has the weights."""
    torch.manual_seed(recipe.seed)
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    vae = build(recipe)
    nn.Module.to(vae, machine.device)
    share = recipe.autoencoder.fit.batch // machine.processes
    train(
        NAME, vae, _loss(vae, pictures, recipe, share, machine), recipe.autoencoder.fit,
        machine=machine, folder=folder, seed=recipe.seed, until=until,
    )  # fmt: skip


def _loss(vae: AutoencoderKL, pictures: np.ndarray, recipe: Recipe, share: int, machine: Machine) -> Loss:
    through = machine.compiled(_Through(vae))
    fit, window = recipe.autoencoder.fit, recipe.autoencoder.window
    whole_from = (1 - fit.decay) * fit.steps

    def loss(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pictures), (share,), generator=generator)
        target = tensor(pictures[chosen.sort().values.numpy()]).to(machine.device)
        if step % 2:
            target = target.flip(3)
        if step < whole_from:
            top, left = torch.randint(SIZE - window + 1, (2,), generator=generator).tolist()
            target = target[..., top : top + window, left : left + window]
        latent = int(vae.config["latent_channels"])
        noise = torch.randn(share, latent, *(side // 4 for side in target.shape[2:]), generator=generator)
        noise = noise.to(machine.device)
        with machine.autocast():
            made, mean, log_variance = through(target, noise)
        made, mean, log_variance = made.float(), mean.float(), log_variance.float()
        error = made - target
        edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error.abs().mean() + error.square().mean() + 0.5 * edges + latent * _KL * divergence

    return loss


class _Through(nn.Module):
    """A picture through encoder, noise and decoder."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(pictures).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar  # pyright: ignore[reportAttributeAccessIssue]


def trained(recipe: Recipe, folder: Path) -> AutoencoderKL:
    """The VAE as last saved, its scaling factor not yet set."""
    vae = build(recipe)
    load_mean(folder / f"{NAME}.safetensors", vae)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray) -> Tensor:
    """The posterior means of (N, 64, 64, 3) uint8 pictures: (N, C, 16, 16) float32, unscaled."""
    device = next(vae.parameters()).device
    parts = (tensor(pictures[start : start + _BATCH]) for start in range(0, len(pictures), _BATCH))
    return torch.cat([vae.encode(part.to(device)).latent_dist.mean.float().cpu() for part in parts])  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def fidelity(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """PSNR in dB of encoding and decoding (N, 64, 64, 3) uint8 pictures, over all values of all pictures."""
    device = next(vae.parameters()).device
    squared = 0.0
    for start in range(0, len(pictures), _BATCH):
        latents = encode(vae, pictures[start : start + _BATCH]).to(device)
        made = vae.decode(latents).sample.float().cpu().clamp(-1, 1)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        squared += float((made - tensor(pictures[start : start + _BATCH])).div(2).square().mean((1, 2, 3)).sum())
    return -10 * math.log10(squared / len(pictures))
