"""Base models for benchmarks: the embedded one, a folder, or Stable Diffusion 1.5 with random weights."""

from pathlib import Path
from typing import Any

import torch

from perfusion_ops.attention.convolutions import edited_layers, fresh
from perfusion_ops.base.folder import BaseFolder, BaseSettings, describe
from perfusion_ops.base_model import Base, base_from_parts
from perfusion_ops.concept import Concept, GatedConcept, OffsetConcept, References
from perfusion_ops.config import Recipe
from perfusion_ops.metric import Metric, metric_from_moment
from perfusion_ops.mini import base_folder


def device_of(name: str | None) -> torch.device:
    """The named device, or the GPU when there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def parts_of(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Tokenizer, text encoder, denoiser, VAE and scheduler of an unmodified base."""
    if name == "sd15":
        return _stable_diffusion_15(device, dtype)
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    folder = base_folder() if name == "mini" else Path(name)
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None, local_files_only=True)
    return {
        "tokenizer": pipe.tokenizer,
        "text_encoder": pipe.text_encoder.to(device, torch.float32).eval(),
        "unet": pipe.unet.to(device, dtype).eval(),
        "vae": pipe.vae.to(device, dtype).eval(),
        "scheduler": pipe.scheduler,
    }


def base_of(name: str, parts: dict[str, Any]) -> Base:
    """The base with replaced key/value projections, in place."""
    folder = BaseFolder(Path(name), name, "0" * 64, BaseSettings()) if name == "sd15" else None
    return base_from_parts(folder or describe(base_folder() if name == "mini" else Path(name)), **parts)


def plain_metric(base: Base) -> Metric:
    """A well-conditioned metric; its values do not affect the times."""
    eye = torch.eye(base.text_width, dtype=torch.float64)
    return metric_from_moment(eye, ridge=0.0, base_digest=base.folder.digest).to(base.device)


def made_up_concepts(
    base: Base, metric: Metric, count: int, recipe: Recipe = "paper", *, references: int = 0, conv_rank: int = 0
) -> list[Concept]:
    """Concepts with random weights; for recipe `offset` also with photos and edits. No value affects the times."""
    generator = torch.Generator().manual_seed(0)

    def normal(width: int, scale: float) -> torch.Tensor:
        return torch.randn(width, generator=generator) * scale

    if recipe == "offset":
        return [
            OffsetConcept(
                superclass="mug",
                embedding=normal(base.embedding_width, 0.02),
                value_offset=normal(base.stack.key_rows, 0.1),
                base_digest=base.folder.digest,
                metric_digest=metric.digest,
                references=_photos(base, references, generator) if references else None,
                convolutions=fresh(edited_layers(base.denoiser), conv_rank, 0) if conv_rank else None,
            )
            for _ in range(count)
        ]
    return [
        GatedConcept(
            superclass="mug",
            embedding=normal(base.embedding_width, 0.02),
            target_input=normal(base.text_width, 1.0),
            superclass_input=normal(base.text_width, 1.0),
            value_target=normal(base.stack.key_rows, 0.1),
            key_target=None,
            lock="local",
            base_digest=base.folder.digest,
            metric_digest=metric.digest,
        )
        for _ in range(count)
    ]


def _photos(base: Base, count: int, generator: torch.Generator) -> References:
    side = base.resolution // base.latent_factor
    latents = torch.randn(count, base.vae.config.latent_channels, side, side, generator=generator)
    return References(latents, torch.ones(count, side, side, dtype=torch.bool))


def _stable_diffusion_15(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The published configuration at full width with random weights, and the embedded tokenizer padded to 77."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    four: Any = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4, (128, 256, 512, 512)
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(base_folder() / "tokenizer", model_max_length=77)
    with torch.device(device):
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae: Any = AutoencoderKL(
            block_out_channels=four[2],
            down_block_types=four[0],
            up_block_types=four[1],
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=0.18215,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder.float().eval(),
        "unet": unet.to(dtype).eval(),
        "vae": vae.to(dtype).eval(),
        "scheduler": scheduler,
    }
