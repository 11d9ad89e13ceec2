"""A real PixArt-Sigma of toy width with random weights: a T5 encoder, a transformer with biases, a mask."""

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import Base, load_base

TEXT_WIDTH = 20
WIDTH = 24  # D, behind the shared projection
_WORDS = "a photo of the good image photograph shown in mug hat red teddy bear on beach snow dark next to and".split()  # noqa: SIM905


def pixart_pipeline(*, seed=0) -> PixArtSigmaPipeline:
    """The unmodified pipeline."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in _WORDS if len(word) > 1]
    pieces += [(letter, -6.0) for letter in letters]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    torch.manual_seed(seed)
    text = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
        )
    )
    with torch.no_grad():
        # Fresh weights are so small that every encoding is nearly the same vector; trained ones are not.
        text.get_input_embeddings().weight.normal_(std=1.0)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
    )
    with torch.no_grad():
        # A fresh model ends in zeros, and its biases are zero: it would ignore its text.
        for name, parameter in transformer.named_parameters():
            if parameter.abs().max() == 0 or name.endswith(("to_k.bias", "to_v.bias")):
                parameter.normal_(std=0.1)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    scheduler = DPMSolverMultistepScheduler(num_train_timesteps=100, beta_schedule="linear")
    pipe = PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=scheduler,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixart_folder(path, **options):
    """Write it as a base model's folder, and return the folder."""
    pixart_pipeline(**options).save_pretrained(path)
    return path


def pixart_base(path, **options) -> Base:
    """Written to a folder and loaded again."""
    return load_base(describe(pixart_folder(path, **options)))
