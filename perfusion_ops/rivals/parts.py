"""An unmodified base model: the parts of its diffusers folder, and the words that stand for a product."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perfusion_ops.base.folder import BaseError, BaseFolder
from perfusion_ops.base_model import drop_last_layers, fuse_loras, quiet_libraries
from perfusion_ops.text import encode, tokenize, words


@dataclass(frozen=True, eq=False)
class Parts:
    """The frozen parts of one folder; a method copies what it changes.

    Attributes:
        folder: where they come from, with its settings.
        tokenizer: CLIPTokenizer.
        text_encoder: CLIPTextModel, float32.
        unet: UNet2DConditionModel, which takes text encodings (B, N, D).
        vae: AutoencoderKL.
        scheduler: its config is the noise schedule.
    """

    folder: BaseFolder
    tokenizer: Any
    text_encoder: nn.Module
    unet: Any
    vae: Any
    scheduler: Any

    @property
    def device(self) -> torch.device:
        """The denoiser's device."""
        return self.unet.device

    @property
    def embeddings(self) -> Tensor:
        """The text encoder's table of word embeddings, (V, E)."""
        return self.text_encoder.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures that the model was trained on."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.folder.settings.resolution or int(self.unet.config.sample_size) * factor


def load_parts(folder: BaseFolder, *, device: str = "cpu") -> Parts:
    """Load a folder in float32, in which all methods are trained and drawn here.

    Args:
        folder: a described diffusers folder (StableDiffusionPipeline).
        device: a torch device.

    Raises:
        BaseError: a LoRA of the folder cannot be fused, or it is a model for inpainting.
    """
    if folder.inpaints:
        raise BaseError(f"{folder.path} is a model for inpainting, on which methods are not compared: use a plain one")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    with quiet_libraries():
        pipe: Any = StableDiffusionPipeline.from_pretrained(
            folder.path, dtype=torch.float32, safety_checker=None, local_files_only=True, use_safetensors=True
        )
        fuse_loras(folder, pipe)
    if folder.settings.clip_skip:
        drop_last_layers(pipe.text_encoder, folder.settings.clip_skip)
    for module in (pipe.text_encoder, pipe.unet, pipe.vae):
        module.requires_grad_(False).eval().to(device)
    for module in (pipe.unet, pipe.vae):
        module.to(memory_format=torch.channels_last)  # convolutions are a tenth faster on CPUs
    return Parts(folder, pipe.tokenizer, pipe.text_encoder, pipe.unet, pipe.vae, pipe.scheduler)


def spoken(prompt: str, phrase: str) -> str:
    """A prompt with `phrase` for its `{}`; the phrase may hold `{0}`, where a learned token stands.

    >>> spoken("a photo of a {} on the beach", "{0} mug")
    'a photo of a {0} mug on the beach'
    """
    return prompt.replace("{}", phrase)


def encodings(parts: Parts, prompts: list[str], embedding: Tensor | None = None) -> Tensor:
    """Text encodings of B prompts.

    Args:
        parts: the base model.
        prompts: each may hold `{0}`, where `embedding` stands.
        embedding: (E,); gradients flow to it.

    Returns:
        (B, N, D) float32.

    Raises:
        PromptTooLongError: a prompt does not fit.
        ValueError: a prompt holds `{0}`, and there is no embedding.
    """
    rows = [tokenize(parts.tokenizer, prompt) for prompt in prompts]
    if embedding is None:
        if any(0 in row.slots for row in rows):
            raise ValueError("a prompt names a learned token, and this method has none")
        return encode(parts.text_encoder, rows)
    return encode(parts.text_encoder, rows, embedding[None, None].expand(len(rows), 1, -1))


def word_embedding(parts: Parts, text: str) -> Tensor:
    """The mean embedding (E,) of a text's tokens, where a learned token starts.

    Raises:
        ValueError: the text has no token.
    """
    tokens = words(parts.tokenizer, text)
    if not tokens:
        raise ValueError(f"{text!r} has no token: a learned token cannot start there")
    return parts.embeddings[tokens].detach().mean(0).clone()
