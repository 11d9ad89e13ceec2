"""The published configurations on the meta device: how many layers are edited, and what a concept of them takes."""

import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

from perfusion_ops.concept import GatedConcept
from perfusion_ops.concept_file import write_concept
from perfusion_ops.projection import install

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
PIXART = {
    "sample_size": 128,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "use_additional_conditions": False,
}


def unet(**config):
    return UNet2DConditionModel(**config)


@pytest.mark.parametrize(
    ("make", "layers", "rows", "width", "embedding", "most", "packed"),
    [
        (lambda: unet(cross_attention_dim=768, attention_head_dim=8), 16, 24_960, 768, 768, 32_000, 20_000),
        (
            lambda: unet(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
            *(16, 24_960, 1024, 1024, 33_000, 20_000),
        ),
        (lambda: unet(**SDXL), 70, 166_400, 2048, 2048, 184_000, 100_000),
        (lambda: PixArtTransformer2DModel(**PIXART), 28, 64_512, 1152, 4096, 80_000, 50_000),
    ],
    ids=["SD 1.5", "SD 2.1", "SDXL", "PixArt-Sigma"],
)
def test_layers_and_file_sizes(make, layers, rows, width, embedding, most, packed):
    with torch.device("meta"):
        stack = install(make())
    assert (len(stack.widths), tuple(stack.weight.shape)) == (layers, (rows, width))
    g = torch.Generator().manual_seed(0)
    inputs = (torch.randn(size, generator=g) for size in (embedding, width, width))
    values = torch.randn(stack.key_rows, generator=g)
    concept = GatedConcept("teddy bear", *inputs, values, None, "local", "b" * 64, "c" * 64, text_digest="t" * 64)
    assert len(write_concept(concept)) <= most
    assert len(write_concept(concept, packed=True)) <= packed
