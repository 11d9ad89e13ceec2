"""A loaded base model: frozen text encoder, denoiser with replaced key/value projections, VAE and noise schedule.

The text encoder is in float32 whatever the denoiser's type: the edit is sensitive to rounding, and the cost is small.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.attention_maps import cross_attentions
from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.projection import KeyValueStack, install


@dataclass(frozen=True)
class Base:
    """Everything that the method needs of a base model.

    Attributes:
        folder: its folder, with digest and settings.
        tokenizer: CLIPTokenizer.
        text_encoder: CLIPTextModel, float32, frozen.
        unet: UNet2DConditionModel whose cross-attention takes pre-projected conditioning (B, N, R), frozen.
        vae: AutoencoderKL, frozen.
        scheduler: the folder's scheduler; its config is the noise schedule.
        stack: the stacked key/value projections.
    """

    folder: BaseFolder
    tokenizer: Any
    text_encoder: nn.Module
    unet: Any
    vae: Any
    scheduler: Any
    stack: KeyValueStack

    @property
    def device(self) -> torch.device:
        """The denoiser's device."""
        return self.stack.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's type."""
        return self.stack.weight.dtype

    @property
    def text_width(self) -> int:
        """D, the width of a text encoding."""
        return int(self.stack.weight.shape[1])

    @property
    def embedding_width(self) -> int:
        """E, the width of a word embedding."""
        encoder: Any = self.text_encoder
        return int(encoder.get_input_embeddings().weight.shape[1])

    @property
    def latent_factor(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures that the model was trained on."""
        return self.folder.settings.resolution or int(self.unet.config.sample_size) * self.latent_factor


def load_base(folder: BaseFolder, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Base:
    """Load a base model from a local folder, for training and rendering.

    Args:
        folder: a described diffusers folder (StableDiffusionPipeline).
        device: a torch device.
        dtype: type of denoiser and VAE; bfloat16 or float16 on an accelerator.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    with quiet_libraries():
        pipe = StableDiffusionPipeline.from_pretrained(
            folder.path, dtype=dtype, safety_checker=None, local_files_only=True, use_safetensors=True
        )
        return base_from_parts(
            folder,
            tokenizer=pipe.tokenizer,
            text_encoder=pipe.text_encoder.to(device=device, dtype=torch.float32),
            unet=pipe.unet.to(device=device, dtype=dtype),
            vae=pipe.vae.to(device=device, dtype=dtype),
            scheduler=pipe.scheduler,
        )


def base_from_parts(
    folder: BaseFolder,
    *,
    tokenizer: Any,
    text_encoder: Any,
    unet: Any,
    vae: Any,
    scheduler: Any,
    keep_projections: bool = False,
) -> Base:
    """Freeze the parts and take the key/value stack out of the denoiser, in place.

    Args:
        folder: where the parts come from.
        tokenizer: see `Base`.
        text_encoder: see `Base`.
        unet: a UNet2DConditionModel with its projections.
        vae: see `Base`.
        scheduler: see `Base`.
        keep_projections: let the denoiser take ordinary text encodings beside pre-projected conditioning.

    Raises:
        BaseError: `mask_layers` of its perfusion.json names no cross-attention of the denoiser.
        ValueError, TypeError: see `perfusion_ops.projection.install`.
    """
    known = [name for name, _ in cross_attentions(unet)]
    unknown = [name for name in folder.settings.mask_layers if name not in known]
    if unknown:
        raise BaseError(
            f"mask_layers in {folder.path / 'perfusion.json'} has {unknown[0]!r}: use some of {', '.join(known)}"
        )
    for module in (text_encoder, unet, vae):
        module.requires_grad_(False).eval()
    for module in (unet, vae):
        # Convolutions run a tenth faster in this layout on CPUs, and on GPUs in half precision.
        module.to(memory_format=torch.channels_last)
    return Base(folder, tokenizer, text_encoder, unet, vae, scheduler, install(unet, keep=keep_projections))


@torch.no_grad()
def encode_pictures(base: Base, pictures: Tensor) -> Tensor:
    """Latents of pictures: the mean of the VAE's posterior, scaled.

    Args:
        base: the base model.
        pictures: (B, 3, H, W) in -1..1.

    Returns:
        (B, C, H / f, W / f) float32.
    """
    posterior = base.vae.encode(pictures.to(base.device, base.vae.dtype)).latent_dist
    shift = getattr(base.vae.config, "shift_factor", None) or 0.0
    return ((posterior.mean - shift) * base.vae.config.scaling_factor).float()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the messages and progress bars of transformers and diffusers; errors still raise.

    Afterwards both libraries have the settings that they had before.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with contextlib.ExitStack() as restore:
        for library in (diffusers_logging, transformers_logging):
            restore.callback(library.set_verbosity, library.get_verbosity())
            if library.is_progress_bar_enabled():
                restore.callback(library.enable_progress_bar)
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
