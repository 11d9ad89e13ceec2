"""A small Stable Diffusion folder and a motion adapter that fits it, with random weights."""

import torch
from diffusers import MotionAdapter, StableDiffusionPipeline

from tests.support.tiny_base import small_parts


def adapter(seed=1, **options):
    torch.manual_seed(seed)
    motion = MotionAdapter(
        **{
            "block_out_channels": (16, 32),
            "motion_layers_per_block": 1,
            "motion_num_attention_heads": 2,
            "motion_norm_num_groups": 8,
            "use_motion_mid_block": False,
            **options,
        }
    )
    with torch.no_grad():
        for parameter in motion.parameters():
            # Fresh motion modules end in zeros: every frame would be drawn alone.
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.2)
    return motion.eval()


def video_folders(path, **options):
    """`base` and `motion` in a folder; `options` are of the adapter."""
    pipe = StableDiffusionPipeline(
        **small_parts(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.save_pretrained(path / "base")
    adapter(**options).save_pretrained(path / "motion")
    return path
