"""A real Stable Diffusion of toy width with random weights, and a naive float64 reference of the edit."""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from perfusion_ops.base.folder import BaseFolder, BaseSettings
from perfusion_ops.base_model import Base, base_from_parts
from perfusion_ops.metric import Metric, metric_from_moment
from perfusion_ops.mini import base_folder

TEMPLATES = ("a photo of a {}", "the photo of a {}", "a picture of a {}")


def small_parts(*, dtype=torch.float32, prediction="epsilon", seed=0):
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(base_folder() / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(dtype)
    with torch.no_grad():
        # Fresh CLIP weights are so small that every encoding is nearly the same vector; trained ones are not.
        text.get_input_embeddings().weight.normal_(std=1.0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        layers_per_block=1,
        norm_num_groups=8,
    ).to(dtype)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).to(dtype)
    scheduler = DDIMScheduler(num_train_timesteps=100, prediction_type=prediction)
    return {
        "tokenizer": tokenizer,
        "text_encoder": text.eval(),
        "unet": unet.eval(),
        "vae": vae.eval(),
        "scheduler": scheduler,
    }


def small_base(*, dtype=torch.float32, prediction="epsilon", seed=0) -> Base:
    settings = BaseSettings(name="small", templates=TEMPLATES)
    folder = BaseFolder(Path("small"), "small", "d" * 64, settings)
    return base_from_parts(folder, **small_parts(dtype=dtype, prediction=prediction, seed=seed))


def random_metric(width: int, *, seed=0, base_digest="d" * 64, condition=1e3) -> Metric:
    """A metric with eigenvalues spread over `condition`."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))
    values = torch.logspace(0, -math.log10(condition), width, dtype=torch.float64)
    return metric_from_moment(q @ torch.diag(values) @ q.T, ridge=0.0, base_digest=base_digest)


def naive_edit(e, weight, inverse, concepts):
    """W^ e for one encoding in float64, straight from Eq. 4 and the Cholesky form of appendix B.

    `concepts`: list of (i, o, bias, temperature).
    """
    e, weight, inverse = e.double(), weight.double(), inverse.double()
    result = torch.zeros(weight.shape[0], dtype=torch.float64)
    factor = torch.linalg.cholesky(inverse)
    basis = []
    for target, o, bias, temperature in concepts:
        i = target.double()
        similarity = float(e @ inverse @ i) / float(i @ inverse @ i)
        result += o.double() / (1 + math.exp(-(similarity - bias) / temperature))
        white = factor.T @ i
        for q in basis:
            white = white - (q @ white) * q
        basis.append(white / white.norm())
    kept = e.clone()
    for q in basis:
        u = torch.linalg.solve(factor.T, q)
        kept = kept - u * float(e @ inverse @ u)
    return result + weight @ kept
