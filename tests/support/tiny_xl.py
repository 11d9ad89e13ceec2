"""A real SDXL of toy width with random weights: two text encoders with different padding, 70 layers of attention."""

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import Base, load_base
from perfusion_ops.mini import base_folder

WIDTH = 24 + 32  # D, and E
_POOLED = 20


def _text(kind, tokenizer, width, seed, **options):
    torch.manual_seed(seed)
    model = kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )
    )
    with torch.no_grad():
        # Fresh CLIP weights are so small that every encoding is nearly the same vector; trained ones are not.
        model.get_input_embeddings().weight.normal_(std=1.0)
    return model.eval()


def xl_unet(width=WIDTH, pooled=_POOLED, blocks=(1, 2), seed=0):
    """The UNet of SDXL, narrow; `blocks` are the transformer layers of its levels, (2, 10) in the real one."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, *blocks],
        attention_head_dim=[2, 4, 4],
        use_linear_projection=True,
        cross_attention_dim=width,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + 6 * 8,
        layers_per_block=1,
        norm_num_groups=8,
    ).eval()


def xl_pipeline(*, zero_negative=True, seed=0) -> StableDiffusionXLPipeline:
    """The unmodified pipeline."""
    first = CLIPTokenizer.from_pretrained(base_folder() / "tokenizer")
    second = CLIPTokenizer.from_pretrained(base_folder() / "tokenizer", pad_token="!")
    torch.manual_seed(seed + 3)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        force_upcast=True,
    ).eval()
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=_text(CLIPTextModel, first, 24, seed + 1),
        text_encoder_2=_text(CLIPTextModelWithProjection, second, 32, seed + 2, projection_dim=_POOLED),
        tokenizer=first,
        tokenizer_2=second,
        unet=xl_unet(seed=seed),
        scheduler=EulerDiscreteScheduler(num_train_timesteps=100, steps_offset=1),
        force_zeros_for_empty_prompt=zero_negative,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def xl_folder(path, **options):
    """Write it as a base model's folder, and return the folder."""
    xl_pipeline(**options).save_pretrained(path)
    return path


def xl_base(path, *, dtype=torch.float32, **options) -> Base:
    """Written to a folder and loaded again."""
    return load_base(describe(xl_folder(path, **options)), dtype=dtype)
