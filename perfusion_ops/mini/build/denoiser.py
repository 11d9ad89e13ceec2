"""The UNet: diffusers' UNet2DConditionModel on cached latents, trained together with the text encoder.

It predicts v under the cosine schedule. The last step of the schedule is pure noise, from which sampling starts.
"""

from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from perfusion_ops.mini.build import autoencoder, text
from perfusion_ops.mini.build.owners import altered, owners, split
from perfusion_ops.mini.build.pictures import LATENT_PIXELS, captioned, described
from perfusion_ops.mini.build.recipe import Recipe
from perfusion_ops.mini.build.training.loop import Loss, load_mean, train
from perfusion_ops.mini.build.training.machine import Machine
from perfusion_ops.mini.build.words import CONTEXT, load_tokenizer
from perfusion_ops.mini.world.products import BASE_INSTANCES
from perfusion_ops.mini.world.scene import SIZE
from perfusion_ops.mini.world.vocabulary import Description

NAME = "denoiser"
_CHUNK = 1000
_CAPTIONS = 3  # that a row is read from: of no product, of the first, of the second
_TOWARDS_NOISE = 0.77  # power of a uniform number: one step in six is in the least noisy quarter


def build(recipe: Recipe) -> UNet2DConditionModel:
    """The untrained UNet: attention at 8 x 8 and 4 x 4 positions, none at 16 x 16, where it costs most."""
    sizes = recipe.denoiser
    return UNet2DConditionModel(
        sample_size=SIZE // LATENT_PIXELS,
        in_channels=recipe.autoencoder.latent,
        out_channels=recipe.autoencoder.latent,
        # Outlines and patterns are at 16 x 16.
        layers_per_block=(2, 1, 1),  # pyright: ignore[reportArgumentType]
        block_out_channels=sizes.channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=recipe.text.width,
        attention_head_dim=sizes.heads,  # diffusers means the number of heads
        norm_num_groups=sizes.groups,
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule and the exported folder's sampler."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        steps_offset=1,  # unused when trailing; diffusers warns of 0
    )


class Conditioned(nn.Module):
    """The UNet with its text encoder."""

    def __init__(self, unet: UNet2DConditionModel, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.encoder = encoder

    def forward(self, noisy: Tensor, steps: Tensor, ids: Tensor, owner: Tensor) -> Tensor:
        """Predict v for latents (B, C, 16, 16) at diffusion steps (B,).

        Args:
            noisy: latents.
            steps: diffusion steps.
            ids: token ids of K captions a row, (B, K, CONTEXT).
            owner: (B, CONTEXT): the caption, 0 to K - 1, that each position's encoding is taken from.
        """
        captions = ids.shape[1]
        encoded = self.encoder(ids.flatten(0, 1)).last_hidden_state.unflatten(0, (-1, captions))
        picked = owner[:, None, :, None].expand(-1, 1, -1, encoded.shape[-1])
        return self.unet(noisy, steps, encoded.gather(1, picked)[:, 0], return_dict=False)[0]


def conditioned(tokenizer: CLIPTokenizer, lines: list[str], owned: list[bool], rng: Random) -> tuple[Tensor, Tensor]:
    """The captions and the owner of every position, as `Conditioned` takes them.

    Args:
        tokenizer: the base's.
        lines: a caption a row, B in all.
        owned: whether only a product's own words tell its looks; see `owners`.
        rng: draws the other captions.

    Returns:
        Ids (B, 3, CONTEXT) and owners (B, CONTEXT). A row that is not owned takes all from its own caption, number 0.
    """
    captions, owner = [], torch.zeros(len(lines), CONTEXT, dtype=torch.long)
    for row, (line, apart) in enumerate(zip(lines, owned, strict=True)):
        if not apart:
            captions += [line] * _CAPTIONS
            continue
        words = split(line)
        whose = owners(words)
        owner[row, 1 : 1 + len(words)] = torch.tensor(whose)
        captions += [" ".join(altered(words, whose, but, rng)) for but in range(_CAPTIONS)]
    return text.tokens(tokenizer, captions).unflatten(0, (-1, _CAPTIONS)), owner


def untrained(recipe: Recipe, folder: Path) -> Conditioned:
    """A new UNet with the text encoder of the stage before."""
    reading = text.Reading(text.build(recipe, load_tokenizer(folder / "tokenizer")))
    if (folder / f"{text.NAME}.safetensors").exists():
        load_mean(folder / f"{text.NAME}.safetensors", reading)
    return Conditioned(build(recipe), reading.encoder)


def trained(recipe: Recipe, folder: Path) -> Conditioned:
    """Both as last saved."""
    model = untrained(recipe, folder)
    load_mean(folder / f"{NAME}.safetensors", model)
    return model.eval().requires_grad_(False)


def write_latents(machine: Machine, recipe: Recipe, folder: Path) -> None:
    """Encode all pictures, a share in each process, into `latents.npy`: (N, C, 16, 16) float16, scaled."""
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    vae = autoencoder.trained(recipe, folder)
    nn.Module.to(vae, machine.device)
    path = folder / "latents.unfinished.npy"
    shape = (len(pictures), recipe.autoencoder.latent, SIZE // LATENT_PIXELS, SIZE // LATENT_PIXELS)
    if machine.rank == 0:
        np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
    machine.meet()
    into = np.load(path, mmap_mode="r+")
    factor = scaling(vae, pictures)
    for start in range(machine.rank * _CHUNK, len(pictures), machine.processes * _CHUNK):
        with machine.autocast():
            into[start : start + _CHUNK] = (autoencoder.encode(vae, pictures[start : start + _CHUNK]) * factor).numpy()
    into.flush()
    machine.meet()
    if machine.rank == 0:
        path.replace(folder / "latents.npy")


def scaling(vae: nn.Module, pictures: np.ndarray) -> float:
    """The factor that gives the latents unit standard deviation, from the first 1,000 pictures."""
    return float(1 / autoencoder.encode(vae, pictures[:_CHUNK]).std())  # pyright: ignore[reportArgumentType]


def often(scene: Description) -> float:
    """Relative frequency of a scene: pairs of products and patterns, above all emblems, are learned last."""
    pattern = {"plain": 0.4, "star": 2.4, "heart": 2.4}.get(scene.looks[0].pattern, 1.4)
    return pattern if scene.relation is None else 1.5 * pattern


def fit(machine: Machine, recipe: Recipe, folder: Path, until: float | None) -> None:
    """Train both to the end, or `until` that time; the checkpoint has the weights."""
    torch.manual_seed(recipe.seed)
    model = untrained(recipe, folder).to(machine.device)
    # A fifth faster on a CPU.
    model.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if machine.device == "cpu":
        # The fused kernel's backward takes twice as long there.
        model.unet.set_attn_processor(AttnProcessor())
        model.encoder.set_attn_implementation("eager")
    sizes = recipe.denoiser
    latents = np.load(folder / "latents.npy", mmap_mode="r")
    share = sizes.fit.batch // machine.processes
    train(
        NAME, model, _loss(model, latents, recipe, share, folder, machine), sizes.fit,
        machine=machine, folder=folder, seed=recipe.seed, until=until,
        rates={"encoder.": sizes.text_rate}, inner=_inner,
    )  # fmt: skip


def focused(errors: Tensor, shown: Tensor, focus: float) -> Tensor:
    """The mean of errors (B, H, W) with weights 1 + `focus` times the share of the position that shows a product."""
    weight = 1 + focus * shown
    return (errors * weight).sum() / weight.sum()


def _inner(name: str) -> bool:
    return name.startswith("unet.") and not name.startswith(("unet.conv_in", "unet.conv_out"))


def _loss(  # noqa: PLR0917 - all that a step reads
    model: Conditioned, latents: np.ndarray, recipe: Recipe, share: int, folder: Path, machine: Machine
) -> Loss:
    tokenizer = load_tokenizer(folder / "tokenizer")
    kept = scheduler().alphas_cumprod.to(machine.device)
    through = machine.compiled(model)
    forward = (torch.arange(share) + 0.5) / share
    products = np.load(folder / "products.npy", mmap_mode="r") if recipe.denoiser.focus else None
    weights = torch.tensor([often(described(number, BASE_INSTANCES)) for number in range(len(latents))])

    def loss(_: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(weights, share, replacement=True, generator=generator).sort().values
        random = Random(int(torch.randint(2**62, (), generator=generator)))  # noqa: S311
        empty = torch.rand(share, generator=generator) < recipe.denoiser.unconditional
        lines = [
            "" if without else captioned(number, BASE_INSTANCES, random)
            for number, without in zip(chosen.tolist(), empty.tolist(), strict=True)
        ]
        owned = torch.rand(share, generator=generator) < recipe.denoiser.owned
        ids, owner = (each.to(machine.device) for each in conditioned(tokenizer, lines, owned.tolist(), random))
        clean = torch.from_numpy(latents[chosen.numpy()]).float().to(machine.device)
        noise = torch.randn(clean.shape, generator=generator).to(machine.device)
        # Each batch covers the whole schedule with a random shift, more thinly at low noise: what
        # remains to predict there is mostly the autoencoder's own noise.
        shifted = ((forward + torch.rand((), generator=generator)) % 1) ** _TOWARDS_NOISE
        steps = (shifted * len(kept)).long()[torch.randperm(share, generator=generator)].to(machine.device)
        signal = kept[steps].sqrt()[:, None, None, None]
        loud = (1 - kept[steps]).sqrt()[:, None, None, None]
        with machine.autocast():
            made = through(signal * clean + loud * noise, steps, ids, owner)
        errors = (made.float() - (signal * noise - loud * clean)).square().mean(1)
        if products is None:
            return errors.mean()
        shown = torch.from_numpy(products[chosen.numpy()]).to(machine.device) / 255
        return focused(errors, shown, recipe.denoiser.focus)

    return loss
