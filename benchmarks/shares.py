"""Where the arithmetic of a picture is, at the published sizes, on the meta device: no GPU is needed.

    make bench NAME=shares

It counts the multiplications of matrices and convolutions for one picture of 20 steps with guidance, and its prompt and
negative prompt. The share of the text encoders is the most that a faster one could save: TF32 would save part of it,
and seeds of one prompt share its encoding. So they stay in float32.
"""

import argparse
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import finish, show
from benchmarks.memory import BASES

_STEPS = 20
_PROMPTS = 2  # with and without guidance
# The text encoders of the published models: width, layers, inner width.
_TEXTS = {"sd15": [(768, 12, 3072)], "sdxl": [(768, 12, 3072), (1280, 32, 5120)]}
_VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}


def run(_options: argparse.Namespace) -> bool:
    """Shares by base; the bar is the sentence above: the text encoders are less than a thousandth."""
    figures: dict[str, Any] = {}
    for name, config in BASES.items():
        text, denoiser, vae = _text(name), _STEPS * _denoiser(config), _decoder(config)
        total = text + denoiser + vae
        figures |= {
            f"tflop_{name}": total / 1e12,
            f"text_share_{name}": text / total,
            f"vae_share_{name}": vae / total,
            f"denoiser_over_text_{name}": denoiser / text,
        }
        show(f"{name}: {total / 1e12:.1f} TFLOP; text encoders {text / total:.5f}, VAE {vae / total:.3f}")
    return finish("shares", figures, {"denoiser_over_text_sd15": 1000.0, "denoiser_over_text_sdxl": 1000.0})


def _counted(call: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _text(name: str) -> int:
    from transformers import CLIPTextConfig, CLIPTextModel

    total = 0
    for width, layers, inner in _TEXTS[name]:
        with torch.device("meta"):
            config = CLIPTextConfig(
                hidden_size=width, num_hidden_layers=layers, intermediate_size=inner, num_attention_heads=width // 64
            )
            model = CLIPTextModel(config).eval()
            ids = torch.zeros(_PROMPTS, 77, dtype=torch.long)
            total += _counted(lambda model=model, ids=ids: model(ids))
    return total


def _denoiser(config: dict[str, Any]) -> int:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**config).eval()
        side, width = config["sample_size"], config["cross_attention_dim"]
        added = {"text_embeds": torch.zeros(_PROMPTS, 1280), "time_ids": torch.zeros(_PROMPTS, 6)}
        sample, text = torch.zeros(_PROMPTS, 4, side, side), torch.zeros(_PROMPTS, 77, width)
        step = torch.zeros((), dtype=torch.long)
        return _counted(lambda: unet(sample, step, text, added_cond_kwargs=added))


def _decoder(config: dict[str, Any]) -> int:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        levels = len(_VAE["block_out_channels"])
        blocks: dict[str, Any] = {
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
        }
        vae: Any = AutoencoderKL(**_VAE, **blocks).eval()
        return _counted(lambda: vae.decode(torch.zeros(1, 4, config["sample_size"], config["sample_size"])))
